"""Panels of what two models make of the same prompts: shared vocabulary, tokens of one only, lengths."""

from __future__ import annotations

import polars as pl

from app.charts.grids import stacked_bars
from app.charts.palette import Palette
from app.charts.steps import remaining_curve
from app.charts.template import Chart
from app.frame import prompts as queries
from app.frame import words
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.prompts import tables as asked
from app.prompts.fields import PromptFields
from engine.prompts.overlap import remaining
from engine.stats.uncertainty import Interval

WHY_EMPTY = (
    "This store does not know its tokens' strings",
    "Which tokens two models share is a question about strings, and this store was written without them. "
    "Run precompute.py on the same study into a new folder: shared vocabulary and its threshold appear here.",
)
THRESHOLD_HELP = (
    "Prompts are kept whose content tokens are in both vocabularies to at least this share, in both models' "
    "own tokens. 0 keeps all."
)
MOST_TOKENS = 16


def kept(opened: Opened, selection: Selection) -> pl.DataFrame:
    """The prompts that a selection keeps; columns as in `tables.kept_prompts`."""
    which, own = queries.chosen_filter(selection), PromptFields.of(selection)
    return asked.kept_prompts(opened.store, selection.a, selection.b, which, own.threshold)


def shared_panel(opened: Opened, selection: Selection) -> Panel:
    """Which share of every category remains at each least shared-vocabulary ratio."""
    a, b = selection.a, selection.b
    store, which = opened.store, queries.chosen_filter(selection)
    call = Call(asked.remaining_shared, store, a=a, b=b, which=which)
    table, keep = call.table, queries.rows(store, which)
    ratio, series = asked.ratios(store, a, b)["ratio"].gather(keep), asked.categories(store, a, b, keep)

    def draw(palette: Palette) -> Chart:
        names = [name for name in table["series"].unique(maintain_order=True) if name != "all"]
        hues = [palette.series[i % len(palette.series)] for i in range(len(names))]
        colors = {"all": palette.mark} | dict(zip(names, hues, strict=True))
        return remaining_curve(
            table,
            x_title="least shared-vocabulary ratio",
            y_title="prompts that remain",
            colors=colors,
            palette=palette,
            at=PromptFields.of(selection).threshold,
            dashed="all",
        )

    sizes = asked.vocabulary(store, a, b)
    caption = (
        f"Ratio: the smaller, over {a} and {b}, of a prompt's content tokens whose string both vocabularies "
        f"have; by string, never by id. Vocabularies: {sizes['n_a']:,} and {sizes['n_b']:,} tokens, "
        f"{sizes['shared']:,} strings in both, {sizes['same_id']:,} of them under the same id. Two models "
        "with one vocabulary would have 1 everywhere. Counts of these prompts, not estimates: no interval."
    )
    title = shared_title(ratio, series, selection, sizes)
    return Panel.of(call, "shared", title, draw, caption, (a, b), False)


def shared_title(
    ratio: pl.Series, series: pl.Series | None, selection: Selection, sizes: dict[str, int]
) -> str:
    """One vocabulary or two, and how many prompts the threshold keeps."""
    own = PromptFields.of(selection)
    a, b, n = selection.a, selection.b, len(ratio)
    if sizes["n_a"] == sizes["n_b"] == sizes["shared"]:
        ids = "" if sizes["same_id"] == sizes["shared"] else " under other ids"
        return (
            f"{a} and {b} have the same {sizes['shared']:,} tokens{ids}: the ratio is 1 for all {n} prompts"
        )
    if own.threshold == 0:
        low, middle = (f"{100 * ratio.quantile(part):.0f}" for part in (0.0, 0.5))  # type: ignore[operator]
        return f"{a} and {b} share {middle} % of a prompt's tokens in the median, {low} % in the least"
    keep = (ratio.fill_nan(None) >= own.threshold).fill_null(False)
    text = f"{int(keep.sum())} of {n} prompts remain at {own.threshold:.2f}"
    if series is None or keep.all():
        return text
    counts = pl.DataFrame({"keep": keep, "series": series}).group_by("series")
    least = counts.agg(pl.col("keep").sum(), pl.len()).sort(pl.col("keep") / pl.col("len"), "series")
    name, left, of = least.row(0)
    return text + f"; of {name}, {left} of {of}"


