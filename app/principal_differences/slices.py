"""Differences of two models' stored activations at one place, train and validation prompts apart."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from app.frame import prompts as queries
from app.frame.call import kept
from app.frame.store_rounding import dtype_of, relative_noise
from engine.difference_lens.units import told_apart
from engine.errors import AnalysisError
from engine.principal_differences.numbers import NOISY
from engine.similarity.sampling import sample_prompts
from engine.stats.resampling import unit_index
from engine.stats.rounding_error import rounding_sd
from store.layout import slug
from store.reader import Store

SITES = ("resid_post", "resid_pre", "attn_out", "mlp_out")
"""Sites of the stream's width."""
MOST = 256
"""Prompts of a split that are looked at, at most: a random sample of whole pairs of more."""
LEAST = 8
Where = tuple[str, str]
"""(language, category) of the prompts, each "all" or a value of that column."""


@dataclass(frozen=True)
class Part:
    """Differences of one split at a place.

    Attributes:
        rows: (n,) prompt numbers, of those that begin alike up to here the first one. apart: (n, d) B less A.
        unit: (n,) 0 … G − 1.
    """

    rows: np.ndarray
    apart: np.ndarray
    unit: np.ndarray

    @property
    def units(self) -> int:
        """How many there are."""
        return int(self.unit.max()) + 1


@dataclass(frozen=True)
class Slice:
    """Differences at a place.

    Attributes:
        noise: the mean square of what rounding does to a difference, of train prompts. scale: root mean
            square of A's coordinates there. base: (n, d) A's activations of the train prompts.
    """

    train: Part
    validation: Part
    noise: float
    scale: float
    base: np.ndarray

    @property
    def state(self) -> str:
        """ "read", or why nothing is: "equal" in both models, "rounding", or "alike": one prompt so far."""
        if not self.train.apart.any():
            return "equal"
        if len(self.train.rows) < 2 or self.train.units < 2:
            return "alike"
        whole = float(np.vecdot(self.train.apart, self.train.apart).mean())
        return "rounding" if whole <= NOISY * self.noise else "read"


@kept(most=64)
def members(
    store: Store, a: str, b: str, position: str, which: Where
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Prompt numbers and units of train, and of validation, of different beginnings each.

    A validation prompt that begins like a train prompt has its very state, and is left out.

    Raises:
        AnalysisError: the study doesn't split its prompts, or train is too small.
    """
    has = queries.values(store, "split")
    if not {"train", "validation"} <= set(has):
        raise AnalysisError(
            "Components are found on train and judged on validation prompts; these have no such splits.",
            expected="splits train and validation",
            given=", ".join(has) or "no split column",
            next_step="set `validation` under [prompts] in the study file and run precompute.py again.",
        )
    train = _sampled(store, ("train", *which), LEAST)
    begun = _beginnings(store, a, b, position, train)
    validation = _sampled(store, ("validation", *which), 0)
    others, known = _beginnings(store, a, b, position, validation), set(begun)
    new = np.array([at for at, beginning in enumerate(others) if beginning not in known], dtype=np.int64)
    return (
        _told_apart(store, train, begun),
        _told_apart(store, validation[new], [others[at] for at in new]),
    )


def _sampled(store: Store, which: queries.Filter, least: int) -> np.ndarray:
    found = queries.require(queries.rows(store, which), least)
    return sample_prompts(store.prompts, found, MOST, queries.sampling(store)[1]) if found.size else found


def _told_apart(store: Store, rows: np.ndarray, begun: list[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    if not rows.size:
        return rows, np.empty(0, dtype=np.int64)
    first, own = told_apart(unit_index(len(rows), queries.units(store, rows)), begun)
    return rows[first], own


def _beginnings(store: Store, a: str, b: str, position: str, rows: np.ndarray) -> list[Hashable]:
    """What each prompt's state depends on, as far as the store says: its tokens up to there in both."""
    found: list[list[Hashable]] = []
    for model in (a, b):
        names = f"tokens-{slug(model)}", f"positions-{slug(model)}"
        if not set(names) <= set(store.table_names()):
            return list(rows.tolist())
        ids = store.table(names[0])["token_ids"].gather(rows).to_list()
        held = store.table(names[1])
        places = held[position].gather(rows).to_list() if position in held.columns else [[-1]] * len(rows)
        last = [
            place[0] if place is not None and len(place) == 1 and place[0] >= 0 else len(own)
            for place, own in zip(places, ids, strict=True)
        ]
        found.append([tuple(own[: end + 1]) for own, end in zip(ids, last, strict=True)])
    return list(zip(*found, strict=True))


@kept(most=6)
def slice_of(store: Store, a: str, b: str, site: str, layer: int, position: str, which: Where) -> Slice:
    """B less A at a place.

    Raises:
        AnalysisError: models of other widths, too few prompts, or activations that are not finite.
    """
    widths = [int(store.model_info(model)["d"]) for model in (a, b)]
    if widths[0] != widths[1]:
        raise AnalysisError(
            "The streams of the two models have no difference: their width is not the same.",
            expected=f"the same width in {b} and {a}",
            given=f"{widths[1]} and {widths[0]}",
            next_step="choose a base and its fine-tune.",
        )
    parts: list[Part] = []
    held: list[list[np.ndarray]] = []
    for rows, unit in members(store, a, b, position, which):
        ends = [
            store.activations(model, site, layer, position, rows=rows).astype(np.float64) for model in (a, b)
        ]
        if not all(np.isfinite(end).all() for end in ends):
            raise AnalysisError(
                "Some activations here are not numbers.",
                expected=f"finite {site} of block {layer} at {position}",
                given="NaN or infinity",
            )
        parts.append(Part(rows, ends[1] - ends[0], unit))
        held.append(ends)
    noise = sum(_noise(store, model, site, layer, end) for model, end in zip((a, b), held[0], strict=True))
    train, validation = parts
    return Slice(train, validation, float(noise), float(np.sqrt(np.square(held[0][0]).mean())), held[0][0])


def _noise(store: Store, model: str, site: str, layer: int, states: np.ndarray) -> float:
    """Mean square of what storing and computing round in a model's states."""
    sd = rounding_sd(states, dtype_of(store, model))
    computed = relative_noise(store, model, site, layer) ** 2 * np.vecdot(states, states)
    return float(np.maximum(np.vecdot(sd, sd), computed).mean())
