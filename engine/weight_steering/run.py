"""Runs weight steering: every difference over its α, then all of them at amplitudes of equal KL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab, resampling_groups, train_rows
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.lab.unknown import tell_unknown, unknown_id
from engine.passes.patch_engine import SELF_LIMIT
from engine.rank.numbers import equal_kl_amplitude
from engine.weight_steering.chosen import chosen, limited
from engine.weight_steering.effects import scored_tokens
from engine.weight_steering.measure import Work
from engine.weight_steering.report import UNSTEERED, Bench, Key, against_first, curves, prompt_table
from engine.weight_steering.spec import WeightSteering
from engine.weight_steering.vocabulary import refitted, tell_unshared
from engine.weights.deltas import WeightDelta, difference, random_like
from engine.weights.steer import WeightShift

HELD = 1 << 28
"""Bytes of differences that are put on together; a larger one by itself."""


def run(spec: WeightSteering, lab: Lab) -> ExperimentResult:
    """Runs weight steering on a lab's train and validation prompts.

    Raises:
        PatchError, ModelError, StoreError: the experiment, a model or a difference. JobError: cancelled.
    """
    spec.wording.check()
    for name in spec.models():
        lab.sizes(name)
    bench = prepare(spec, lab)
    work = Work(spec, lab, lab.model(spec.model), bench, _total(spec))
    facts, together, held = [], list[tuple[str, WeightShift]](), 0
    for name in spec.series():
        deltas = list(delta_of(spec, lab, name))
        facts.append(_facts(name, deltas))
        held += _bytes(deltas)
        together.append((name, WeightShift(work.lm, deltas)))
        del deltas
        if held > HELD or name == spec.series()[-1]:
            work.measure([(own, shift, alpha) for own, shift in together for alpha in spec.alphas])
        if held > HELD:
            together, held = [], 0
    level, at = equal_kl(spec, work)
    more = {name: a for name, a in at.items() if a is not None and (name, a) not in work.measured}
    for name in more.keys() - dict(together):
        work.measure([(name, WeightShift(work.lm, delta_of(spec, lab, name)), more[name])])
    if some := [(name, shift, more[name]) for name, shift in together if name in more]:
        work.measure(some)
    keys: list[Key] = [UNSTEERED, *((name, alpha) for name in spec.series() for alpha in spec.alphas)]
    work.in_order([*keys, *at.items()])
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
    parts = chosen(spec, lab.prompts)
    rows = np.unique(np.concatenate(list(parts.values())))
    roles = {
        role: np.isin(rows, np.concatenate([parts[role, split] for split in ("train", "validation")]))
        for role in ("wanted", "neutral")
    }
    groups = resampling_groups(lab.prompts[rows])
    units = resampling_units(lab.prompts[rows])
    asked = np.flatnonzero(np.isin(rows, parts["wanted", "validation"]))
    answered = limited(asked, groups, spec.answers) if spec.answers else asked[:0]
    roles["answered"] = np.isin(np.arange(rows.size), answered)
    ids = lab.token_ids(spec.model, rows)
    tell_unknown(lab, spec.model, ids)
    tell_unshared(lab, spec.model, [lab.first, *spec.models()], ids)
    tokens = scored_tokens(ids, unknown_id(lab, spec.model))
    return Bench(spec, rows, roles, np.isin(rows, train_rows(lab.prompts)), units, tokens)


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


def equal_kl(spec: WeightSteering, work: Work) -> tuple[float | None, dict[str, float | None]]:
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


def _bytes(deltas: Sequence[WeightDelta]) -> int:
    """What a difference holds while it is put on."""
    sides = [side for delta in deltas for side in (delta.left, delta.right, delta.dense)]
    return sum(side.nbytes for side in sides if side is not None)


def _total(spec: WeightSteering) -> int:
    """Conditions of a run, those of equal KL included."""
    return len(spec.series()) * (len(spec.alphas) + 1)


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
