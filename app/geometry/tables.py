"""Z, what a block's heads read, and whether it holds what two languages share about a problem.

Everything comes from stored factors of the weights and stored activations. What is kept for a block and a
pooling holds every offered k at once, so that another k reads and computes nothing. Every table is a function
of the store and of: a model; `joined`, "blocks" where every head counts alike, "kernels" by energy; k; and
where problems are compared, a site of the stream, a `pooling` (a captured position), and the `split` and
`category` of the problems, "all" or a value of that column.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import polars as pl

from app.frame.call import Progress, kept, quiet
from app.frame.prompts import LEVEL, SEED, require, rows, sampling
from app.residual_updates.tables import kernel_name, key_heads, most_k, offered_ranks
from engine.errors import AnalysisError
from engine.geometry import layers as subspace_layers
from engine.geometry import separation as sep
from engine.geometry import z as subspace
from engine.geometry.language_energy import LanguageEnergy, language_energy
from engine.similarity.sampling import sample_prompts
from store.layout import slug
from store.reader import Store

DRAWS, RESAMPLES = sep.DRAWS, 500
LEAST = 8
"""Fewest problems that are compared."""
MOST = 200
"""Most problems that are compared all with all: one block's two poolings then take 3 s of one core."""
WIDER = (96, 128, 192, 256)
STEPS = 5
"""Progress steps of one block and pooling: bases, random subspaces (two), ratios, heads."""

Method = Literal["blocks", "kernels"]
Steps = Callable[[int, int], None]
"""Told (done, total)."""
unwatched: Steps = quiet("")


def ranks(store: Store) -> tuple[int, ...]:
    """Every k that the slider offers, from 1 to the width of a head."""
    most = most_k(store)
    return tuple(sorted({*offered_ranks(most), *(k for k in WIDER if k < most), most}))


@kept(most=8)
def sigma(store: Store, model: str) -> np.ndarray:
    """Singular values of every head kernel, (block, head, d_h)."""
    return store.array(f"weights/{slug(model)}/kernel_sigma")


def width(store: Store, model: str) -> int:
    return int(store.model_info(model)["d"])


@lru_cache(maxsize=16)
def random_ranks(d: int, d_h: int) -> np.ndarray:
    """Effective ranks of head kernels of random weights of this size."""
    return subspace_layers.random_effective_ranks(d, d_h, draws=DRAWS, seed=SEED)


@kept(most=4)
def bases(store: Store, model: str, joined: str, layer: int) -> dict[int, np.ndarray]:
    """Z of all heads of a block for every offered k, each (d, k)."""
    right, heads = store.array(kernel_name(model), first=layer), key_heads(store, model)
    method = cast(Method, joined)
    return subspace.multi_head_bases(right, sigma(store, model)[layer], ranks(store), method, kv_heads=heads)


@dataclass(frozen=True)
class Structure:
    """What the weights alone say about Z, for every offered k.

    Attributes:
        similarity: k → (block, block) Grassmann similarity. energy: k → (block,) ‖W_gate Z‖², empty where
            the model's MLPs have no gate or the store keeps none. moments: (block, 2) of the gates.
        shares: k → (d, block), each Z's share of every coordinate.
    """

    similarity: dict[int, np.ndarray]
    energy: dict[int, np.ndarray]
    moments: np.ndarray
    shares: dict[int, np.ndarray]


@kept()
def structure(store: Store, model: str, joined: str, progress: Progress = quiet) -> Structure:
    """Every block's Z against every other's and against its gate."""
    blocks, ks = int(store.model_info(model)["n_layers"]), ranks(store)
    advance = progress("Comparing the subspaces of all blocks…")
    gated = f"weights/{slug(model)}/gate_gram" in store.array_names()
    found: list[dict[int, np.ndarray]] = []
    energy: list[list[float]] = []
    for block in range(blocks):
        mine = bases(store, model, joined, block)
        found.append({k: basis.astype(np.float32) for k, basis in mine.items()})
        if gated:
            energy.append(_gate_energy(store, model, block, mine))
        advance(block + 1, blocks + 1)
    similarity = {k: subspace.grassmann_matrix(np.stack([f[k] for f in found])) for k in ks}
    moments = store.array(f"weights/{slug(model)}/gate_moments") if gated else np.empty((0, 2))
    advance(1, 1)
    shares = {k: np.stack([np.vecdot(f[k], f[k]) for f in found], axis=1) for k in ks}
    gates = dict(zip(ks, np.array(energy).T, strict=True)) if gated else {}
    return Structure(similarity, gates, moments, shares)


