"""Which prompts of a store are looked at, and what of them stays together when they are drawn or paired."""

from __future__ import annotations

import numpy as np
import polars as pl

from app.frame import call
from app.frame.selection import Selection
from engine.errors import AnalysisError
from engine.lab.units import resampling_units, unit_name
from engine.similarity.sampling import MOST, groups_of, sample_prompts
from engine.stats.permuted import smallest_p
from engine.stats.resampling import ordered_units, unit_index, unit_kinds
from store.reader import Store

Filter = tuple[str, str, str]

RESAMPLES, PERMUTATIONS, LEVEL, SEED = 1000, 199, 0.95, 0


def chosen_filter(selection: Selection) -> Filter:
    """(split, language, category) of a selection."""
    return selection.split, selection.language, selection.category


def rows(store: Store, which: Filter) -> np.ndarray:
    """Prompt numbers that a filter keeps, int64 (m,)."""
    prompts, keep = store.prompts, pl.lit(True)
    for column, value in zip(("split", "language", "category"), which, strict=True):
        if value != "all":
            keep = keep & (pl.col(column).cast(pl.String) == value)
    mask = prompts.select(keep.alias("keep"))["keep"]
    return np.arange(prompts.height) if len(mask) != prompts.height else np.flatnonzero(mask.to_numpy())


def values(store: Store, column: str) -> tuple[str, ...]:
    """What a column of the prompts holds, sorted; nothing where there is none."""
    if column not in store.prompts.columns:
        return ()
    return tuple(sorted(str(value) for value in store.prompts[column].drop_nulls().unique()))


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


def groups(store: Store, which: np.ndarray) -> np.ndarray | None:
    """Pair of each row where prompts come in pairs, which stays together; None for one group per prompt."""
    prompts = store.prompts
    return groups_of(prompts[which]) if "pair_id" in prompts.columns else None


def units(store: Store, which: np.ndarray) -> np.ndarray | None:
    """What intervals draw, number of each row: its category where there are many, else its pair; None for
    one prompt at a time (`engine.lab.units`)."""
    part = store.prompts[which]
    return None if unit_name(part) == "prompt" else resampling_units(part)


def unit_said(store: Store, which: Filter) -> str:
    """What intervals draw of the prompts that a filter keeps, in one word or two: "pair"."""
    return unit_name(store.prompts[rows(store, which)])


def roles(store: Store, which: np.ndarray) -> np.ndarray | None:
    """Language of each row, which keeps its place inside a pair when pairs are exchanged.

    No language is one more: "".
    """
    prompts = store.prompts
    return prompts["language"].fill_null("").to_numpy()[which] if "language" in prompts.columns else None


def kinds(store: Store, which: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Language and category of each row, within which wrong pairings stay, and both in words.

    What categories have in common is no shared geometry of their prompts, as it is none that languages lie
    apart. Categories of so few prompts that exchanging them inside tells nothing are left out.
    """
    prompts, spoken = store.prompts, roles(store, which)
    language = "" if spoken is None or len(set(spoken.tolist())) < 2 else "language"
    if "category" not in prompts.columns:
        return spoken, language
    named = prompts["category"].cast(pl.String).fill_null("").to_numpy()[which]
    if len(set(named.tolist())) < 2:
        return spoken, language
    both = [f"{a}\n{b}" for a, b in zip(spoken if spoken is not None else named, named, strict=True)]
    labels, unit = np.array(both), unit_index(which.size, groups(store, which))
    kind = unit_kinds(ordered_units(unit, labels), unit, labels)
    if smallest_p(PERMUTATIONS, kind.size, kind) >= 1 - LEVEL:
        return spoken, language
    return labels, " and ".join(filter(None, (language, "category")))


def sampling(store: Store) -> tuple[int, int]:
    """(prompts that similarity looks at, at most; seed) of a store's study."""
    study = store.manifest.get("study") or {}
    return int((study.get("capture") or {}).get("similarity_prompts", MOST)), int(study.get("seed", 0))


def looked_at(store: Store, which: Filter) -> np.ndarray:
    """Prompts that similarity looks at under a filter, ascending: all of them, or a random sample of many.

    Where Grams of a sample are kept it is that sample's part of them, else one drawn from them.

    Raises:
        AnalysisError: fewer than 8.
    """
    kept, found = rows(store, which), _looked_at(store, which)
    if found.size < 8 <= kept.size:
        raise AnalysisError(
            "These filters keep too few of the sampled prompts.",
            expected="at least 8",
            given=f"{found.size} of {kept.size}; Gram matrices are kept for a random sample",
            next_step="widen split, language or category, or raise capture.similarity_prompts in the study.",
        )
    return require(found, 8)


@call.kept()
def _looked_at(store: Store, which: Filter) -> np.ndarray:
    kept, found = store.gram_prompts(), rows(store, which)
    if kept is not None:
        return np.intersect1d(kept, found, assume_unique=True)
    return sample_prompts(store.prompts, found, *sampling(store))


def counted(store: Store, which: Filter) -> str:
    """How many prompts similarity looks at under a filter, in words."""
    seen, kept = looked_at(store, which).size, rows(store, which).size
    if seen == kept:
        return f"{kept:,} prompts"
    whole = " of whole pairs" if paired(store) else ""
    return f"{seen:,} prompts, a random sample{whole} of {kept:,}"


def paired(store: Store) -> bool:
    """Whether prompts come in pairs, all or some of them, which are then resampled together."""
    prompts = store.prompts
    return "pair_id" in prompts.columns and bool(prompts["pair_id"].drop_nulls().is_duplicated().any())


def shared_blocks(store: Store, a: str, b: str) -> list[int]:
    """Captured blocks of both models: those a curve can show."""
    return [layer for layer in store.layers(a) if layer in set(store.layers(b))]
