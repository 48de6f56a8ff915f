"""Measurements behind the page of Z's geometry: slow once for each block, after which sliders only look up.

Everything comes from stored factors of the weights and stored activations. What is kept for a block and a
pooling holds every offered k at once, so that a move of k reads and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import polars as pl
import streamlit as st

from app.frame import grams
from app.frame.opened import Key, Opened
from app.frame.prompts import LEVEL, SEED, require, rows
from app.frame.selection import Selection
from app.residual_updates import tables as update_queries
from engine.errors import AnalysisError
from engine.geometry import layers as subspace_layers
from engine.geometry import separation as sep
from engine.geometry import z as subspace
from engine.geometry.language_energy import LanguageEnergy, language_energy
from engine.similarity.sampling import sample_prompts
from store.layout import slug

DRAWS, RESAMPLES = sep.DRAWS, 500
LEAST = 8
"""Fewest problems that are compared."""
MOST = 200
"""Most problems that are compared all with all: one block's two poolings then take 3 s of one core."""
WIDER = (96, 128, 192, 256)
STEPS = 5
"""Progress steps of one block and pooling: bases, random subspaces (two), ratios, heads."""

Progress = Callable[[str], Callable[[int, int], None]]
Method = Literal["blocks", "kernels"]


def ranks(opened: Opened) -> tuple[int, ...]:
    """Every k that the slider offers, from 1 to the width of a head."""
    most = opened.facts.max_k
    found = {*update_queries.offered_ranks(most), *(k for k in WIDER if k < most), most}
    return tuple(sorted(found))


def sigma(opened: Opened, model: str) -> np.ndarray:
    """Singular values of every head kernel, (block, head, d_h)."""
    return _sigma(opened.key, opened, model)


@st.cache_resource(show_spinner=False, max_entries=8)
def _sigma(key: Key, _opened: Opened, model: str) -> np.ndarray:
    return _opened.store.array(f"weights/{slug(model)}/kernel_sigma")


def width(opened: Opened, model: str) -> int:
    return int(opened.store.model_info(model)["d"])


@st.cache_data(show_spinner=False, max_entries=16)
def random_ranks(d: int, d_h: int) -> np.ndarray:
    """Effective ranks of head kernels of random weights of this size."""
    return subspace_layers.random_effective_ranks(d, d_h, draws=DRAWS, seed=SEED)


@st.cache_resource(show_spinner=False)
def _kept() -> update_queries.Kept:
    return update_queries.Kept(256)


@st.cache_resource(show_spinner=False)
def _kept_bases() -> update_queries.Kept:
    return update_queries.Kept(4)


def bases(opened: Opened, model: str, joined: str, layer: int) -> dict[int, np.ndarray]:
    """Z of all heads of a block for every offered k, each (d, k)."""
    key = ("bases", opened.key, model, joined, layer)

    def make() -> dict[int, np.ndarray]:
        right = opened.store.array(update_queries.kernel_name(model), first=layer)
        heads = update_queries.key_heads(opened, model)
        method = cast(Method, joined)
        return subspace.multi_head_bases(
            right, sigma(opened, model)[layer], ranks(opened), method, kv_heads=heads
        )

    return cast(dict[int, np.ndarray], _kept_bases().get(key, make))


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


def structure(opened: Opened, model: str, joined: str, progress: Progress | None = None) -> Structure:
    """Every block's Z against every other's and against its gate; behind a progress bar the first time."""
    key = ("structure", opened.key, model, joined)
    return cast(Structure, _kept().get(key, lambda: _structure(opened, model, joined, progress)))


def _structure(opened: Opened, model: str, joined: str, progress: Progress | None) -> Structure:
    blocks, ks = opened.facts.n_layers[model], ranks(opened)
    advance = progress("Comparing the subspaces of all blocks…") if progress else _silent
    gated = f"weights/{slug(model)}/gate_gram" in opened.store.array_names()
    found: list[dict[int, np.ndarray]] = []
    energy: list[list[float]] = []
    for block in range(blocks):
        mine = bases(opened, model, joined, block)
        found.append({k: basis.astype(np.float32) for k, basis in mine.items()})
        if gated:
            energy.append(_gate_energy(opened, model, block, mine))
        advance(block + 1, blocks + 1)
    similarity = {k: subspace.grassmann_matrix(np.stack([f[k] for f in found])) for k in ks}
    moments = opened.store.array(f"weights/{slug(model)}/gate_moments") if gated else np.empty((0, 2))
    advance(1, 1)
    shares = {k: np.stack([np.vecdot(f[k], f[k]) for f in found], axis=1) for k in ks}
    gates = dict(zip(ks, np.array(energy).T, strict=True)) if gated else {}
    return Structure(similarity, gates, moments, shares)


def _gate_energy(opened: Opened, model: str, block: int, mine: dict[int, np.ndarray]) -> list[float]:
    gram = opened.store.array(f"weights/{slug(model)}/gate_gram", first=block)
    frame = None
    if gram.shape[0] < width(opened, model):
        right = opened.store.array(update_queries.kernel_name(model), first=block)
        heads = update_queries.key_heads(opened, model)
        frame = subspace.key_frame(right, heads or right.shape[0])
    each = subspace_layers.energy_in(np.concatenate(list(mine.values()), axis=1), gram, frame)
    ends = np.cumsum([basis.shape[1] for basis in mine.values()])
    return [float(part.sum()) for part in np.split(each, ends[:-1])]


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def languages(opened: Opened) -> tuple[str, str] | None:
    """The two languages compared: the two that most pairs have; None without pairs in two languages."""
    prompts = opened.store.prompts
    if not {"pair_id", "language"} <= set(prompts.columns):
        return None
    known = prompts.drop_nulls(["pair_id", "language"]).group_by("language").agg(pl.col("pair_id").n_unique())
    top = known.sort(["pair_id", "language"], descending=[True, False])["language"].to_list()[:2]
    return (min(top), max(top)) if len(top) == 2 else None