def _gate_energy(store: Store, model: str, block: int, mine: dict[int, np.ndarray]) -> list[float]:
    gram = store.array(f"weights/{slug(model)}/gate_gram", first=block)
    frame = None
    if gram.shape[0] < width(store, model):
        right = store.array(kernel_name(model), first=block)
        frame = subspace.key_frame(right, key_heads(store, model) or right.shape[0])
    each = subspace_layers.energy_in(np.concatenate(list(mine.values()), axis=1), gram, frame)
    ends = np.cumsum([basis.shape[1] for basis in mine.values()])
    return [float(part.sum()) for part in np.split(each, ends[:-1])]


def effective_ranks(store: Store, model: str) -> pl.DataFrame:
    """Effective rank of every head's kernel, and its variation within the block: layer, head, value,
    variation."""
    found = subspace.effective_rank(sigma(store, model))
    layer, head = np.indices(found.shape)
    variation = np.repeat(subspace_layers.variation(found), found.shape[1])
    columns = {"layer": layer.ravel(), "head": head.ravel(), "value": found.ravel()}
    return pl.DataFrame(columns | {"variation": variation})


def similarity(store: Store, model: str, joined: str, k: int) -> pl.DataFrame:
    """Similarity of every block's Z to every other's: layer, other, value."""
    values = structure(store, model, joined).similarity[k]
    layer, other = np.indices(values.shape)
    columns = {"layer": layer.ravel(), "other": other.ravel(), "value": values.ravel().astype(float)}
    return pl.DataFrame(columns)


def convergence(store: Store, model: str, joined: str, k: int, ref: int) -> pl.DataFrame:
    """Similarity of every block's Z to that of block `ref`: layer, series, value, p_random, p_scales."""
    found = structure(store, model, joined)
    values, shares = found.similarity[k][ref], found.shares[k]
    p, p_scales = subspace_layers.resemblance_p(shares[:, ref], shares, values)
    columns = {"layer": range(len(values)), "series": model, "value": values.astype(float)}
    return pl.DataFrame(columns | {"p_random": p, "p_scales": p_scales})


def alignment(store: Store, model: str, joined: str, k: int) -> subspace_layers.Alignment | None:
    """How far gates read the same block's Z; None where no gate is known."""
    found = structure(store, model, joined)
    if not found.energy or not np.isfinite(found.moments).all(axis=1).any():
        return None
    mean, square = found.moments.T
    return subspace_layers.weight_alignment(found.energy[k], mean, square, width(store, model), k)


def gates(store: Store, model: str, joined: str, k: int) -> pl.DataFrame:
    """Energy of every gate in the same block's Z over k/d: layer, series, value, p_random.

    Raises:
        AnalysisError: no gate of the model is known.
    """
    found = alignment(store, model, joined, k)
    if found is None:
        raise AnalysisError(
            f"Nothing is known of the gates of {model}.",
            expected="a gate projection, one for each block",
            given="none in this store",
            next_step="run precompute.py on the study into a new folder, if the model has gates.",
        )
    columns = {"layer": range(len(found.ratio)), "series": model, "value": found.ratio}
    return pl.DataFrame(columns | {"p_random": found.p})


def languages(store: Store) -> tuple[str, str] | None:
    """The two languages compared: the two that most pairs have; None without pairs in two languages."""
    prompts = store.prompts
    if not {"pair_id", "language"} <= set(prompts.columns):
        return None
    known = prompts.drop_nulls(["pair_id", "language"]).group_by("language").agg(pl.col("pair_id").n_unique())
    top = known.sort(["pair_id", "language"], descending=[True, False])["language"].to_list()[:2]
    return (min(top), max(top)) if len(top) == 2 else None


