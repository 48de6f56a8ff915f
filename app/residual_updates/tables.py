"""What each block of a model adds to the stream, inside and outside Z of one block's heads.

Every table is a function of the store, a model, a position, `which` prompts ((split, language, category),
each "all" or a value of that column), the reference block `ref` of Z, its rank k, and `mean`:
"ratio_of_means" or "mean_of_ratios". `scale` is "r" or "r_over_chance". Lengths inside and outside Z are
measured for all offered ranks at once: slow once for each reference block, after which another rank only
resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import polars as pl

from app.frame import store_rounding
from app.frame.call import Progress, kept, quiet
from app.frame.prompts import LEVEL, SEED, Filter, require, rows, units
from engine.geometry.z import multi_head_bases, multi_head_basis
from engine.residual_updates.numbers import (
    ResidualUpdates,
    UpdateNorms,
    UpdateSplit,
    chance_ratio,
    mean_norms,
    residual_updates,
    split_updates,
    update_label,
    update_norms,
)
from engine.stats.uncertainty import Band
from store.layout import slug
from store.reader import Store

RESAMPLES = 500
GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def offered_ranks(most: int) -> tuple[int, ...]:
    """Ranks of Z that the slider offers: all of a narrow head, a growing grid of a wide one."""
    return tuple(range(1, most + 1)) if most <= 16 else tuple(k for k in GRID if k <= most)


def most_k(store: Store) -> int:
    """Largest rank of Z offered: the smallest head width among the models."""
    return min(int(store.model_info(model)["head_dim"]) for model in store.models)


def kernel_name(model: str) -> str:
    """Array with the right singular vectors of every head kernel."""
    return f"weights/{slug(model)}/kernel_right"


def key_heads(store: Store, model: str) -> int | None:
    """Key heads of a model, or None where the store doesn't say."""
    found = store.model_info(model).get("n_kv_heads")
    return None if found is None else int(found)


def _kernels(store: Store, model: str, ref: int) -> tuple[np.ndarray, np.ndarray]:
    """Right singular vectors and singular values of a block's head kernels."""
    folder = f"weights/{slug(model)}"
    return store.array(f"{folder}/kernel_right", first=ref), store.array(f"{folder}/kernel_sigma", first=ref)


@kept(most=8)
def norms(
    store: Store, model: str, position: str, which: Filter, ref: int, progress: Progress = quiet
) -> UpdateNorms:
    """Lengths of all updates inside and outside Z, for every offered rank."""
    ranks, blocks = offered_ranks(most_k(store)), tuple(store.layers(model))
    total = len(ranks) + len(blocks) + 1
    advance = progress("Measuring every block's update against Z…")
    bases = multi_head_bases(
        *_kernels(store, model, ref),
        ranks,
        kv_heads=key_heads(store, model),
        advance=lambda done, _: advance(done, total),
    )
    keep, rounding = require(rows(store, which), 8), []

    def deltas() -> Iterator[np.ndarray]:
        for done, (delta, share) in enumerate(store_rounding.updates(store, model, position, keep)):
            rounding.append(share)
            yield delta
            advance(len(ranks) + done + 1, total)

    found = update_norms(deltas(), bases, ranks)
    advance(total, total)
    return dataclasses.replace(found, rounding=np.array(rounding), blocks=blocks)


@kept(most=256)
def result(
    store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str
) -> ResidualUpdates:
    """R of every block, with band, chance, languages and verdict."""
    keep, prompts = rows(store, which), store.prompts
    spoken = None
    if "language" in prompts.columns and not prompts["language"].null_count():
        spoken = prompts["language"].to_numpy()[keep]
        spoken = spoken if len(set(spoken)) > 1 else None
    return residual_updates(
        norms(store, model, position, which, ref),
        k,
        kind=mean,  # type: ignore[arg-type]
        languages=spoken,
        groups=units(store, keep),
        n_boot=RESAMPLES,
        level=LEVEL,
        seed=SEED,
    )


