"""Tables of principal differences. No model needed, and no Streamlit here.

Every table is a function of the store, models `a` and `b` (b less a), a `site` of the stream's width, `which`
prompts: (language, category), each "all" or a value of that column, and `centred`: whether the mean
difference is taken off first. A place is a block (`layer`) and a `position`; `every`: every so-manieth block
is compared, the last one first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from app.frame import prompts as queries
from app.frame.call import Progress, kept, quiet
from app.frame.prompts import RESAMPLES, SEED
from app.principal_differences.fields import SHOWN
from app.principal_differences.slices import Where, slice_of
from engine.errors import AnalysisError
from engine.principal_differences import numbers
from engine.principal_differences.numbers import FEWEST, NOISY, Principal, Told
from store.layout import slug
from store.reader import Store

DRAWS, AGAIN = 99, 50
"""Unstructured differences at every place; resamples that components are found in again."""
ALIKE = 0.7
STEERED = 4
"""Leading directions that the steering page offers."""
"""Cosine from which on a direction stands for a component."""
AROUND = 40
"""Characters before and behind a token that its context has."""
PLACES = {
    "position": pl.String,
    "layer": pl.Int64,
    "state": pl.String,
    "units": pl.Int64,
    "prompts": pl.Int64,
    "count": pl.Int64,
    "limit": pl.Float64,
    "noise": pl.Float64,
    "whole": pl.Float64,
    "total": pl.Float64,
    "first": pl.Float64,
    "mean_share": pl.Float64,
}


def blocks(store: Store, a: str, b: str, every: int) -> list[int]:
    """Captured blocks of both models that are compared, ascending."""
    return sorted(set(store.layers(a)) & set(store.layers(b)))[::-1][::every][::-1]


@kept(most=8)
def scan(
    store: Store,
    a: str,
    b: str,
    site: str,
    which: Where,
    centred: bool,
    every: int,
    progress: Progress = quiet,
) -> pl.DataFrame:
    """Every block and position with one row a prompt: how many components exceed unstructured differences.

    Returns:
        Columns `PLACES`: `count`, at most `SHOWN`; `limit`, the mean square that the next one did not exceed;
        `noise`, the one that every one must exceed; `whole`, of the differences; `total`, about their
        centre; `first`, the share of the
        first component; `mean_share`, what the mean takes of the mean square.

    Raises:
        AnalysisError: no such place, or as `slice_of`.
    """
    positions = [name for name in store.positions() if store.position_kind(name) != "many"]
    places = [(position, layer) for position in positions for layer in blocks(store, a, b, every)]
    if not places:
        raise AnalysisError(
            f"{a} and {b} can't be compared block by block.",
            expected="a position of one row a prompt, and a block that was captured of both",
            given=f"blocks {store.layers(a)} and {store.layers(b)}",
            next_step="choose another pair.",
        )
    advance = progress("Comparing with unstructured differences…")
    rows: list[dict[str, Any]] = []
    told: dict[int, Told] = {}
    for done, (position, layer) in enumerate(places):
        one = slice_of(store, a, b, site, layer, position, which)
        row = {"position": position, "layer": layer, "state": one.state}
        row |= {"units": one.train.units, "prompts": len(one.train.rows), "noise": NOISY * one.noise}
        row["whole"] = float(np.vecdot(one.train.apart, one.train.apart).mean())
        if one.state == "read":
            known = numbers.principal(one.train.apart, centred, SHOWN)
            row |= {"total": known.total, "mean_share": known.mean_share}
            row |= {"first": float(known.shares[0]) if known.shares.size else 0.0}
            if one.train.units >= FEWEST and known.shares.size:
                held = one.train.apart.astype(np.float32)  # of all places at once
                told[done] = Told(held, one.train.unit, known, NOISY * one.noise)
        rows.append(row)
        advance(done + 1, 2 * len(places))
    with threadpool_limits(1):  # thousands of small decompositions, at which more threads wait for each other
        watched = partial(_half, advance, len(places))
        counts, limits = numbers.counted(list(told.values()), DRAWS, SEED, watched)
    for at, count, limit in zip(told, counts, limits, strict=True):
        rows[at] |= {"count": count, "limit": limit}
    advance(1, 1)
    return pl.DataFrame(rows, schema=PLACES)


def _half(advance: Callable[[int, int], None], places: int, done: int, total: int) -> None:
    """Progress of the second half."""
    advance(min(places + done * places // max(total, 1), 2 * places - 1), 2 * places)


def place_of(store: Store, scanned: dict[str, Any], layer: int, position: str) -> dict[str, Any]:
    """The row of a place in a scan, or of the nearest block that was compared."""
    table = scan(store, **scanned).filter(position=position)
    near = (pl.col("layer") - layer).abs()
    return table.sort(near, "layer").row(0, named=True)


@kept(most=32)
def found(
    store: Store, a: str, b: str, site: str, layer: int, position: str, which: Where, centred: bool
) -> Principal:
    """Components of the train prompts at a place, at most `SHOWN` directions."""
    one = slice_of(store, a, b, site, layer, position, which)
    return numbers.principal(one.train.apart, centred, SHOWN)


@kept("Finding components again…", most=32)
def _again(
    store: Store, a: str, b: str, site: str, layer: int, position: str, which: Where, centred: bool
) -> np.ndarray:
    one = slice_of(store, a, b, site, layer, position, which)
    known = found(store, a, b, site, layer, position, which, centred)
    with threadpool_limits(1):
        return numbers.stability(one.train.apart, one.train.unit, known, AGAIN, SEED)


def components(
    store: Store,
    a: str,
    b: str,
    site: str,
    layer: int,
    position: str,
    which: Where,
    centred: bool,
    every: int,
) -> pl.DataFrame:
    """The leading components at a place.

    Returns:
        A row each: component (from 1), train and validation, its shares of the mean square about the train
        prompts' centre, with low and high (bootstrap over units; null of fewer than two); limit, the share
        that it must exceed; states, the share of a's own activations' component of this number;
        mean_cosine, with the mean difference; again, again_low: |cos| with what resamples find, median and
        lowest tenth; beyond.
    """
    where = (site, layer, position, which)
    one, known = slice_of(store, a, b, *where), found(store, a, b, *where, centred)
    row = place_of(
        store,
        {"a": a, "b": b, "site": site, "which": which, "centred": centred, "every": every},
        layer,
        position,
    )
    count = len(known.directions)
    other = None
    if np.unique(one.validation.unit).size > 1 and one.validation.apart.any():
        other = numbers.held_out(known, one.validation.apart, one.validation.unit, RESAMPLES, SEED)
    own = numbers.principal(one.base, centred, 1).shares
    again = _again(store, a, b, *where, centred)
    size = float(np.linalg.norm(known.mean)) or 1.0
    least = max(row["limit"] or 0.0, row["noise"])
    return pl.DataFrame(
        {
            "component": np.arange(1, count + 1),
            "train": known.shares[:count],
            "validation": None if other is None else other.estimate,
            "low": None if other is None else np.clip(other.low, 0.0, 1.0),
            "high": None if other is None else np.clip(other.high, 0.0, 1.0),
            "limit": np.full(count, least / known.total),
            "states": np.pad(own, (0, max(count - len(own), 0)))[:count],
            "mean_cosine": known.directions @ known.mean / size,
            "again": np.median(again, axis=0),
            "again_low": np.quantile(again, 0.1, axis=0),
            "beyond": np.arange(count) < (row["count"] or 0),
        },
        schema_overrides=dict.fromkeys(("validation", "low", "high"), pl.Float64),
    )


def prompts(
    store: Store,
    a: str,
    b: str,
    site: str,
    layer: int,
    position: str,
    which: Where,
    centred: bool,
    component: int,
    ends: int,
) -> pl.DataFrame:
    """The prompts at both ends of a component, the furthest up first.

    Returns:
        prompt (number), id, split, score (in root mean squares of the train prompts), token, context: the
        token at the position among its neighbours, both null where the store doesn't say.
    """
    where = (site, layer, position, which)
    one, known = slice_of(store, a, b, *where), found(store, a, b, *where, centred)
    parts = (one.train, one.validation)
    score = np.concatenate([known.scores(part.apart)[:, component - 1] for part in parts])
    score = score / np.sqrt(known.square[component - 1])
    rows = np.concatenate([part.rows for part in parts])
    order = np.argsort(-score, kind="stable")
    shown = order if len(order) <= 2 * ends else np.concatenate([order[:ends], order[-ends:]])
    said = [_context(store, b, position, int(row)) for row in rows[shown]]
    ids = (
        store.prompts["id"] if "id" in store.prompts.columns else pl.Series(map(str, range(store.n_prompts)))
    )
    return pl.DataFrame(
        {
            "prompt": rows[shown],
            "id": ids.gather(rows[shown]),
            "split": store.prompts["split"].gather(rows[shown]).cast(pl.String),
            "score": score[shown],
            "token": pl.Series([token for token, _ in said], dtype=pl.String),
            "context": pl.Series([context for _, context in said], dtype=pl.String),
        }
    )


def _context(store: Store, model: str, position: str, row: int) -> tuple[str | None, str | None]:
    """The token at a position, and it between ▸ and ◂ amid what is around it; of a mean the whole span."""
    names = f"tokens-{slug(model)}", f"positions-{slug(model)}"
    if not set(names) <= set(store.table_names()):
        return None, None
    held, spots = (store.table(name) for name in names)
    if not {"rendered", "offsets"} <= set(held.columns) or position not in spots.columns:
        return None, None
    tokens, spans = spots[position][row], held["offsets"][row]
    text = str(held["rendered"][row])
    if tokens is None or not len(tokens):
        return None, None
    start, stop = int(spans[int(tokens[0])][0]), int(spans[int(tokens[-1])][1])
    before, behind = text[max(start - AROUND, 0) : start], text[stop : stop + AROUND]
    return text[start:stop], f"{before}▸{text[start:stop]}◂{behind}"


@kept("Reading through the unembedding…", most=64)
def tokens(
    store: Store,
    a: str,
    b: str,
    site: str,
    layer: int,
    position: str,
    which: Where,
    centred: bool,
    component: int,
    through: str,
    ends: int,
) -> pl.DataFrame:
    """Tokens whose logit one root mean square along a component moves most, on either side.

    The direction times the final norm's gain through the unembedding of the model `through`, both as stored,
    over the root mean square of a's coordinates at the place: the logit lens with the norm's length held.

    Returns:
        token_id, text (null where the store doesn't know it), side, value, from the mean of all tokens;
        reach: what unrelated directions reach at their foremost token; beyond.
    """
    where = (site, layer, position, which)
    one, known = slice_of(store, a, b, *where), found(store, a, b, *where, centred)
    folder = f"weights/{slug(through)}"
    unembedding = store.array(f"{folder}/unembedding")
    gain = store.array(f"{folder}/final_norm_gain").astype(np.float64)
    unembedding = (unembedding - unembedding.mean(axis=0)) * gain.astype(np.float32)
    direction = known.directions[component - 1]
    size = float(np.sqrt(known.square[component - 1])) / (one.scale or 1.0)
    value = size * (unembedding @ direction.astype(np.float32)).astype(np.float64)
    reach = size * numbers.reach(unembedding, direction)
    order = np.argsort(-value, kind="stable")
    shown = np.concatenate([order[:ends], order[-ends:]])
    return pl.DataFrame(
        {
            "token_id": shown,
            "text": _texts(store, through, shown),
            "side": np.where(value[shown] > 0, "promoted", "suppressed"),
            "value": value[shown],
            "reach": reach,
            "beyond": np.abs(value[shown]) > reach,
        }
    )


def _texts(store: Store, model: str, ids: np.ndarray) -> pl.Series:
    """Texts of tokens, null where the store doesn't keep them."""
    nothing = pl.Series([None] * len(ids), dtype=pl.String)
    for name in (f"token-texts-{slug(model)}", f"vocabulary-{slug(model)}"):
        if name in store.table_names():
            held = store.table(name).select("token_id", "text")
            asked = pl.DataFrame({"token_id": ids}, schema={"token_id": held["token_id"].dtype})
            return asked.join(held, on="token_id", how="left", maintain_order="left")["text"]
    return nothing


def readable(store: Store, model: str) -> bool:
    """Whether the store holds a model's unembedding."""
    names = set(store.array_names())
    return {f"weights/{slug(model)}/{part}" for part in ("unembedding", "final_norm_gain")} <= names


def steered(
    store: Store,
    a: str,
    b: str,
    site: str,
    layer: int,
    position: str,
    which: Where,
    centred: bool,
    component: int,
) -> tuple[int, float]:
    """The leading direction of the train prompts' differences as they are, from 1, that is most alike a
    component, and |cos|; (0, 0) where none of those that can be steered by has a cosine of `ALIKE`, or where
    these are not all train prompts, by which steering goes."""
    everything = ("all", "all")
    rows = slice_of(store, a, b, site, layer, position, everything).train.rows
    if len(rows) < queries.rows(store, ("train", *everything)).size:
        return 0, 0.0
    direction = found(store, a, b, site, layer, position, which, centred).directions[component - 1]
    bare = found(store, a, b, site, layer, position, everything, False).directions[:STEERED]
    cosines = np.abs(bare @ direction)
    best = int(np.argmax(cosines))
    return (best + 1, float(cosines[best])) if cosines[best] >= ALIKE else (0, 0.0)
