"""Runs a patch map: one sweep a block and site, in which every token is patched alone.

The receiving prompt is captured once; each patched run resumes from it at the patched block and token, and
the unpatched run goes through the same products in the same batch (`engine.passes.patch_engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.noise import kl_floor, log_floor, measured
from engine.models.loading import LoadedModel
from engine.models.sites import Site, record
from engine.passes.capture import forward_hidden
from engine.passes.continuations import spelled
from engine.passes.patch_engine import JobCancelled, PatchEngine
from engine.patch_map import numbers
from engine.patch_map.align import Prompts
from engine.patch_map.spec import PatchMap
from engine.patching.run import self_check
from engine.patching.tables import token_text

__all__ = ["run"]

Held = dict[tuple[str, int], Tensor]
"""(site, block) -> (tokens, d)."""


def run(spec: PatchMap, lab: Lab) -> ExperimentResult:
    """Runs the map.

    Returns:
        Tables: "table", a row for each site, block and token: `kl` of the patched run from the receiving one,
        `log_p_change` of the receiving run's answer, `logit_difference` of it and the donor's,
        `recovery` of that difference (null where the runs don't differ in it), and `null_kl`,
        `null_recovery`: the largest that an unrelated prompt gives in the same cell. "nulls": a row for each
        site and unrelated prompt, the largest of its cells at the last `compared` tokens, which all of them
        have, of those before the very last token and of those at it.

    Raises:
        PatchError: prompts or models that don't fit each other (`Prompts.of`), answers that are no tokens.
        JobError: cancelled between batches.
    """
    prompts = Prompts.of(spec, lab)
    givers = _Givers.of(spec, lab, prompts)
    lm = lab.model(spec.target)
    receiving = _next(lm, prompts.ids)
    answers = _answers(spec, lab, receiving, givers.log_probs)
    lab.report(message=f"{prompts.count} tokens of {spec.prompt} in {lm.taps.n_layers} blocks")
    count = prompts.count
    engine = PatchEngine(lm, [prompts.ids] * count, prompts.tokens.tolist(), read_at="decision")
    swept = _Swept.of(spec, lab, engine, givers, answers)
    rounding = measured(lab, spec.models())
    ends = tuple(float(one[answers[0]] - one[answers[1]]) for one in (receiving, givers.log_probs))
    told_apart = numbers.apart(receiving, givers.log_probs) > max(numbers.LEAST_KL, kl_floor(rounding))
    made = _Cells(spec, swept, prompts, ends, log_floor(rounding), told_apart or spec.answers is not None)
    tokenizer = lab.tokenizer(spec.target)
    told = [token_text(tokenizer, token) for token in answers]
    summary = {
        "prompt": spec.prompt,
        "donor": spec.donor,
        "tokens": len(prompts.ids),
        "donor_tokens": len(prompts.donor_ids),
        "patched": count,
        "compared": prompts.compared,
        "n_layers": lm.taps.n_layers,
        "answers": told,
        "answer_ids": list(answers),
        "difference": {"receiving": ends[0], "donor": ends[1]},
        "defined": made.defined,
        "log_p": [float(receiving[token]) for token in answers],
        "n_nulls": len(prompts.null_rows),
        "floor": kl_floor(rounding),
        "recovery_floor": made.floor,
        "self_check": self_check(np.array([swept.self_kl]), engine, "every block and token").to_json(),
        "rounding": rounding,
        "notes": [*lab.notes, *prompts.notes()],
    }
    tables = {"table": made.table(tokenizer), "nulls": made.nulls(lab.prompts)}
    return ExperimentResult(summary, tables)


def _next(lm: LoadedModel, ids: Sequence[int]) -> np.ndarray:
    """Next-token log-probabilities behind a prompt, float64 (V,), of one plain pass."""
    with lm.lock, torch.inference_mode():
        logits = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False).logits
        found: np.ndarray = logits[0, -1].double().cpu().log_softmax(-1).numpy()
    return found


def _held(lm: LoadedModel, ids: Sequence[int], tokens: np.ndarray, sites: Sequence[str]) -> Held:
    """What a model holds at some tokens of a prompt, at every block, on the CPU in its own dtype."""
    at = torch.from_numpy(tokens)

    def kept(value: Tensor) -> Tensor:
        return value[0].index_select(0, at.to(value.device)).cpu()

    with lm.lock, record(lm.taps, sites, select=kept) as seen:
        forward_hidden(lm, [ids])
    return dict(seen)


@dataclass(frozen=True)
class _Givers:
    """Who gives: the donor first, then the unrelated prompts.

    `held`: of each what it holds; None where the donor is the receiving run itself, which the engine has.
    `log_probs`: the donor's next token, float64 (V,).
    """

    held: list[Held | None]
    log_probs: np.ndarray

    @classmethod
    def of(cls, spec: PatchMap, lab: Lab, prompts: Prompts) -> _Givers:
        lm = lab.model(spec.source)
        itself = spec.source == spec.target and prompts.row == prompts.donor_row
        held: list[Held | None] = [
            None if itself else _held(lm, prompts.donor_ids, prompts.donor_tokens, spec.sites)
        ]
        for number, ids in enumerate(prompts.null_ids):
            if lab.should_stop():
                raise JobCancelled("Cancelled while the prompts were read.", next_step="run it again.")
            lab.report(message=f"What {spec.source} holds of {number + 1} of {len(prompts.null_ids)} others")
            held.append(_held(lm, ids, prompts.null_tokens(number), spec.sites))
        return cls(held, _next(lm, prompts.donor_ids))

    def values(self, component: str, layer: int, own: Tensor) -> Tensor:
        """What is put in, float32 (givers, tokens, d): what tokens that a giver lacks hold stays (`own`)."""
        made = []
        for held in self.held:
            given = own[len(own) :] if held is None else held[component, layer].float()
            made.append(torch.cat([own[: len(own) - len(given)], given]))
        return torch.stack(made)

    def absent(self, count: int) -> np.ndarray:
        """Tokens that a giver lacks, (givers, tokens)."""
        sizes = [count if held is None else len(next(iter(held.values()))) for held in self.held]
        return np.arange(count) < count - np.array(sizes)[:, None]


def _answers(spec: PatchMap, lab: Lab, receiving: np.ndarray, donor: np.ndarray) -> tuple[int, int]:
    """Token ids of the two answers; a word counts with or without a space before it, as is likelier."""
    if len(receiving) != len(donor):
        raise PatchError(
            "The two models have vocabularies of different size.",
            expected="the same next tokens in both",
            given=f"{len(receiving)} and {len(donor)}",
        )
    if spec.answers is None:
        return numbers.other_answer(receiving, donor)
    tokenizer, found = lab.tokenizer(spec.target), []
    for word in spec.answers:
        made = [spelled(tokenizer, form) for form in (word, f" {word}")]
        single = [ids[0] for ids in made if ids is not None and len(ids) == 1]
        if not single:
            raise PatchError(
                f"The answer {word!r} is not one token.",
                expected="a word that the tokenizer writes as one token, with or without a space before it",
                given=" or ".join(f"{len(ids or ())} tokens" for ids in made),
                next_step="choose shorter answers, or leave them out: then the runs' own next tokens count.",
            )
        found.append(max(single, key=lambda token: max(receiving[token], donor[token])))
    if found[0] == found[1]:
        raise PatchError("The two answers are one token.", expected="two different ones", given=spec.answers)
    return found[0], found[1]


@dataclass(frozen=True)
class _Swept:
    """What all sweeps found, by site: arrays (givers, layers, tokens), the donor first.

    `kl`: nats. `change`: of the log-probabilities of the answers, (…, 2). `self_kl`: the largest |KL| of the
    own activation put back.
    """

    kl: dict[str, np.ndarray]
    change: dict[str, np.ndarray]
    self_kl: float

    @classmethod
    def of(
        cls, spec: PatchMap, lab: Lab, engine: PatchEngine, givers: _Givers, answers: tuple[int, int]
    ) -> _Swept:
        layers, size = range(engine.taps.n_layers), len(givers.held) * engine.n_prompts
        absent = givers.absent(engine.n_prompts)
        kl: dict[str, list[np.ndarray]] = {site: [] for site in spec.sites}
        change: dict[str, list[np.ndarray]] = {site: [] for site in spec.sites}
        worst = 0.0
        for number, (component, layer) in enumerate((s, one) for s in spec.sites for one in layers):
            site = Site(component, layer)
            own = engine.activations(site, lab.should_stop)
            values = givers.values(component, layer, own)
            found = engine.sweep(
                site,
                values,
                n_conditions=len(values),
                watch=answers,
                on_progress=_counted(lab, number * size, len(spec.sites) * len(layers) * size),
                should_stop=lab.should_stop,
            )
            assert found.watched is not None
            assert found.unpatched_watched is not None
            # what is put in is what was there: nothing changes, whatever products of another shape round
            equal = (values == own).all(dim=-1).numpy()
            nothing = np.where(absent, np.nan, 0.0)
            moved = found.watched.astype(np.float64) - found.unpatched_watched
            kl[component].append(np.where(equal, nothing, np.maximum(found.kl, 0.0)))
            change[component].append(np.where(equal[..., None], nothing[..., None], moved))
            worst = max(worst, float(np.abs(found.self_kl).max()))
        return cls(_stacked(kl), _stacked(change), worst)


def _stacked(grids: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Each site's blocks as the second axis."""
    return {site: np.stack(rows, axis=1) for site, rows in grids.items()}


def _counted(lab: Lab, done: int, total: int) -> Any:
    return lambda here, _of: lab.report(done=done + here, total=total)


@dataclass
class _Cells:
    """Tables of a map.

    `ends`: the logit difference of the receiving run and of the donor's. `noise`: what rounding does to one.
    `differ`: whether the two runs' answers are answers of their own.
    """

    spec: PatchMap
    swept: _Swept
    prompts: Prompts
    ends: tuple[float, ...]
    noise: float
    differ: bool
    recovered: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        receiving, donor = self.ends if self.differ else (0.0, 0.0)
        self.recovered = {
            site: numbers.recovery(receiving + moved[..., 0] - moved[..., 1], receiving, donor, self.noise)
            for site, moved in self.swept.change.items()
        }

    @property
    def defined(self) -> bool:
        """Whether the two runs differ in their answers by more than rounding."""
        return not any(np.isnan(found).all() for found in self.recovered.values())

    @property
    def floor(self) -> float | None:
        """What rounding does to a recovery; None where there is none."""
        return 2.0**0.5 * self.noise / abs(self.ends[1] - self.ends[0]) if self.defined else None

    def table(self, tokenizer: Any) -> pl.DataFrame:
        """A row a cell."""
        parts = [self._site(site, tokenizer) for site in self.spec.sites]
        return pl.concat(parts)

    def _site(self, site: str, tokenizer: Any) -> pl.DataFrame:
        kl, change, found = self.swept.kl[site], self.swept.change[site], self.recovered[site]
        layers, tokens = (grid.ravel() for grid in np.indices(kl.shape[1:]))
        own, given = self.prompts.tokens[tokens], self.prompts.donor_tokens[tokens]
        named = {"text": (self.prompts.ids, own), "donor_text": (self.prompts.donor_ids, given)}
        texts = {
            name: [token_text(tokenizer, ids[place]) for place in places]
            for name, (ids, places) in named.items()
        }
        columns: dict[str, Any] = {
            "site": [site] * layers.size,
            "layer": layers,
            "token": own,
            "donor_token": given,
            **texts,
            "kl": kl[0].ravel(),
            "log_p_change": change[0, ..., 0].ravel(),
            "logit_difference": (self.ends[0] + change[0, ..., 0] - change[0, ..., 1]).ravel(),
            "recovery": found[0].ravel(),
            "null_kl": _most(kl[1:]).ravel(),
            "null_recovery": _most(found[1:]).ravel(),
        }
        return pl.DataFrame(columns).with_columns(
            pl.col("recovery", "null_kl", "null_recovery").fill_nan(None)
        )

    def nulls(self, prompts: pl.DataFrame) -> pl.DataFrame:
        """A row for each site and unrelated prompt: its largest cells."""
        ids = prompts["id"].cast(pl.String)
        count, last = self.prompts.count, [self.prompts.count - 1]
        before = range(count - self.prompts.compared, count - 1)
        made: list[dict[str, Any]] = []
        for site in self.spec.sites:
            for number, row in enumerate(self.prompts.null_rows, start=1):
                cells: dict[str, Any] = {"site": site, "prompt": ids[row]}
                for name, values in (("kl", self.swept.kl[site]), ("recovery", self.recovered[site])):
                    for part, columns in (("", [*before, *last]), ("_before", before), ("_last", last)):
                        most = numbers.largest(values[number], columns)
                        cells[name + part] = None if most is None else most.value
                made.append(cells)
        figures = [f"{name}{part}" for name in ("kl", "recovery") for part in ("", "_before", "_last")]
        schema = {"site": pl.String, "prompt": pl.String, **dict.fromkeys(figures, pl.Float64)}
        return pl.DataFrame(made, schema=schema)


def _most(values: np.ndarray) -> np.ndarray:
    """The largest along the first axis; NaN where there is none."""
    return np.fmax.reduce(values, axis=0, initial=np.nan)