@kept("Splitting updates into parts…")
def parts(store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str) -> UpdateSplit:
    """Attention's and the MLP's part of every update."""
    keep = rows(store, which)

    def part(component: str) -> Iterator[np.ndarray]:
        for block in store.layers(model):
            yield store.activations(model, component, block, position, rows=keep)

    return split_updates(
        part("attn_out"),
        part("mlp_out"),
        multi_head_basis(*_kernels(store, model, ref), k),
        kind=mean,  # type: ignore[arg-type]
        groups=units(store, keep),
        n_boot=RESAMPLES,
        level=LEVEL,
        seed=SEED,
    )


def _ends(band: Band, over: float) -> dict[str, np.ndarray]:
    return {"value": band.estimate / over, "low": band.low / over, "high": band.high / over}


def _unit(found: ResidualUpdates, scale: str) -> float:
    return found.chance if scale == "r_over_chance" else 1.0


def curve(
    store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str, scale: str
) -> pl.DataFrame:
    """R of every block: layer, update, series, value, low, high, chance, p_random, mean_length, rounding."""
    found = result(store, model, position, which, ref, k, mean)
    return pl.DataFrame(
        {
            "layer": found.blocks,
            "update": found.labels,
            "series": model,
            **_ends(found.ratio, _unit(found, scale)),
            "chance": found.chance,
            "p_random": found.p_random,
            "mean_length": found.norm,
            "rounding": found.rounding,
        }
    )


def by_language(
    store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str, scale: str
) -> pl.DataFrame:
    """R in each language: layer, series (language), value, low, high."""
    found = result(store, model, position, which, ref, k, mean)
    return pl.concat(
        pl.DataFrame({"layer": found.blocks, "series": language, **_ends(band, _unit(found, scale))})
        for language, band in found.languages.items()
    )


def asymmetry(
    store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str
) -> pl.DataFrame:
    """R of one language minus R of the other, with limits for all blocks together: layer, series, value,
    low, high."""
    found = result(store, model, position, which, ref, k, mean)
    (one, two), apart = next(iter(found.differences.items()))
    low, high = found.differences_all[one, two]
    ends = {"value": apart.estimate, "low": low, "high": high}
    return pl.DataFrame({"layer": found.blocks, "series": f"{one} − {two}", **ends})


def lengths(store: Store, model: str, position: str, which: Filter, ref: int, k: int) -> pl.DataFrame:
    """Mean lengths of every block's update, whole, outside Z, inside, and inside if it were unrelated: layer,
    update, series, value, low, high."""
    measured = norms(store, model, position, which, ref)
    groups = units(store, rows(store, which))
    found = mean_norms(measured, k, groups=groups, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    labels = [update_label(block) for block in measured.which]
    return pl.concat(
        pl.DataFrame({"layer": measured.which, "update": labels, "series": name, **_ends(band, over)})
        for name, band, over in (
            ("whole", found.total, 1.0),
            ("outside Z", found.outside, 1.0),
            ("in Z", found.inside, 1.0),
            ("in Z by chance", found.outside, 1 / chance_ratio(measured.d, k)),
        )
    )


def split(
    store: Store, model: str, position: str, which: Filter, ref: int, k: int, mean: str, scale: str
) -> pl.DataFrame:
    """R of what attention and what the MLP adds: layer, series, value, low, high, share_in_z, p."""
    found = result(store, model, position, which, ref, k, mean)
    apart = parts(store, model, position, which, ref, k, mean)
    share = apart.attn_share_z.estimate
    return pl.concat(
        pl.DataFrame(
            {
                "layer": found.blocks,
                "series": name,
                **_ends(band, _unit(found, scale)),
                "share_in_z": own,
                "p": apart.p_apart,
            }
        )
        for name, band, own in (("attention", apart.attn, share), ("MLP", apart.mlp, 1 - share))
    )
