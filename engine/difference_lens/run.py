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
from engine.difference_lens.texts import NEUTRAL
from engine.errors import JobError, PatchError
from engine.lab.experiment import ExperimentResult, Lab, chosen_rows, resampling_groups
from engine.lab.noise import measured
from engine.models.loading import LoadedModel
from engine.models.sites import Site, record
from engine.passes.capture import forward_hidden
from engine.patching.tables import token_text
from engine.stats.resampling import unit_index
from engine.stats.rounding_error import BITS, rounding_sd, row_error

MANY = 20
"""Categories from which on whole categories are the unit by themselves."""
HALVES = 10
"""Random halves of the units."""
TEXTS = 32
"""Texts in a batch."""


@dataclass(frozen=True)
class Streams:
    """Both models' states at one block and position, (n, d) each, and the dtype that rounded them, or ""."""

    position: str
    layer: int
    target: np.ndarray
    source: np.ndarray
    kept: str


@dataclass(frozen=True)
class Read:
    """One place that was read, and what its line in the table says beside the findings."""

    position: str
    layer: int
    place: Place | None
    noise: float
    facts: dict[str, Any]


def run(spec: DifferenceLens, lab: Lab) -> ExperimentResult:
    """Reads every block and position.

    Returns:
        Tables: "table", a row for each position, block and token that is shown: `side`, `mean` of its logit,
        `low` and `high` at once for all tokens and places, `beyond` (chance and rounding). "places", a row
        for each position and block: `state` ("read", "equal" in both models, or "rounding"), how many tokens
        are `beyond`, how many of them also exceed `random`, what 95 % of random directions of this length
        reach at their foremost token; `largest` |mean|, `halves`, the same of halves of the source's prompts,
        `length` of the mean difference ÷ that of a state, `noise`, the share of a state that is rounding.

    Raises:
        PatchError: models of other sizes; no such position; texts that are too short or read differently.
        JobError: cancelled between places.
    """
    _alike(spec, lab)
    prompts, unit, name = _units(spec, lab)
    lab.report(message=f"The readout of {spec.source}")
    readout = Readout.of(lab.model(spec.source))
    count = int(unit.max()) + 1
    draws = Draws.of(
        numbers.flips(count, spec.draws, spec.seed),
        numbers.resamples(count, spec.draws, spec.seed),
        readout.gain.device,
    )
    random = readout.random(spec.seed)
    blocks = _blocks(spec, lab)
    streams = _prompts(spec, lab, prompts, blocks) if spec.over == "prompts" else _texts(spec, lab, blocks)
    found: list[Read] = []
    total = len(blocks) * (len(spec.positions) or spec.tokens)
    for number, one in enumerate(streams):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        lab.report(done=number, total=total, message=f"Block {one.layer}, {one.position}")
        noise = _noise(spec, lab, one)
        found.append(read(spec, readout, one, noise, unit, draws, random))
    held = limits(spec, found, count)
    tables = tables_of(spec, lab.tokenizer(spec.source), readout, found, held)
    summary = {
        "positions": list(dict.fromkeys(one.position for one in found)),
        "layers": blocks,
        "n": len(unit),
        "units": count,
        "unit": name,
        "vocab": len(readout.rows),
        "up": held.up if np.isfinite(held.up) else None,
        "down": held.down if np.isfinite(held.down) else None,
        "rounding": measured(lab, spec.models()),
        "notes": list(dict.fromkeys(lab.notes)),
    }
    return ExperimentResult(summary, tables)


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


def _units(spec: DifferenceLens, lab: Lab) -> tuple[np.ndarray, np.ndarray, str]:
    """Rows of the prompts (none of texts), the unit of each, 0 … G − 1, and what a unit is called."""
    if spec.over == "texts":
        return np.zeros(0, dtype=np.int64), np.arange(len(_ids(spec, lab))), "text"
    rows = chosen_rows(lab.prompts, spec.split, spec.where)
    chosen = lab.prompts[rows]
    own = resampling_groups(chosen)
    name = "pair" if np.unique(own).size < len(own) else "prompt"
    if "category" in chosen.columns and spec.unit != "prompt":
        kinds = chosen["category"].cast(pl.String).to_list()
        labels = [
            f"pair {pair}" if kind is None else f"kind {kind}" for kind, pair in zip(kinds, own, strict=True)
        ]
        if spec.unit == "category" or len(set(labels)) >= MANY:
            return rows, unit_index(len(rows), np.array(labels)), "category"
    elif spec.unit == "category":
        raise PatchError(
            "The prompts have no categories whose signs could be flipped.",
            expected="a column 'category'",
            given=", ".join(chosen.columns),
            next_step="take prompts or pairs as the unit.",
        )
    return rows, unit_index(len(rows), own), name


def _prompts(spec: DifferenceLens, lab: Lab, rows: np.ndarray, blocks: Sequence[int]) -> Iterator[Streams]:
    for position in spec.positions:
        for layer in blocks:
            site = Site("resid_post", layer)
            ends = [lab.activations(model, site, position, rows) for model in spec.models()]
            said = [lab.origin(model, site, position).removeprefix("stored ") for model in spec.models()]
            kept = min((name for name in said if name in BITS), key=BITS.__getitem__, default="")
            yield Streams(position, layer, ends[0], ends[1], kept)


