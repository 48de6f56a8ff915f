"""Cached calls of pure functions on the open store: what pages ask, answered once.

Every function takes `key` first, which names the store's content and is hashed; the store itself
(`_opened`) is not. Tables are small and cached as data; stacks of Gram matrices are cached as they are and
must not be changed.
"""

from __future__ import annotations

import numpy as np
import polars as pl
import streamlit as st

from app.frame import grams
from app.frame.opened import Key, Opened
from app.frame.selection import Selection
from engine.errors import AnalysisError
from engine.lab.units import resampling_units, unit_name
from engine.similarity import cka
from engine.similarity.sampling import groups_of
from engine.stats.permuted import smallest_p
from engine.stats.resampling import ordered_units, unit_index, unit_kinds

Filter = tuple[str, str, str]
Aligned = tuple[list[int], list[np.ndarray], list[np.ndarray]]

RESAMPLES, PERMUTATIONS, LEVEL, SEED = 1000, 199, 0.95, 0


def chosen_filter(selection: Selection) -> Filter:
    """(split, language, category) of a selection."""
    return selection.split, selection.language, selection.category


def rows(opened: Opened, which: Filter) -> np.ndarray:
    """Prompt numbers that a filter keeps, int64 (m,)."""
    prompts, keep = opened.store.prompts, pl.lit(True)
    for column, value in zip(("split", "language", "category"), which, strict=True):
        if value != "all":
            keep = keep & (pl.col(column).cast(pl.String) == value)
    mask = prompts.select(keep.alias("keep"))["keep"]
    return np.arange(prompts.height) if len(mask) != prompts.height else np.flatnonzero(mask.to_numpy())


def require(found: np.ndarray, least: int) -> np.ndarray:
    """The rows themselves when there are enough of them.

    Raises:
        AnalysisError: fewer than `least`.
    """
    if found.size < least:
        raise AnalysisError(
            "These filters keep too few prompts.",
            expected=f"at least {least}",
            given=f"{found.size}",
            next_step="widen split, language or category.",
        )
    return found


def groups(opened: Opened, which: np.ndarray) -> np.ndarray | None:
    """Pair of each row where prompts come in pairs, which stays together; None for one group per prompt."""
    prompts = opened.store.prompts
    return groups_of(prompts[which]) if "pair_id" in prompts.columns else None


def units(opened: Opened, which: np.ndarray) -> np.ndarray | None:
    """What intervals draw, number of each row: its category where there are many, else its pair; None for
    one prompt at a time (`engine.lab.units`)."""
    part = opened.store.prompts[which]
    return None if unit_name(part) == "prompt" else resampling_units(part)


def unit_said(opened: Opened, which: Filter) -> str:
    """What intervals draw of the prompts that a filter keeps, in one word or two: "pair"."""
    return unit_name(opened.store.prompts[rows(opened, which)])


def roles(opened: Opened, which: np.ndarray) -> np.ndarray | None:
    """Language of each row, which keeps its place inside a pair when pairs are exchanged.

    No language is one more: "".
    """
    prompts = opened.store.prompts
    return prompts["language"].fill_null("").to_numpy()[which] if "language" in prompts.columns else None


