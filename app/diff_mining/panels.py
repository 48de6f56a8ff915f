"""Panels of a stored run: the tokens, where they change, and topics among those that are raised."""

from __future__ import annotations

from typing import Any

import polars as pl

from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.signed_bars import signed_bars
from app.charts.template import Chart
from app.diff_mining import words
from app.difference_lens.panels import CHANCE, PROMOTED, SUPPRESSED
from app.difference_lens.words import counted, names_of
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.snippets import read_run
from app.live.jobs import JobResult

__all__ = ["panels"]

SHOWN = 6
"""Tokens of a topic that its row has."""


def panels(opened: Opened, result: JobResult, _selection: Selection) -> list[Panel]:
    """The tokens; topics where there are any."""
    made = [tokens_panel(opened, result)]
    return made if result.tables["topics"].is_empty() else [*made, topics_panel(opened, result)]


def _models(result: JobResult) -> tuple[str, str]:
    return result.condition["target"], result.condition["source"]


def tokens_panel(opened: Opened, result: JobResult) -> Panel:
    """The tokens whose expected counts change most, as factors, with limits for all tested at once."""
    table = result.table
    kind = pl.when("beyond").then("side").otherwise(pl.lit(CHANCE))
    drawn = table.select(
        name=pl.Series(names_of(table), dtype=pl.String),
        value="mean",
        low="low",
        high="high",
        series=kind,
    )

    def draw(palette: Palette) -> Chart:
        hues = {PROMOTED: palette.b, SUPPRESSED: palette.a, CHANCE: palette.null}
        return signed_bars(
            drawn,
            x_title="log p, mean change (nats)",
            name_title="token",
            colors={name: hue for name, hue in hues.items() if name in set(drawn["series"])},
            palette=palette,
        )

    title = words.tokens_title(_models(result), table, result.summary)
    code = read_run(opened, result, "table = run.table")
    return Panel("diff-mining", title, table, draw, code, _caption(result), _models(result), False)


def _caption(result: JobResult) -> str:
    summary, (target, source) = result.summary, _models(result)
    what = "texts" if summary["unit"] == "text" else "prompts"
    shared = f", without {summary['shared']} beginnings that units share" if summary["shared"] else ""
    bar = "chance and rounding" if summary["measured"] else "chance (the models' rounding was not measured)"
    return (
        f"{target} beside {source} behind {summary['contexts']:,} tokens of {summary['n']} {what}{shared}; "
        f"KL {summary['kl']:.3g} nats a token. "
        f"Of each unit the expected counts of a token are compared: log p_{target}/p_{source}, mean over "
        f"{counted(summary['units'], summary['unit'])}; 0.69 is twice as often. Lines: limits for all "
        f"{summary['tested']:,} tokens that are said at least once in "
        f"{1 / result.condition['least']:,.0f} tokens, at once, by sign flips and a bootstrap of whole "
        f"units; {summary['beyond']:,} exceed {bar}."
    )


def topics_panel(opened: Opened, result: JobResult) -> Panel:
    """Tokens that are raised behind the same contexts."""
    table = result.tables["topics"]
    shown = table.filter(pl.col("rank") < SHOWN)
    facts: dict[int, dict[str, Any]] = {
        row["topic"]: row for row in table.unique("topic", keep="first").iter_rows(named=True)
    }

    def name(topic: int) -> str:
        row = facts[topic]
        return f"{topic + 1} ({100 * row['share']:.0f} %, {row['stability']:.2f})"

    cells = shown.select(
        topic=pl.col("topic").map_elements(name, return_dtype=pl.String),
        token=pl.Series(names_of(shown.with_columns(rank=0)), dtype=pl.String),
        weight="weight",
    )

    def draw(palette: Palette) -> Chart:
        return matrix(
            cells,
            x="topic",
            y="token",
            value="weight",
            x_title="topic (share, found again)",
            y_title="token",
            value_title="share of the topic",
            palette=palette,
            format=".2f",
        )

    title = words.topics_title(table)
    caption = (
        "Tokens beyond chance that the target says more, by the contexts behind which they are raised, each "
        "on its own scale: non-negative factors of contexts × tokens (NMF). Found again: the mean cosine "
        f"with the most alike topic in resamples of whole units; from {words.STABLE} on a topic is named."
    )
    code = read_run(opened, result, 'table = run.tables["topics"]')
    return Panel("diff-mining-topics", title, table, draw, code, caption, _models(result), False)