def _ids(spec: DifferenceLens, lab: Lab) -> list[list[int]]:
    """The first tokens of every text that is long enough, the same in both models."""
    texts = spec.texts or NEUTRAL
    both = [[lab.typed(model, text, raw=True) for text in texts] for model in spec.models()]
    if both[0] != both[1]:
        raise PatchError(
            "The two models read these texts as different tokens.",
            expected="the same token ids in both",
            given=f"{sum(a != b for a, b in zip(*both, strict=True))} of {len(texts)} texts that differ",
            next_step="choose two models of one tokenizer.",
        )
    long = [ids[: spec.tokens] for ids in both[0] if len(ids) >= spec.tokens]
    if len(long) < 2:
        raise PatchError(
            "The texts are too short.",
            expected=f"at least 2 texts of {spec.tokens} tokens",
            given=f"{len(long)} of {len(texts)}",
            next_step="read fewer tokens, or longer texts.",
        )
    return long


def _texts(spec: DifferenceLens, lab: Lab, blocks: Sequence[int]) -> Iterator[Streams]:
    """First tokens only: no later one can be seen by them."""
    ids = _ids(spec, lab)
    ends = [_states(lab, lab.model(model), ids, blocks) for model in spec.models()]
    for token in range(spec.tokens):
        for layer in blocks:
            yield Streams(f"token {token}", layer, ends[0][layer][:, token], ends[1][layer][:, token], "")


def _states(
    lab: Lab, lm: LoadedModel, ids: Sequence[Sequence[int]], blocks: Sequence[int]
) -> dict[int, np.ndarray]:
    """Behind each block, float32 (texts, tokens, d)."""
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in blocks}
    for at in range(0, len(ids), TEXTS):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        with lm.lock, record(lm.taps, ("resid_post",), blocks) as seen:
            forward_hidden(lm, ids[at : at + TEXTS])
        for layer in blocks:
            found[layer].append(seen["resid_post", layer].float().cpu().numpy())
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def read(
    spec: DifferenceLens,
    readout: Readout,
    one: Streams,
    noise: float,
    unit: np.ndarray,
    draws: Draws,
    random: np.ndarray,
) -> Read:
    """One place, unless the streams are equal there, or differ by no more than rounding.

    Args:
        noise: relative size of what rounding does to a difference. unit: 0 … G − 1 of each row. random: the
            largest |logit| of random directions of length 1.
    """
    if np.array_equal(one.target, one.source):
        return Read(one.position, one.layer, None, noise, {"state": "equal", "length": 0.0})
    rows = differences(readout, one.target, one.source, spec.reading)
    width = rows.shape[1]
    gain = readout.gain.cpu().double().numpy()
    bare = np.divide(rows, gain, out=np.zeros_like(rows), where=np.abs(gain) > 1e-6 * np.abs(gain).max())
    length = float(np.linalg.norm(bare.mean(axis=0)))
    facts = {"length": length / np.sqrt(width), "state": "read"}
    if np.sqrt(np.square(bare).sum(axis=1).mean()) <= noise * np.sqrt(width):
        return Read(one.position, one.layer, None, noise, facts | {"state": "rounding"})
    place = Place.of(readout, numbers.sums(rows, unit), len(rows), draws)
    facts["random"] = float(np.quantile(random, 0.95)) * length
    facts["halves"] = _halves(readout, one.source, unit, spec.seed)
    return Read(one.position, one.layer, place, noise, facts)


def _noise(spec: DifferenceLens, lab: Lab, one: Streams) -> float:
    """Relative size of what rounding does to the difference: of computing either state, of keeping it."""
    squares = 0.0
    for model, state in zip(spec.models(), (one.target, one.source), strict=True):
        sites = (lab.rounding(model) or {}).get("sites", {}).get("resid", ())
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


def limits(spec: DifferenceLens, found: Sequence[Read], units: int) -> numbers.Limits:
    """From what every place gave in each draw; nothing was reached where models are equal."""
    places = [one.place for one in found if one.place is not None]
    none = [np.zeros(spec.draws)]
    shares, lows, highs = (
        [np.asarray(getattr(place, name)) for place in places] or none for name in ("share", "low", "high")
    )
    return numbers.limits(shares, lows, highs, units, spec.level)


def tables_of(
    spec: DifferenceLens, tokenizer: Any, readout: Readout, found: Sequence[Read], held: numbers.Limits
) -> dict[str, pl.DataFrame]:
    """What is kept of every place; see `run`."""
    shown: list[dict[str, Any]] = []
    places = []
    for one in found:
        facts: dict[str, Any] = {
            "position": one.position,
            "layer": one.layer,
            "noise": one.noise,
            **one.facts,
        }
        if one.place is not None:
            place = one.place
            told = numbers.beyond(place.mean, place.se, held, numbers.NOISY * one.noise * readout.reach)
            size = np.abs(place.mean)
            facts |= {
                "beyond": int(told.sum()),
                "outstanding": int((told & (size > facts["random"])).sum()),
                "largest": float(size.max()),
            }
            sides = zip(("promoted", "suppressed"), numbers.foremost(place.mean, told, spec.top), strict=True)
            shown += [
                _row(one, side, int(token), rank, held, bool(told[token]), tokenizer)
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
    known = np.isfinite(held.up) and np.isfinite(held.down)
    return {
        "position": one.position,
        "layer": one.layer,
        "side": side,
        "rank": rank,
        "token_id": token,
        "text": token_text(tokenizer, token),
        "mean": mean,
        "low": mean - held.up * se if known else None,
        "high": mean - held.down * se if known else None,
        "beyond": told,
    }
