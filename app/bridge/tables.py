"""The bridge from one language's coordinates in a subspace of a block to the other's.

Coordinates in every offered rank of a block are kept, so that another k only fits and permutes. A bridge is a
function of the store and of: a model, a site of the stream, a position, the `split` and `category` of the
problems ("all", or a value of that column), k, the block (`layer`), its `space`, `way` ("forth" from the
first language by name, or "back"), `method` ("ridge" or "minimum_norm"), whether there is an `intercept`, and
whether wrong pairs stay `within` categories. A space is Z of the heads, "blocks" where every head counts
alike, "kernels" by energy; or the id of a stored run of ARD-MMD, whose dimensions of smallest lengthscale it
is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from app.frame.call import kept
from app.frame.prompts import SEED
from app.geometry.tables import bases, languages, problem_rows, ranks
from engine.bridge import numbers as analysis
from engine.bridge.numbers import Bridge, Profile, fit_bridge
from store.reader import Store
from store.runs import RunLog

DRAWS, PROFILE_DRAWS = 199, 99
MOST = 1000
"""Most problems that a bridge is fitted on: a page's work and memory stay what 1000 need."""
HEADS = ("blocks", "kernels")

Coordinates = dict[int, tuple[np.ndarray, np.ndarray]]
Spaces = tuple[tuple[int, str], ...]
"""(block, space) of every block of a profile."""


def spoken(store: Store, way: str) -> tuple[str, str]:
    """(language the map starts from, language it leads to)."""
    pair = languages(store)
    assert pair is not None  # nothing is asked without
    return pair if way == "forth" else (pair[1], pair[0])


def unseen() -> None:
    """Making that nobody watches."""


@kept(most=96)
def coordinates(
    store: Store,
    model: str,
    site: str,
    position: str,
    split: str,
    category: str,
    layer: int,
    space: str,
    making: Callable[[], None] = unseen,
) -> Coordinates:
    """k → coordinates of the first and the second language at a block, each (n, k).

    Args:
        making: called, as they are not kept and have to be made.
    """
    making()
    one, two = (
        store.activations(model, site, layer, position, rows=rows)
        for rows in problem_rows(store, split, category, MOST)
    )
    if space in HEADS:
        return {k: (one @ basis, two @ basis) for k, basis in bases(store, model, space, layer).items()}
    fit = RunLog(str(store.path)).open(space).table.filter(draw=0)
    order = np.argsort(fit["log10_lengthscale"].to_numpy(), kind="stable")
    return {k: (one[:, order[:k]], two[:, order[:k]]) for k in ranks(store)}


def kinds(store: Store, split: str, category: str, within: bool) -> list[str] | None:
    """Category of each problem where pairs are permuted within categories, else None."""
    if not within:
        return None
    one, _ = problem_rows(store, split, category, MOST)
    return [str(kind) for kind in store.prompts["category"].gather(one).to_list()]


def several(store: Store, category: str) -> bool:
    """Whether the problems are of several categories; those without one are a category, too."""
    prompts = store.prompts
    return category == "all" and "category" in prompts.columns and prompts["category"].n_unique() > 1


@kept("Fitting and permuting pairs…", most=256)
def fitted(
    store: Store,
    model: str,
    site: str,
    position: str,
    split: str,
    category: str,
    k: int,
    layer: int,
    space: str,
    way: str,
    method: str,
    intercept: bool,
    within: bool,
) -> Bridge:
    """The bridge at a block."""
    one, two = coordinates(store, model, site, position, split, category, layer, space)[k]
    return fit_bridge(
        *((one, two) if way == "forth" else (two, one)),
        method=method,  # type: ignore[arg-type]
        center=intercept,
        groups=kinds(store, split, category, within),
        draws=DRAWS,
        seed=SEED,
    )


@kept("Fitting every block…", most=256)
def along(
    store: Store,
    model: str,
    site: str,
    position: str,
    split: str,
    category: str,
    k: int,
    spaces: Spaces,
    way: str,
    method: str,
    intercept: bool,
    within: bool,
) -> Profile:
    """Left-out R² of every block in its own space."""

    def places() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for layer, space in spaces:
            one, two = coordinates(store, model, site, position, split, category, layer, space)[k]
            yield (one, two) if way == "forth" else (two, one)

    return analysis.profile(
        places(),
        method=method,  # type: ignore[arg-type]
        center=intercept,
        groups=kinds(store, split, category, within),
        draws=PROFILE_DRAWS,
        seed=SEED,
    )


def scores(store: Store, **bridge: Any) -> pl.DataFrame:
    """R² of fitted and of left-out problems: name, value, null_low, null_high, p; arguments as `fitted`."""
    found = fitted(store, **bridge)
    low, high = np.quantile(found.null, [0.025, 0.975])
    loo = {"value": found.r2_loo, "null_low": low, "null_high": high, "p": found.p}
    rows = [
        {"name": "fitted problems", "value": found.r2_train},
        {"name": "left-out problems"} | loo,
        {"name": "left out, best rotation", "value": found.r2_procrustes},
    ]
    return pl.DataFrame(rows, schema=["name", "value", "null_low", "null_high", "p"])


def profile(store: Store, **bridge: Any) -> pl.DataFrame:
    """Left-out R² of every block: layer, value, null_low, null_high, p; arguments as `along`."""
    found = along(store, **bridge)
    ends = {"null_low": found.null_low, "null_high": found.null_high}
    layers = [layer for layer, _ in bridge["spaces"]]
    return pl.DataFrame({"layer": layers, "value": found.r2_loo} | ends | {"p": found.p})


def null(store: Store, **bridge: Any) -> pl.DataFrame:
    """Left-out R² of permuted pairs: r2; arguments as `fitted`."""
    return pl.DataFrame({"r2": fitted(store, **bridge).null})


def path(store: Store, **bridge: Any) -> pl.DataFrame:
    """Left-out R² over λ: penalty, r2; arguments as `fitted`."""
    found = fitted(store, **bridge)
    return pl.DataFrame({"penalty": found.alphas, "r2": found.r2_path})


def spectrum(store: Store, **bridge: Any) -> pl.DataFrame:
    """Singular values of W beside those of random matrices as large: number, value, random_low, random_high;
    arguments as `fitted`."""
    found = fitted(store, **bridge)
    low, high = np.linalg.norm(found.w) * random_spectrum(found.k)
    columns = {"number": np.arange(1, found.k + 1), "value": found.spectrum}
    return pl.DataFrame(columns | {"random_low": low, "random_high": high})


def matrix(store: Store, most: int, **bridge: Any) -> pl.DataFrame:
    """The leading entries of W, at most so many a side: start, end, weight; arguments as `fitted`."""
    w = fitted(store, **bridge).w[:most, :most]
    start, end = np.indices(w.shape) + 1
    return pl.DataFrame({"start": start.ravel(), "end": end.ravel(), "weight": w.ravel()})


@lru_cache(maxsize=64)
def random_spectrum(k: int) -> np.ndarray:
    """(2, k): range of the singular values of random matrices of unit norm."""
    return np.array(analysis.random_spectrum(k, seed=SEED))
