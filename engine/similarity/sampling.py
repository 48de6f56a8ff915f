"""Random samples of a prompts table (see `engine.stats.sampling`), and which Grams a store keeps."""

from __future__ import annotations

import numpy as np
import polars as pl
from jaxtyping import Int

from engine.stats.sampling import MOST, sample_rows

__all__ = ["MOST", "gram_bytes", "groups_of", "keeps_grams", "sample_prompts"]

STRATA = ("split", "language", "category")


def groups_of(prompts: pl.DataFrame) -> Int[np.ndarray, " n"]:
    """Number of each prompt's group: its pair where it has one, else a group of its own."""
    pairs = prompts["pair_id"].to_list() if "pair_id" in prompts.columns else [None] * prompts.height
    names: dict[object, int] = {}
    labels = [("row", i) if pair is None else pair for i, pair in enumerate(pairs)]
    return np.array([names.setdefault(label, len(names)) for label in labels], dtype=np.intp)


def sample_prompts(
    prompts: pl.DataFrame, rows: Int[np.ndarray, " k"] | None = None, most: int = MOST, seed: int = 0
) -> Int[np.ndarray, " m"]:
    """`sample_rows` of a prompts table: whole pairs, strata by split, language and category.

    Args:
        prompts: the whole table. rows: ascending numbers of the prompts to draw from; default all.
    """
    rows = np.arange(prompts.height) if rows is None else np.asarray(rows)
    if rows.size <= most:
        return rows
    part = prompts[rows]
    columns = [c for c in STRATA if c in part.columns]
    texts = [pl.col(column).cast(pl.String).fill_null("") for column in columns]
    strata = part.select(pl.concat_str(texts, separator="\n"))[:, 0].to_numpy() if columns else None
    return rows[sample_rows(groups_of(part), strata, most, seed)]


def keeps_grams(n: int, width: int, most: int = MOST) -> bool:
    """Whether Grams of a site are worth keeping: those of all prompts, or those that are smaller than the
    features they are made of. Others take less time to make than a reader notices."""
    return n <= most or most <= width


def gram_bytes(n: int, width: int, most: int = MOST) -> int:
    """Bytes of one kept Gram of a site of `width` features; 0 where none is kept."""
    return 4 * min(n, most) ** 2 if keeps_grams(n, width, most) else 0
