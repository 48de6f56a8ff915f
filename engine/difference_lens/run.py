"""Runs a difference lens: both streams, their differences through the source's readout, place by place.

Diffing by mean activation differences, on narrow fine-tunes: Minder et al. 2025, "Narrow finetuning leaves
clearly readable traces in activation differences". The readout is the logit lens (nostalgebraist 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from engine.difference_lens import numbers
from engine.difference_lens.scan import Draws, Place, Readout, differences
from engine.difference_lens.spec import DifferenceLens
from engine.difference_lens.streams import Streams, first_tokens, of_prompts, of_texts
from engine.difference_lens.units import opened_by, units_of
from engine.errors import JobError, PatchError
from engine.lab.experiment import ExperimentResult, Lab, chosen_rows
from engine.lab.noise import measured
from engine.patching.tables import token_text
from engine.stats.rounding_error import rounding_sd, row_error

HALVES = 10
"""Random halves of the units."""
MOST = 2 * 2**30
"""Bytes of means, spreads and states of plain texts."""


@dataclass(frozen=True)
class Read:
    """One place that was read, and what its line in the table says beside the findings."""

    position: str
    layer: int
    units: int
    place: Place | None
    noise: float
    facts: dict[str, Any]


def run(spec: DifferenceLens, lab: Lab) -> ExperimentResult:
    """Reads every block and position.

    Returns:
        Tables: "table", a row for each position, block and token that is shown: `side`, `mean` of its logit,
        `low` and `high` at once for all tokens and places, `beyond` (chance and rounding). "places", a row
        for each position and block: `state` ("read", "equal" in both models, "rounding", or "alike", where
        all prompts or texts are the same so far), `units` that differ there, how many tokens exceed `chance`,
        are `beyond` rounding too, and also exceed `random`, what 95 % of random directions of this length
        reach at their foremost token; `largest` |mean|, `halves`, the same of halves of the source's prompts,
        `length` of the mean difference ÷ that of a state, `noise`, the share of a state that is rounding (of
        storing alone where the models' own was not `measured`).

    Raises:
        PatchError: models of other sizes; no such position; texts that are too short or read differently;
            more places than memory should hold.
        JobError: cancelled between places.
    """
    _alike(spec, lab)
    blocks = _blocks(spec, lab)
    unit, name, streams = _rows(spec, lab, blocks)
    lab.report(message=f"The readout of {spec.source}")
    readout = Readout.of(lab.model(spec.source))
    total = len(blocks) * (len(spec.positions) or spec.tokens)
    fits(spec, total, len(unit) if spec.over == "texts" else 0, readout)
    draws = _draws(spec, int(unit.max()) + 1, readout)
    random = readout.random(spec.seed)
    found: list[Read] = []
    for number, one in enumerate(streams):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        lab.report(done=number, total=total, message=f"Block {one.layer}, {one.position}")
        found.append(read(spec, readout, one, _noise(spec, lab, one), draws, random))
    held, units = limits(spec, found), max(one.units for one in found)
    most = held.get(units, numbers.Limits.none(units))
    summary = {
        "positions": list(dict.fromkeys(one.position for one in found)),
        "layers": blocks,
        "n": len(unit),
        "units": units,
        "unit": name,
        "vocab": len(readout.rows),
        "up": most.up if most.known else None,
        "down": most.down if most.known else None,
        "rounding": measured(lab, spec.models()),
        "measured": all(_resid(lab, model) for model in spec.models()),
        "notes": list(dict.fromkeys(lab.notes)),
    }
    return ExperimentResult(summary, tables_of(spec, lab.tokenizer(spec.source), readout, found, held))


def _rows(spec: DifferenceLens, lab: Lab, blocks: Sequence[int]) -> tuple[np.ndarray, str, Iterator[Streams]]:
    """The unit of each prompt or text, 0 … G − 1, what a unit is called, and the states at every place."""
    if spec.over == "texts":
        ids = first_tokens(spec, lab)
        unit = opened_by(ids)
        return unit, "text", of_texts(spec, lab, ids, unit, blocks)
    rows = chosen_rows(lab.prompts, spec.split, spec.where)
    unit, name = units_of(spec.unit, lab.prompts[rows])
    return unit, name, of_prompts(spec, lab, rows, unit, blocks)


def _draws(spec: DifferenceLens, units: int, readout: Readout) -> Draws:
    flips, counts = (draw(units, spec.draws, spec.seed) for draw in (numbers.flips, numbers.resamples))
    return Draws.of(flips, counts, readout.gain.device)


def fits(spec: DifferenceLens, places: int, texts: int, readout: Readout) -> None:
    """Refuses what memory should not hold: mean and spread of every token, and the states of plain texts.

    Raises:
        PatchError: more than `MOST` bytes.
    """
    vocab, width = readout.rows.shape
    size = places * 4 * (2 * vocab + 2 * texts * width)
    if size > MOST:
        often = spec.stride * -(-size // MOST)
        raise PatchError(
            "So many places don't fit into memory at once.",
            expected=f"at most {MOST / 2**30:.0f} GiB of means and states",
            given=f"{places} blocks and positions of {vocab:,} tokens, {size / 2**30:.1f} GiB",
            next_step=f"read fewer blocks (stride = {often}), positions, tokens or texts.",
        )


def _alike(spec: DifferenceLens, lab: Lab) -> None:
    sizes = [lab.sizes(model) for model in spec.models()]
    for key, what in (("d", "width"), ("n_layers", "number of blocks")):
        if sizes[0][key] != sizes[1][key]:
            raise PatchError(
                f"The streams of the two models have no difference: their {what} is not the same.",
                expected=f"the same {what} in {spec.target} and {spec.source}",
                given=f"{sizes[0][key]} and {sizes[1][key]}",
                next_step="choose a base and its fine-tune.",
            )


def _blocks(spec: DifferenceLens, lab: Lab) -> list[int]:
    last = int(lab.sizes(spec.source)["n_layers"]) - 1
    return list(range(last, -1, -spec.stride))[::-1]


def read(
    spec: DifferenceLens,
    readout: Readout,
    one: Streams,
    noise: float,
    draws: Draws,
    random: np.ndarray,
) -> Read:
    """One place, unless the streams are equal there, differ by no more than rounding, or are one state.

    Args:
        noise: relative size of what rounding does to a difference. draws: of all units of the run. random:
            the largest |logit| of random directions of length 1.
    """

    def lost(state: str, length: float) -> Read:
        return Read(one.position, one.layer, one.units, None, noise, {"state": state, "length": length})

    if np.array_equal(one.target, one.source):
        return lost("equal", 0.0)
    rows = differences(readout, one.target, one.source, spec.reading)
    width = rows.shape[1]
    gain = readout.gain.cpu().double().numpy()
    bare = np.divide(rows, gain, out=np.zeros_like(rows), where=np.abs(gain) > 1e-6 * np.abs(gain).max())
    length = float(np.linalg.norm(bare.mean(axis=0)))
    if np.sqrt(np.square(bare).sum(axis=1).mean()) <= noise * np.sqrt(width):
        return lost("rounding", length / np.sqrt(width))
    if one.units < 2:
        return lost("alike", length / np.sqrt(width))
    here = draws.fewer(one.first, spec.seed)
    place = Place.of(readout, numbers.sums(rows, one.unit), len(rows), here)
    facts = {
        "state": "read",
        "length": length / np.sqrt(width),
        "random": float(np.quantile(random, 0.95)) * length,
        "halves": _halves(readout, one.source, one.unit, spec.seed),
    }
    return Read(one.position, one.layer, one.units, place, noise, facts)


def _resid(lab: Lab, model: str) -> Sequence[float]:
    """The measured rounding behind each block, from the embeddings on; nothing where it was not measured."""
    found: Sequence[float] = (lab.rounding(model) or {}).get("sites", {}).get("resid", ())
    return found


def _noise(spec: DifferenceLens, lab: Lab, one: Streams) -> float:
    """Relative size of what rounding does to the difference: of computing either state, of keeping it."""
    squares = 0.0
    for model, state in zip(spec.models(), (one.target, one.source), strict=True):
        sites = _resid(lab, model)
        computed = float(sites[one.layer + 1]) if one.layer + 1 < len(sites) else 0.0
        wide = state.astype(np.float64)
        stored = row_error(wide, rounding_sd(wide, one.kept)) if one.kept else 0.0
        squares += max(computed, float(np.nan_to_num(stored))) ** 2
    return float(np.sqrt(squares))


def _halves(readout: Readout, source: np.ndarray, unit: np.ndarray, seed: int) -> float:
    """The largest |logit| between random halves of the source's own prompts, on average."""
    with torch.no_grad():
        state = torch.as_tensor(source, dtype=torch.float32, device=readout.gain.device)
        normed = readout.norm(state).double().cpu().numpy()
    rng = np.random.default_rng([seed, 3])
    count = int(unit.max()) + 1
    apart = []
    for _ in range(HALVES):
        first = np.isin(unit, rng.permutation(count)[: count // 2])
        apart.append(normed[first].mean(axis=0) - normed[~first].mean(axis=0))
    rows = torch.as_tensor(np.array(apart), dtype=torch.float32, device=readout.gain.device)
    most = torch.stack([part.abs().amax(dim=1) for part in readout.logits(rows)]).amax(dim=0)
    return float(most.mean())


def limits(spec: DifferenceLens, found: Sequence[Read]) -> dict[int, numbers.Limits]:
    """By number of units, from what every place gave in each draw; an equal one gives nothing."""
    held = [(one.place, one.units) for one in found if one.place is not None]
    share, low, high = ([getattr(place, name) for place, _ in held] for name in ("share", "low", "high"))
    return numbers.limits(share, low, high, [units for _, units in held], spec.level)


def tables_of(
    spec: DifferenceLens,
    tokenizer: Any,
    readout: Readout,
    found: Sequence[Read],
    held: dict[int, numbers.Limits],
) -> dict[str, pl.DataFrame]:
    """What is kept of every place; see `run`."""
    shown: list[dict[str, Any]] = []
    places = []
    for one in found:
        facts: dict[str, Any] = {
            "position": one.position,
            "layer": one.layer,
            "units": one.units,
            "noise": one.noise,
            **one.facts,
        }
        if one.place is not None:
            mean, se = (part.astype(np.float64) for part in (one.place.mean, one.place.se))
            own = held.get(one.units, numbers.Limits.none(one.units))
            told = numbers.beyond(mean, se, own, numbers.NOISY * one.noise * readout.reach)
            size = np.abs(mean)
            facts |= {
                "chance": int(numbers.beyond(mean, se, own).sum()),
                "beyond": int(told.sum()),
                "outstanding": int((told & (size > facts["random"])).sum()),
                "largest": float(size.max()),
            }
            sides = zip(("promoted", "suppressed"), numbers.foremost(mean, told, spec.top), strict=True)
            shown += [
                _row(one, side, int(token), rank, own, bool(told[token]), tokenizer)
                for side, tokens in sides
                for rank, token in enumerate(tokens)
            ]
        places.append(facts)
    return {"table": pl.DataFrame(shown, schema=TOKENS), "places": pl.DataFrame(places, schema=PLACES)}


TOKENS = {
    "position": pl.String,
    "layer": pl.Int64,
    "side": pl.String,
    "rank": pl.Int64,
    "token_id": pl.Int64,
    "text": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "beyond": pl.Boolean,
}
PLACES = {
    "position": pl.String,
    "layer": pl.Int64,
    "state": pl.String,
    "units": pl.Int64,
    "chance": pl.Int64,
    "beyond": pl.Int64,
    "outstanding": pl.Int64,
    "largest": pl.Float64,
    "random": pl.Float64,
    "halves": pl.Float64,
    "length": pl.Float64,
    "noise": pl.Float64,
}


def _row(
    one: Read, side: str, token: int, rank: int, held: numbers.Limits, told: bool, tokenizer: Any
) -> dict[str, Any]:
    """One token that is shown. Without limits it has no interval."""
    assert one.place is not None
    mean, se = float(one.place.mean[token]), float(one.place.se[token])
    return {
        "position": one.position,
        "layer": one.layer,
        "side": side,
        "rank": rank,
        "token_id": token,
        "text": token_text(tokenizer, token),
        "mean": mean,
        "low": mean - held.up * se if held.known else None,
        "high": mean - held.down * se if held.known else None,
        "beyond": told,
    }
