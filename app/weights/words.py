"""Sentences about weight differences. Norms are exact; what is told against chance names its test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app.frame import words

SIGNIFICANT = 0.05
TOLD = 0.01
"""Rounding from this share of a difference's norm on is told."""
KINDS = {"o": "output", "q": "query", "k": "key", "v": "value"}


def blocks_title(table: pl.DataFrame, model: str, of: str, first: str) -> str:
    """Which blocks a difference changes, and where most relative to the block's weights.

    "Only" is said where all other blocks are compared.

    Args:
        table: of `by_block`.
        model: its name in the table. of, first: the models whose weights it takes from each other.
    """
    every = table.filter(pl.col("series") == model)
    known, own = every.drop_nulls("value"), every.filter(pl.col("value") > 0)
    more = _not_compared(every)
    if known.is_empty():
        return f"No block of {of} can be compared with {first}"
    if own.is_empty():
        which = "every block that can be compared" if more else "every block"
        return f"{of} and {first} have the same weights in {which}{more}"
    top = own.sort("value", descending=True).row(0, named=True)
    most = f"block {top['layer']} by {_share(top['value'])}"
    if own.height == known.height > 1:
        which = "every block that can be compared" if more else "every block"
        return f"{model} changes {which}, most {most}{more}"
    where, only = words.blocks(own["layer"].to_list()), "" if more else " only"
    by = f", most {most}" if own.height > 1 else f" by {_share(top['value'])}"
    return f"{model} changes {where}{only}{by}{more}"


def _not_compared(every: pl.DataFrame) -> str:
    """Which blocks can't be compared, in whole or in part; "" where all can be."""
    gone = every.filter(pl.col("value").is_null())["layer"].to_list()
    part = every.filter(pl.col("value").is_not_null() & (pl.col("lost") > 0))["layer"].to_list()
    told = [f"{words.blocks(gone)} can't be compared"] if gone else []
    told += [f"{words.blocks(part)} in part only"] if part else []
    return "".join(f"; {one}" for one in told)


def _share(value: float) -> str:
    percent = 100 * value
    return f"{percent:.0f} % of its norm" if percent >= 10 else f"{percent:.2g} % of its norm"


def grid_title(table: pl.DataFrame, model: str, first: str) -> str:
    """Which tensors differ: all named where they are few, else how many and the one that differs most.

    Args:
        table: columns name, layer, part, relative, rank, and noise where it is known; without a norm: not
            comparable.
    """
    found = table.drop_nulls("norm")
    lost = table.height - found.height
    more = f"; {lost} tensors can't be compared" if lost else ""
    below = not_above_rounding(found)
    if 0 < below == found.height:
        return f"No difference of {model} from {first} is above the rounding of their weights{more}"
    more = (f"; {below} not above rounding" if below else "") + more
    if found.is_empty():
        which = " that can be compared" if lost else ""
        return f"No weight of {model}{which} differs from {first}{more}"
    top = [_tensor(row) for row in found.sort("relative", descending=True).head(3).iter_rows(named=True)]
    if found.height <= 3:
        only = "" if lost else "only "
        return f"{model} differs from {first} {only}in {' and '.join(top)}{more}"
    return (
        f"{model} differs from {first} in {found.height} tensors, relative to its norm most in {top[0]}{more}"
    )


def not_above_rounding(table: pl.DataFrame) -> int:
    """Differences no larger than rounding both models' weights alone is expected to make of none."""
    return int((table["noise"] >= 1.0).sum()) if "noise" in table.columns else 0


def rounding(table: pl.DataFrame) -> str:
    """What rounding does to the differences, as sentences; empty where that is negligible or not known.

    Args:
        table: columns rounding and noise of `engine.weights.deltas.WeightDelta`.
    """
    told = []
    for column, before, after in (
        (
            "rounding",
            "ΔW is the adapter's own, from its factors; the model that ran has it rounded into its weights, "
            "which adds",
            "of its norm",
        ),
        (
            "noise",
            "Rounding of both models' weights is expected to give as much as",
            "of ‖ΔW‖ by itself",
        ),
    ):
        shares = table[column].drop_nulls() if column in table.columns else pl.Series([], dtype=pl.Float64)
        if shares.len() and float(shares.max()) >= TOLD:  # type: ignore[arg-type]
            middle, most = (f"{100 * float(x):.3g} %" for x in (shares.median(), shares.max()))  # type: ignore[arg-type]
            several = (
                "" if shares.len() == 1 or middle == most else f" (median of the tensors; at most {most})"
            )
            told.append(f"{before} {middle} {after}{several}.")
    return " ".join(told)


def _tensor(row: Mapping[str, object]) -> str:
    place = f"{row['part']}" if row["layer"] is None else f"{row['part']} of block {row['layer']}"
    rank = "" if row["rank"] is None else f" (rank {row['rank']})"
    return place + rank


def spectrum_title(found: Mapping[str, Any] | None, model: str, layer: int, part: str) -> str:
    """How many directions stand out of a random difference with its row and column norms; the effective rank.

    Rule: a direction stands out above the 99 % quantile of the largest singular value of a random matrix with
    the same row and column norms. Of a difference that is no larger than what rounding gives, and in a store
    without that quantile, nothing is said of single directions.
    """
    if found is None:
        return f"{model} leaves {part} of block {layer} as it is"
    total = int(found["directions"])
    place = f"{part} of block {layer}"
    if found["rank"] == found["rank"]:
        told = f"{model}'s difference in {place} has rank {int(found['rank'])} of {total}"
    else:
        told = f"{model}'s difference in {place} has full rank"
    told += f", effective rank {found['effective_rank']:.3g}"
    if found["noise"] >= 1:
        return f"{told}; it is not above rounding"
    if found["count"] is None:
        return told
    count = int(found["count"])
    stands = {0: "none is shown to stand", 1: "1 direction stands"}.get(count, f"{count} stand")
    return f"{told}; {stands} out of a random one with its row and column norms"


def heads_title(table: pl.DataFrame, model: str, part: str, layer: int, told: bool = True) -> str:
    """Heads of the selected block that hold more of the difference than chance would give them.

    Rule: p < 0.05 after Holm over all heads and blocks of this kind of projection.

    Args:
        told: whether an absent row means an equal projection.
    """
    kind = KINDS[part]
    at = table.filter(pl.col("layer") == layer)
    if at.is_empty() and not told:
        return f"Block {layer}: what single heads hold of {model}'s {kind} difference can't be told"
    if table.is_empty():
        return f"{model} changes no {kind} projection"
    if at.is_empty():
        changed = words.blocks(table["layer"].unique().sort().to_list())
        return f"{model} leaves the {kind} projection of block {layer} as it is; it changes {changed}"
    more = at.filter(pl.col("p_holm") < SIGNIFICANT).sort("head")
    if more.is_empty():
        return (
            f"Block {layer}: no head is shown to hold more of {model}'s {kind} difference than chance gives"
        )
    names = more["head"].to_list()
    heads = f"head {names[0]} holds" if len(names) == 1 else f"heads {', '.join(map(str, names))} hold"
    share = f"{100 * more['share'].sum():.0f} %"
    return f"Block {layer}: {heads} {share} of {model}'s squared {kind} difference, more than chance"