def kinds(opened: Opened, which: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Language and category of each row, within which wrong pairings stay, and both in words.

    What categories have in common is no shared geometry of their prompts, as it is none that languages lie
    apart. Categories of so few prompts that exchanging them inside tells nothing are left out.
    """
    prompts, spoken = opened.store.prompts, roles(opened, which)
    language = "" if spoken is None or len(set(spoken.tolist())) < 2 else "language"
    if "category" not in prompts.columns:
        return spoken, language
    named = prompts["category"].cast(pl.String).fill_null("").to_numpy()[which]
    if len(set(named.tolist())) < 2:
        return spoken, language
    both = [f"{a}\n{b}" for a, b in zip(spoken if spoken is not None else named, named, strict=True)]
    labels, unit = np.array(both), unit_index(which.size, groups(opened, which))
    kind = unit_kinds(ordered_units(unit, labels), unit, labels)
    if smallest_p(PERMUTATIONS, kind.size, kind) >= 1 - LEVEL:
        return spoken, language
    return labels, " and ".join(filter(None, (language, "category")))


def looked_at(opened: Opened, which: Filter) -> np.ndarray:
    """Prompts that similarity looks at under a filter: all of them, or a random sample of many.

    Raises:
        AnalysisError: fewer than 8.
    """
    kept, found = rows(opened, which), _looked_at(opened.key, opened, which)
    if found.size < 8 <= kept.size:
        raise AnalysisError(
            "These filters keep too few of the sampled prompts.",
            expected="at least 8",
            given=f"{found.size} of {kept.size}; Gram matrices are kept for a random sample",
            next_step="widen split, language or category, or raise capture.similarity_prompts in the study.",
        )
    return require(found, 8)


@st.cache_data(show_spinner=False, max_entries=64)
def _looked_at(key: Key, _opened: Opened, which: Filter) -> np.ndarray:
    return grams.looked_at(_opened.store, rows(_opened, which))


def counted(opened: Opened, which: Filter) -> str:
    """How many prompts similarity looks at under a filter, in words."""
    seen, kept = looked_at(opened, which).size, rows(opened, which).size
    if seen == kept:
        return f"{kept:,} prompts"
    whole = " of whole pairs" if paired(opened) else ""
    return f"{seen:,} prompts, a random sample{whole} of {kept:,}"


@st.cache_resource(show_spinner="Reading Gram matrices…", max_entries=8)
def stack(key: Key, _opened: Opened, model: str, site: str, position: str, which: Filter) -> np.ndarray:
    """Centred Gram matrices of every captured block over the filtered prompts, (block, m, m) float32."""
    return grams.grams(_opened.store, model, site, position, looked_at(_opened, which))


def stacks(opened: Opened, selection: Selection, site: str, which: Filter) -> tuple[np.ndarray, np.ndarray]:
    """Gram stacks of both models of the pair."""
    one, two = (
        stack(opened.key, opened, model, site, selection.position, which)
        for model in (selection.a, selection.b)
    )
    return one, two


def paired(opened: Opened) -> bool:
    """Whether prompts come in pairs, all or some of them, which are then resampled together."""
    prompts = opened.store.prompts
    return "pair_id" in prompts.columns and bool(prompts["pair_id"].drop_nulls().is_duplicated().any())


def shared_blocks(opened: Opened, a: str, b: str) -> list[int]:
    """Captured blocks of both models: those a curve can show."""
    return [layer for layer in opened.store.layers(a) if layer in set(opened.store.layers(b))]


def _aligned(opened: Opened, selection: Selection, site: str, which: Filter) -> Aligned:
    one, two = stacks(opened, selection, site, which)
    left, right = opened.store.layers(selection.a), opened.store.layers(selection.b)
    blocks = shared_blocks(opened, selection.a, selection.b)
    return blocks, [one[left.index(b)] for b in blocks], [two[right.index(b)] for b in blocks]


def cka_curve(opened: Opened, selection: Selection, site: str, language: str | None = None) -> pl.DataFrame:
    """Both estimators with the chosen interval, per block.

    Args:
        language: overrides the selection's.

    Returns:
        Columns layer, series ("debiased", "biased"), value, low, high, n.
    """
    split, spoken, category = chosen_filter(selection)
    return _cka_curve(opened.key, opened, selection, site, (split, language or spoken, category))


def _relevant(selection: Selection) -> tuple[str, ...]:
    """The fields a similarity depends on."""
    return selection.a, selection.b, selection.position, selection.interval


@st.cache_data(show_spinner="Resampling prompts…", max_entries=64, hash_funcs={Selection: _relevant})
def _cka_curve(key: Key, _opened: Opened, selection: Selection, site: str, which: Filter) -> pl.DataFrame:
    blocks, one, two = _aligned(_opened, selection, site, which)
    drawn = units(_opened, looked_at(_opened, which))
    if selection.interval == "bootstrap":
        bands = cka.bootstrap_curves(one, two, groups=drawn, n_boot=RESAMPLES, level=LEVEL, seed=SEED)
    else:
        bands = (
            cka.jackknife_cka(one, two, debiased=False, groups=drawn, level=LEVEL),
            cka.jackknife_cka(one, two, debiased=True, groups=drawn, level=LEVEL),
        )
    parts = [
        pl.DataFrame(
            {"layer": blocks, "value": band.estimate, "low": band.low, "high": band.high}
        ).with_columns(series=pl.lit(name), n=pl.lit(one[0].shape[0]))
        for name, band in (("debiased", bands[1]), ("biased", bands[0]))
    ]
    return pl.concat(parts).select("layer", "series", "value", "low", "high", "n")


def cka_by_language(opened: Opened, selection: Selection, site: str) -> pl.DataFrame:
    """The chosen estimator's curve in each language; columns as in `cka_curve`, series = language."""
    parts = []
    for language in opened.facts.languages:
        curve = cka_curve(opened, selection, site, language).filter(pl.col("series") == selection.estimator)
        parts.append(curve.with_columns(series=pl.lit(language)))
    return pl.concat(parts)


def cka_grid(opened: Opened, selection: Selection, site: str) -> pl.DataFrame:
    """Every block of one model against every block of the other: layer (of a), other (of b), value."""
    return _cka_grid(
        opened.key, opened, selection, site, chosen_filter(selection), selection.estimator == "debiased"
    )


@st.cache_data(show_spinner=False, max_entries=64, hash_funcs={Selection: _relevant})
def _cka_grid(
    key: Key, _opened: Opened, selection: Selection, site: str, which: Filter, debiased: bool
) -> pl.DataFrame:
    one, two = stacks(_opened, selection, site, which)
    values = cka.cross_layer_cka(one, two, debiased)
    left, right = _opened.store.layers(selection.a), _opened.store.layers(selection.b)
    return pl.DataFrame(
        {
            "layer": np.repeat(left, len(right)),
            "other": np.tile(right, len(left)),
            "value": values.ravel(),
        }
    )


def cka_null(opened: Opened, selection: Selection, site: str) -> pl.DataFrame:
    """The chosen estimator when prompts are paired at random within their kinds: layer, low, high, p, draws,
    within (`kinds` in words)."""
    return _cka_null(
        opened.key, opened, selection, site, chosen_filter(selection), selection.estimator == "debiased"
    )


@st.cache_data(show_spinner="Pairing prompts at random…", max_entries=64, hash_funcs={Selection: _relevant})
def _cka_null(
    key: Key, _opened: Opened, selection: Selection, site: str, which: Filter, debiased: bool
) -> pl.DataFrame:
    blocks, one, two = _aligned(_opened, selection, site, which)
    kept = looked_at(_opened, which)
    labels, within = kinds(_opened, kept)
    null = cka.permutation_null(
        one,
        two,
        debiased=debiased,
        groups=groups(_opened, kept),
        roles=labels,
        n_draws=PERMUTATIONS,
        level=LEVEL,
        seed=SEED,
    )
    return pl.DataFrame(
        {
            "layer": blocks,
            "low": null.low,
            "high": null.high,
            "p": null.p,
            "draws": null.draws,
            "within": within,
        }
    )
