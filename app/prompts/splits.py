"""Panels of the splits: how balanced they are, and whether text of one leaks into the other."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from app.charts.grids import stacked_bars
from app.charts.palette import Palette
from app.charts.steps import remaining_curve
from app.charts.template import Chart
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.prompts import tables as asked
from engine.stats.uncertainty import Interval


def balance_panel(opened: Opened) -> Panel:
    """Prompts per category, language and split."""
    call = Call(asked.balance, opened.store)

    def draw(palette: Palette) -> Chart:
        shown, hues = ["train", "validation"], [palette.series[4], palette.series[5]]
        return stacked_bars(call.table, x_title="prompts", y_title=None, colors=hues, series=shown)

    caption = (
        "Splits are made by group (pair_id, else id) inside every category, so that every category gives the "
        "same share up to one group; a group in both splits is refused when prompts are read. Counts, not "
        "estimates: nothing to compare with and no interval."
    )
    title = balance_title(call.table, asked.parted_by(opened.store))
    return Panel.of(call, "balance", title, draw, caption, (), False)


def balance_title(table: pl.DataFrame, by: Sequence[str]) -> str:
    """How many prompts there are, and between which shares of a bar validation lies.

    Args:
        table: columns name, series (split), value.
        by: what the bars are, such as category and language.
    """
    total = int(table["value"].sum())
    validation = pl.col("value").filter(pl.col("series") == "validation").sum()
    share = table.group_by("name").agg(share=100 * validation / pl.col("value").sum())["share"]
    overall = int(table.filter(series="validation")["value"].sum()) / max(total, 1)
    text = f"{total} prompts, {100 * overall:.0f} % of them validation"
    if len(share) < 2:
        return text
    low, high = (f"{end:.0f}" for end in share.sort().gather([0, -1]))
    between = f"{low}" if low == high else f"{low} to {high}"
    return f"{text}: {between} % of every {' and '.join(by)}"


def leakage_panel(opened: Opened) -> Panel | None:
    """How near validation texts are to train texts, beside how near train texts are to each other."""
    found = asked.overlaps(opened.store)
    across = found.filter(series="validation to train")
    if not across["nearest"].drop_nulls().len():
        return None
    call = Call(asked.leakage, opened.store)

    def draw(palette: Palette) -> Chart:
        colors = {"validation to train": palette.pair, "within train": palette.null}
        return remaining_curve(
            call.table,
            x_title="overlap with the nearest train prompt",
            y_title="prompts",
            colors=colors,
            palette=palette,
            at=asked.NEAR,
            dashed="within train",
        )

    near = {
        name: asked.share(part["overlap"].fill_null(0.0) >= asked.NEAR, part["group"])
        for name, part in (("across", across), ("within", found.filter(series="within train")))
    }
    caption = (
        "Share of prompts whose nearest train prompt of another group overlaps at least so much (Jaccard "
        "overlap of character trigrams after NFKC, lower case and single spaces; 1 = the same text). "
        f"At {asked.NEAR} (rule): {_share(near['across'])} of validation groups; dashed, what texts of this "
        f"study have in common without a split between them: {_share(near['within'])} of train groups "
        f"against the others. Wilson intervals over groups, {100 * asked.LEVEL:.0f} %. A group in both "
        "splits is impossible: splits are made by group, and given ones that overlap are refused."
    )
    return Panel.of(call, "leakage", leakage_title(across, near), draw, caption, (), False)


def _share(interval: Interval | None) -> str:
    if interval is None:
        return "none"
    middle, low, high = (100 * end for end in (interval.estimate, interval.low, interval.high))
    return f"{middle:.0f} % ({low:.0f} to {high:.0f} %)"


def leakage_title(across: pl.DataFrame, near: dict[str, Interval | None]) -> str:
    """How many validation texts are in train, and whether near copies are more than a study's own.

    Rule: more (or fewer) than within train when the two intervals do not overlap.

    Args:
        across: from `engine.prompts.overlap.split_overlaps`, validation to train.
        near: shares of groups with a near-identical prompt, "across" the splits and "within" train.
    """
    same, close = int(across["same"].sum()), int((across["overlap"] >= asked.NEAR).sum())
    if not close:
        return f"None of {across.height} validation texts is in train, nor nearly so"
    text = f"{same} of {across.height} validation texts {'is' if same == 1 else 'are'} in train"
    text = f"{text}, {close - same} more nearly so"
    one, two = near["across"], near["within"]
    if one is None or two is None:
        return text
    if one.low > two.high:
        return f"{text}; more than train texts are among themselves"
    if one.high < two.low:
        return f"{text}; fewer than train texts are among themselves"
    return f"{text}; not shown to be more than train texts are among themselves"


def worst_pairs(opened: Opened, most: int = 200) -> pl.DataFrame:
    """The validation prompts nearest to train, with both texts: overlap, validation, train, texts."""
    found = asked.overlaps(opened.store).filter(series="validation to train").drop_nulls("nearest")
    texts = opened.store.prompts.select("id", "text")
    return (
        found.head(most)
        .join(texts, on="id", how="left", maintain_order="left")
        .join(texts.rename({"id": "nearest", "text": "train text"}), on="nearest", how="left")
        .sort("overlap", descending=True, maintain_order=True)
        .select(
            "overlap", validation="id", train="nearest", **{"validation text": "text"}, other="train text"
        )
        .rename({"other": "train text"})
    )