def problem_rows(store: Store, split: str, category: str, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first and of the second language, problem by problem.

    A problem counts when exactly one prompt of each language has its pair_id.

    Args:
        most: a random sample of so many where there are more.

    Raises:
        AnalysisError: fewer than 8 such problems.
    """
    one, two, seen = _problem_rows(store, split, category, most)
    return one[seen], two[seen]


def problem_count(store: Store, split: str, category: str, most: int = MOST) -> str:
    """How many problems are compared, in words."""
    seen = _problem_rows(store, split, category, most)[2]
    sample = "" if seen.all() else f", a random sample of {seen.size:,},"
    return f"{seen.sum():,} problems{sample}"


@kept(most=16)
def _problem_rows(
    store: Store, split: str, category: str, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of every problem in both languages, and which of the problems are in the sample."""
    pair = languages(store)
    chosen = rows(store, (split, "all", category))
    if pair is None:
        return (
            require(np.empty(0, dtype=np.int64), LEAST),
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=bool),
        )
    table = store.prompts.with_row_index("row")[chosen].filter(pl.col("language").is_in(pair))
    each = table.group_by("pair_id", maintain_order=True).agg(
        *(pl.col("row").filter(pl.col("language") == spoken).alias(spoken) for spoken in pair)
    )
    both = each.drop_nulls("pair_id").filter(*(pl.col(spoken).list.len() == 1 for spoken in pair))
    one, two = (both[spoken].list.first().to_numpy().astype(np.int64) for spoken in pair)
    if one.size < LEAST:
        raise AnalysisError(
            "These filters keep too few problems in both languages.",
            expected=f"at least {LEAST}",
            given=f"{one.size}",
            next_step="widen split or category.",
        )
    _, seed = sampling(store)
    both_rows = np.sort(np.concatenate([one, two]))
    return one, two, np.isin(one, sample_prompts(store.prompts, both_rows, 2 * most, seed))


@dataclass(frozen=True)
class Measured:
    """One block at one pooling, for every offered k.

    Attributes:
        heads: (head, k) ratio(Z) of every head by itself. p_heads: their one-sided rank p.
    """

    separation: sep.Separation
    energy: LanguageEnergy
    heads: np.ndarray
    p_heads: np.ndarray


@kept(most=2)
def problems(
    store: Store, model: str, site: str, layer: int, pooling: str, split: str, category: str
) -> sep.Problems:
    """Both languages' activations of every problem at a block."""
    one, two = problem_rows(store, split, category)
    order = np.argsort(np.concatenate([one, two]))
    both = store.activations(model, site, layer, pooling, rows=np.concatenate([one, two])[order])
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return sep.Problems.of(both[back[: one.size]], both[back[one.size :]])


@kept(most=256)
def _random(
    store: Store, model: str, site: str, layer: int, pooling: str, split: str, category: str, step: Steps
) -> np.ndarray:
    """Ratios in random subspaces, which no Z enters."""
    found = problems(store, model, site, layer, pooling, split, category)
    return sep.random_ratios(found, ranks(store), draws=DRAWS, seed=SEED, advance=step)


@kept(most=256)
def measured(
    store: Store,
    model: str,
    site: str,
    layer: int,
    pooling: str,
    split: str,
    category: str,
    joined: str,
    step: Steps = unwatched,
) -> Measured:
    """Separation and language energy of a block; `step` is told (done, total)."""
    ks, where = ranks(store), (store, model, site, layer, pooling, split, category)
    mine = bases(store, model, joined, layer)
    step(1, STEPS)
    found = problems(*where)
    random = _random(*where, lambda done, total: step(1 + 2 * done // total, STEPS))
    whole = sep.separation(found, mine, random, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    energy = language_energy(found, mine, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    step(4, STEPS)
    right = store.array(kernel_name(model), first=layer)
    heads = np.array([sep.inside_ratios(found, head[:, : max(ks)], ks) for head in right])
    step(STEPS, STEPS)
    return Measured(whole, energy, heads, sep.rank_p(heads, random))