def unshared_panel(opened: Opened, selection: Selection) -> Panel | None:
    """The tokens that one vocabulary lacks; None when there are none in these prompts."""
    a, b = selection.a, selection.b
    call = Call(asked.unshared, opened.store, a=a, b=b, which=queries.chosen_filter(selection))
    found = call.table
    if not found.height:
        return None
    told = pl.when(pl.col("text").str.contains("�") | (pl.col("text") == "")).then("token").otherwise("text")
    name = pl.lit("“") + told.str.replace_all("\n", "⏎") + pl.lit("”")
    top = found.head(MOST_TOKENS).select(name.alias("name"), series="model", value="occurrences")

    def draw(palette: Palette) -> Chart:
        hues = {a: palette.a, b: palette.b}
        return stacked_bars(
            top, x_title="times in these prompts", y_title=None, colors=list(hues.values()), series=list(hues)
        )

    own = {model: found.filter(model=model).height for model in (a, b)}
    title = (
        f"{own[a]} tokens of {a} are not in {b}'s vocabulary, {own[b]} of {b} are not in {a}'s; "
        f"most frequent: {top['name'][0]}, {top['value'][0]} times"
    )
    caption = (
        f"Content tokens by string; colour: the model that uses them. The {top.height} most frequent of "
        f"{found.height}; the table under Data has them all, with the model that lacks each and the number "
        "of prompts it stands in. Counts, no interval; two models with one vocabulary would have none."
    )
    return Panel.of(call, "unshared", title, draw, caption, (a, b), False)


def lengths_panel(opened: Opened, selection: Selection) -> Panel:
    """Share of prompts with at least so many tokens, for each model of the pair."""
    a, b, which = selection.a, selection.b, queries.chosen_filter(selection)
    queries.require(queries.rows(opened.store, which), 1)
    call = Call(asked.lengths, opened.store, models=(a, b), which=which)
    table = call.table
    longest = int(table["value"].max())  # type: ignore[arg-type]
    curve = remaining(table["value"], table["series"], [float(n) for n in range(longest + 2)])

    def draw(palette: Palette) -> Chart:
        return remaining_curve(
            curve,
            x_title="tokens of the rendered prompt",
            y_title="prompts at least so long",
            colors={a: palette.a, b: palette.b} if a != b else {a: palette.a},
            palette=palette,
            dashed=b if a != b else None,
            format="d",
        )

    medians = ", ".join(
        f"{model} {words.number(float(table.filter(series=model)['value'].median()), 0)}"  # type: ignore[arg-type]
        for model in dict.fromkeys((a, b))
    )
    ratio = asked.length_ratio(opened.store, a, b, which) if a != b else None
    caption = f"Tokens with the chat template, as they were run. Medians: {medians}. " + (
        ""
        if ratio is None
        else f"Ratio of the means, bootstrap over groups, {100 * asked.LEVEL:.0f} %; 1 = no difference."
    )
    title = lengths_title(table, selection, ratio)
    return Panel.of(call, "lengths", title, draw, caption, (a, b), False)


def lengths_title(table: pl.DataFrame, selection: Selection, ratio: Interval | None) -> str:
    """Whether one model needs more tokens than the other, by the interval of the ratio of means."""
    a, b = selection.a, selection.b
    one, two = (table.filter(series=model).sort("row")["value"] for model in (a, b))
    ends = f"{_whole(one.min())} to {_whole(one.max())}"
    if a == b:
        return f"Prompts of {a} have {ends} tokens"
    if one.equals(two):
        return f"Every prompt has as many tokens for {a} as for {b}: {ends}"
    if ratio is None or ratio.low <= 1.0 <= ratio.high:
        return f"{a} and {b} are not shown to differ in the tokens they need"
    more, less = (b, a) if ratio.estimate > 1 else (a, b)
    told = [ratio.estimate, ratio.low, ratio.high]
    middle, low, high = told if ratio.estimate > 1 else (1 / told[0], 1 / told[2], 1 / told[1])
    return f"{more} needs {words.number(middle)}{words.span(low, high)} times the tokens of {less}"


def _whole(value: object) -> str:
    return f"{float(value):.0f}"  # type: ignore[arg-type]