def problem_rows(opened: Opened, selection: Selection, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the first and of the second language, problem by problem.

    A problem counts when exactly one prompt of each language has its pair_id.

    Args:
        most: a random sample of so many where there are more.

    Raises:
        AnalysisError: fewer than 8 such problems under the filters.
    """
    one, two, seen = _problem_rows(opened.key, opened, selection.split, selection.category, most)
    return one[seen], two[seen]


def problem_count(opened: Opened, selection: Selection, most: int = MOST) -> str:
    """How many problems are compared, in words."""
    seen = _problem_rows(opened.key, opened, selection.split, selection.category, most)[2]
    sample = "" if seen.all() else f", a random sample of {seen.size:,},"
    return f"{seen.sum():,} problems{sample}"


@st.cache_data(show_spinner=False, max_entries=16)
def _problem_rows(
    key: Key, _opened: Opened, split: str, category: str, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of every problem in both languages, and which of the problems are in the sample."""
    pair = languages(_opened)
    kept = rows(_opened, (split, "all", category))
    if pair is None:
        return (
            require(np.empty(0, dtype=np.int64), LEAST),
            np.empty(0, dtype=np.int64),
            np.empty(0, dtype=bool),
        )
    table = _opened.store.prompts.with_row_index("row")[kept].filter(pl.col("language").is_in(pair))
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
    _, seed = grams.sampling(_opened.store)
    both_rows = np.sort(np.concatenate([one, two]))
    return one, two, np.isin(one, sample_prompts(_opened.store.prompts, both_rows, 2 * most, seed))


def poolings(opened: Opened, selection: Selection) -> tuple[str, ...]:
    """The token position chosen, and the mean over tokens: as far as they were captured."""
    tokens, means = opened.facts.tokens, opened.facts.averages
    token = selection.position if selection.position in tokens else next(iter(tokens), "")
    return tuple(p for p in (token, next(iter(means), "")) if p)


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


def _data_key(
    opened: Opened, model: str, selection: Selection, layer: int, pooling: str
) -> tuple[object, ...]:
    return opened.key, model, selection.site, layer, pooling, selection.split, selection.category


def problems(opened: Opened, model: str, selection: Selection, layer: int, pooling: str) -> sep.Problems:
    """Both languages' activations of every problem at a block."""
    one, two = problem_rows(opened, selection)
    order = np.argsort(np.concatenate([one, two]))
    both = opened.store.activations(
        model, selection.site, layer, pooling, rows=np.concatenate([one, two])[order]
    )
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return sep.Problems.of(both[back[: one.size]], both[back[one.size :]])


def measured(
    opened: Opened,
    model: str,
    selection: Selection,
    layer: int,
    pooling: str,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """Separation and language energy of a block, kept for the next look.

    Args:
        progress: told (done, total) steps when something has to be computed.
    """
    key = ("measured", selection.joined, *_data_key(opened, model, selection, layer, pooling))
    tell = progress or _silent
    return cast(Measured, _kept().get(key, lambda: _measure(opened, model, selection, layer, pooling, tell)))


def _measure(
    opened: Opened,
    model: str,
    selection: Selection,
    layer: int,
    pooling: str,
    tell: Callable[[int, int], None],
) -> Measured:
    ks = ranks(opened)
    mine = bases(opened, model, selection.joined, layer)
    tell(1, STEPS)
    found = problems(opened, model, selection, layer, pooling)
    key = ("random", *_data_key(opened, model, selection, layer, pooling))

    def draw() -> np.ndarray:
        def half(done: int, total: int) -> None:
            tell(1 + 2 * done // total, STEPS)

        return sep.random_ratios(found, ks, draws=DRAWS, seed=SEED, advance=half)

    random = cast(np.ndarray, _kept().get(key, draw))
    whole = sep.separation(found, mine, random, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    energy = language_energy(found, mine, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    tell(4, STEPS)
    right = opened.store.array(update_queries.kernel_name(model), first=layer)
    heads = np.array([sep.inside_ratios(found, head[:, : max(ks)], ks) for head in right])
    tell(STEPS, STEPS)
    return Measured(whole, energy, heads, sep.rank_p(heads, random))


def prepare(opened: Opened, model: str, selection: Selection, progress: Progress) -> None:
    """Do the slow parts that the selection needs and that are not there yet, behind a progress bar."""
    structure(opened, model, selection.joined, progress)
    if languages(opened) is None:
        return
    wanted = [
        (layer, p) for layer in shown_blocks(opened, model, selection) for p in poolings(opened, selection)
    ]
    _run(opened, model, selection, wanted, progress)


def shown_blocks(opened: Opened, model: str, selection: Selection) -> Sequence[int]:
    """Blocks that are measured: the selected one, or every captured one."""
    return opened.store.layers(model) if selection.layers == "every" else [selection.layer]


def _run(
    opened: Opened,
    model: str,
    selection: Selection,
    wanted: Sequence[tuple[int, str]],
    progress: Progress,
) -> None:
    advance: list[Callable[[int, int], None]] = []
    total = STEPS * len(wanted)
    for number, (layer, pooling) in enumerate(wanted):

        def step(done: int, _: int, before: int = number) -> None:
            if not advance:
                advance.append(progress("Comparing problems and random subspaces…"))
            advance[0](min(STEPS * before + done, total - 1), total)

        measured(opened, model, selection, layer, pooling, step)
    if advance:
        advance[0](total, total)
