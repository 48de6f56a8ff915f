"""Runs weight steering: every difference over its α, then all of them at amplitudes of equal KL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.behaviour.run import Columns, scored_columns, text_columns
from engine.behaviour.spec import Behaviour
from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab, chosen_rows, resampling_groups, train_rows
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.lab.unknown import tell_unknown, unknown_id
from engine.models.loading import LoadedModel
from engine.passes.patch_engine import SELF_LIMIT
from engine.rank.numbers import equal_kl_amplitude
from engine.weight_steering.effects import effects, scored_tokens
from engine.weight_steering.report import UNSTEERED, Bench, Key, against_first, curves, prompt_table
from engine.weight_steering.spec import WeightSteering
from engine.weight_steering.vocabulary import refitted, tell_unshared
from engine.weights.deltas import WeightDelta, difference, random_like
from engine.weights.steer import WeightShift

SCORES = ("agreement", "soft_refusal")
SAID = ("agrees", "refused", "right")


def run(spec: WeightSteering, lab: Lab) -> ExperimentResult:
    """Runs weight steering on a lab's train and validation prompts.

    Raises:
        PatchError, ModelError, StoreError: the experiment, a model or a difference. JobError: cancelled.
    """
    spec.wording.check()
    for name in spec.models():
        lab.sizes(name)
    bench = prepare(spec, lab)
    work = _Work(spec, lab, lab.model(spec.model), bench, _total(spec))
    work.measure(None, [UNSTEERED])
    facts = []
    for name in spec.series():
        deltas = list(delta_of(spec, lab, name))
        facts.append(_facts(name, deltas))
        work.measure(WeightShift(work.lm, deltas), [(name, alpha) for alpha in spec.alphas])
        del deltas
    keys = list(work.measured)
    level, at = equal_kl(spec, work)
    for name, alpha in at.items():
        if alpha is not None and (name, alpha) not in work.measured:
            work.measure(WeightShift(work.lm, delta_of(spec, lab, name)), [(name, alpha)])
    reached = [(name, alpha) for name, alpha in at.items() if alpha is not None]
    tables = {
        "table": curves(bench, work.measured, keys),
        "prompts": prompt_table(bench, work.measured, lab.prompts),
    }
    if work.samples:
        tables["samples"] = pl.concat(work.samples)
    if reached:
        tables["equal"] = curves(bench, work.measured, reached)
    summary: dict[str, Any] = {
        "subject": spec.describe(),
        "series": facts,
        "equal": {"level": level, "alpha": at, "apart": against_first(bench, work.measured, reached or keys)},
        "counts": {
            role: {split: int(bench.members(role, split).sum()) for split in ("train", "validation")}
            for role in bench.roles
        },
        "interval": {"level": spec.level, "unit": unit_name(lab.prompts[bench.rows])},
        "device": str(work.lm.device),
        "rounding": measured(lab, [spec.model]),
        "dtype": str(work.lm.dtype).removeprefix("torch."),
        "notes": list(lab.notes),
    }
    return ExperimentResult(summary, tables)


def prepare(spec: WeightSteering, lab: Lab) -> Bench:
    """The prompts of a run: both roles in both splits, and those that are answered."""
    parts = {
        (role, split): chosen_rows(lab.prompts, split, group)
        for role, group in (("wanted", spec.where), ("neutral", spec.neutral))
        for split in ("train", "validation")
    }
    rows = np.unique(np.concatenate(list(parts.values())))
    roles = {
        role: np.isin(rows, np.concatenate([parts[role, split] for split in ("train", "validation")]))
        for role in ("wanted", "neutral")
    }
    groups = resampling_groups(lab.prompts[rows])
    units = resampling_units(lab.prompts[rows])
    asked = np.flatnonzero(np.isin(rows, parts["wanted", "validation"]))
    roles["answered"] = np.isin(np.arange(rows.size), spread(asked, groups, spec.answers))
    ids = lab.token_ids(spec.model, rows)
    tell_unknown(lab, spec.model, ids)
    tell_unshared(lab, spec.model, [lab.first, *spec.models()], ids)
    tokens = scored_tokens(ids, unknown_id(lab, spec.model))
    return Bench(spec, rows, roles, np.isin(rows, train_rows(lab.prompts)), units, tokens)


def spread(places: np.ndarray, groups: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of some places, whole groups, evenly spread over them."""
    members: dict[int, list[int]] = {}
    for place in places.tolist():
        members.setdefault(int(groups[place]), []).append(place)
    units = list(members.values())
    size = max(map(len, units), default=1)
    count = min(len(units), most // size)
    chosen = np.linspace(0, len(units) - 1, count).round().astype(int)
    return np.array([place for unit in chosen for place in units[unit]], dtype=np.int64)


def delta_of(spec: WeightSteering, lab: Lab, name: str) -> Iterable[WeightDelta]:
    """The difference of a series.

    Raises:
        PatchError: it changes nothing. StoreError, ModelError: the models have no difference.
    """
    if name.startswith("random "):
        return random_like(list(delta_of(spec, lab, spec.series()[0])), spec.seed + int(name.split()[1]))
    contrast = spec.deltas[spec.series().index(name)]
    minus = contrast.minus or spec.model
    if not any(True for _ in islice(lab.delta(minus), 1)):
        found = list(lab.delta(contrast.plus))
    else:
        found = difference(list(lab.delta(contrast.plus)), list(lab.delta(minus)))
    if not found:
        raise PatchError(
            f"{contrast.plus} and {minus} have the same weights: there is nothing to steer by.",
            expected="two models that differ",
            given=f"{contrast.plus} − {minus} = 0",
            next_step="choose another model.",
        )
    return refitted(found, lab, spec.model)


def equal_kl(spec: WeightSteering, work: _Work) -> tuple[float | None, dict[str, float | None]]:
    """The level, and the α > 0 of each series at which its mean KL on the train prompts is as large."""
    alphas = np.array([alpha for alpha in spec.alphas if alpha > 0])
    kept = work.bench.members("neutral", "train")
    kl = {
        name: np.array([work.measured[name, alpha]["kl"][kept].mean() for alpha in alphas.tolist()])
        for name in spec.series()
    }
    own = [float(kl[spec.name_of(one)][alphas == 1.0][0]) for one in spec.deltas]
    level = spec.budget if spec.budget is not None else min(own)
    noise = kl_floor(measured(work.lab, [spec.model]))
    if not level > max(SELF_LIMIT, noise):  # within rounding of no change at all
        return None, dict.fromkeys(kl)
    return level, {name: equal_kl_amplitude(alphas, values, level) for name, values in kl.items()}


@dataclass
class _Work:
    """One model, measured under one shift after the other.

    Attributes:
        measured: what was found, see `weight_steering_report.Measured`. samples: generated answers.
    """

    spec: WeightSteering
    lab: Lab
    lm: LoadedModel
    bench: Bench
    total: int
    done: int = 0
    measured: dict[Key, dict[str, Float[np.ndarray, " n"]]] = field(default_factory=dict)
    samples: list[pl.DataFrame] = field(default_factory=list)

    def measure(self, shift: WeightShift | None, keys: Sequence[Key]) -> None:
        """Everything at some amplitudes of one series."""
        ids = self.lab.token_ids(self.spec.model, self.bench.rows)
        name = keys[0][0] or self.spec.model
        self.lab.report(message=f"{name}: KL and perplexity of {len(ids)} prompts at {len(keys)} α.")
        found = effects(
            self.lm,
            ids,
            [(shift, alpha) for _, alpha in keys],
            unknown=unknown_id(self.lab, self.spec.model),
            should_stop=self.lab.should_stop,
        )
        for number, key in enumerate(keys):
            values = {"kl": found.kl[number], "nll": found.nll[number]}
            if shift is None:
                values |= self._behaviour(key)
            else:
                with shift.at(key[1]):
                    values |= self._behaviour(key)
            self.measured[key] = values
            self.done += 1
            self.lab.report(done=self.done, total=self.total, message=f"{name}, α = {key[1]:.3g} done.")

    def _behaviour(self, key: Key) -> dict[str, Float[np.ndarray, " n"]]:
        found = self._columns("wanted", ("agreement", "soft_refusal"), SCORES)[0]
        if self.bench.roles["answered"].any():
            said, table = self._columns("answered", ("text",), SAID)
            found |= said
            about = [pl.lit(key[0]).alias("series"), pl.lit(key[1], dtype=pl.Float64).alias("alpha")]
            self.samples.append(table.with_columns(about))
        return found

    def _columns(
        self, role: str, measures: Any, wanted: Sequence[str]
    ) -> tuple[dict[str, Float[np.ndarray, " n"]], pl.DataFrame]:
        """Figures of behaviour per prompt, NaN outside the role; and the table of answers."""
        spec, inside = self.spec, self.bench.roles[role]
        behaviour = Behaviour(
            model=spec.model,
            measures=measures,
            max_new_tokens=spec.max_new_tokens,
            lead=spec.lead,
            wording=spec.wording,
        )
        prompts = self.lab.prompts[self.bench.rows[inside]]
        ids = self.lab.token_ids(spec.model, self.bench.rows[inside])
        get = text_columns if measures == ("text",) else scored_columns
        columns: Columns = get(behaviour, self.lab, self.lm, prompts, ids, None, lambda done, total: None)
        found = {}
        for name in wanted:
            if name in columns:
                found[name] = np.full(inside.size, np.nan)
                found[name][inside] = np.array(columns[name], dtype=np.float64)
        kept = [name for name in ("id", "text", "language", "label", "answer") if name in prompts.columns]
        said = {name: columns[name] for name in ("generated", "ended", *wanted) if name in columns}
        return found, prompts.select(kept).with_columns(
            pl.Series(name, values).fill_nan(None) if name in wanted else pl.Series(name, values)
            for name, values in said.items()
        )


def _total(spec: WeightSteering) -> int:
    """Conditions of a run, those of equal KL included."""
    return 1 + len(spec.series()) * (len(spec.alphas) + 1)


def _facts(name: str, deltas: Sequence[WeightDelta]) -> dict[str, Any]:
    """What a difference is, for captions."""
    ranks = [delta.rank for delta in deltas]
    return {
        "name": name,
        "tensors": len(deltas),
        "norm": float(np.sqrt(sum(delta.norm**2 for delta in deltas))),
        "rank": max((rank for rank in ranks if rank is not None), default=None)
        if None not in ranks
        else None,
    }
