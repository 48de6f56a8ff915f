"""Panels of stored head results: chart, computed title, null and interval; no Streamlit here."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl

from app.charts.bars import interval_bars
from app.charts.curves import Look, layer_curve
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.points import named_points
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.heads import words as say
from app.live.jobs import JobResult

BESIDE = 8.0
"""Percent: two points of one head that are closer carry one name, not two over each other."""
VECTORS = {"literal": "literal", "raw": "moment-matched"}
CURVES = {"greedy": "grown greedily", "ranked": "by rank alone", "random": "random sets"}


def cells_chart(cells: pl.DataFrame, value: str, title: str, layer: int, palette: Palette) -> Chart:
    """Head × block, coloured by a column."""
    return matrix(
        cells,
        x="layer",
        y="head",
        value=value,
        x_title="Block ℓ",
        y_title="Head",
        value_title=title,
        palette=palette,
        selected={"layer": layer},
    )


def prompts(result: JobResult) -> str:
    """Which prompts, and what was put in."""
    condition, summary = result.condition, result.summary
    chosen = words.limits_said(condition)
    read = words.read_said(condition)
    return (
        f"{summary['n_validation']} validation prompts{''.join(f', {c}' for c in chosen)}; "
        f"{condition['component']} of {condition['source']}, {VECTORS[condition['vectors']]}, put in at "
        f"{words.position_said(condition['position'])} and read {read}."
    )


def _base(result: JobResult) -> str:
    """What 100 % is, the null and the interval."""
    effect, interval = result.summary["effect"], result.summary["interval"]
    return (
        f"100 %: all heads together, KL {words.nats_span(effect)}. Null: the own activation put back gives "
        f"at most {words.nats(result.summary['self_check']['value'])} nats. Intervals: "
        f"{interval['level']:.0%} paired bootstrap over {interval['unit']}s.{noise.note(result.summary)}"
    )


def singles_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """Every head alone, in the order of the ranking on train."""
    table = result.tables["table"]
    carrying = (result.summary["carrying"] or {}).get("heads", [])
    series = pl.when(pl.col("head").is_in(carrying)).then(pl.lit("carrying set")).otherwise(pl.lit("others"))
    bars = table.sort("rank").select(
        pl.col("head").cast(pl.String).alias("name"),
        pl.col("coverage").alias("value"),
        "low",
        "high",
        series.alias("series"),
    )

    def draw(palette: Palette) -> Chart:
        return interval_bars(
            bars,
            x_title=f"Head of block {result.condition['layer']}, by rank on train",
            y_title="coverage alone, % of all heads",
            colors={"carrying set": palette.b, "others": palette.null},
            palette=palette,
            references={"all heads": 100.0},
        )

    title = say.singles_title(table, result.condition, result.summary)
    caption = (
        f"{prompts(result)} {_base(result)} Ranked on {result.summary['n_train']} train prompts. KL isn't "
        "additive: coverages need not sum to 100."
    )
    return Panel("heads-alone", title, table, draw, code("table"), caption, result.models, False)


def curve_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """Coverage against the number of heads: greedy, ranked, random."""
    curve = result.tables["curve"]
    lines = curve.select(
        pl.col("k").alias("layer"),
        pl.col("kind").replace_strict(CURVES).alias("series"),
        pl.col("coverage").alias("value"),
        "low",
        "high",
    )

    def draw(palette: Palette) -> Chart:
        look = Look(
            "coverage, % of all heads",
            dict(zip(CURVES.values(), (palette.b, palette.a, palette.null), strict=True)),
            x_title="heads in the set",
            references={"all heads": 100.0},
            height=300,
        )
        return layer_curve(lines, look, palette)

    draws = result.condition["draws"]
    caption = (
        f"{prompts(result)} {_base(result)} Greedy and ranked sets are chosen on the "
        f"{result.summary['n_train']} train prompts, and reported on validation. Grey: mean and "
        f"{result.summary['interval']['level']:.0%} range over {draws} random sets of each size (all sets "
        "where there are fewer)."
    )
    title = say.curve_title(curve, result.condition, result.summary)
    return Panel("heads-sets", title, curve, draw, code("curve"), caption, result.models, False)


def without_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """What all heads but one cover."""
    table = result.tables["table"]
    bars = table.sort("rank").select(
        pl.col("head").cast(pl.String).alias("name"),
        pl.col("without_coverage").alias("value"),
        pl.col("without_low").alias("low"),
        pl.col("without_high").alias("high"),
        pl.lit("all but this head").alias("series"),
    )

    def draw(palette: Palette) -> Chart:
        return interval_bars(
            bars,
            x_title="Head left out, by rank on train",
            y_title="what is left, % of all heads",
            colors={"all but this head": palette.pair},
            palette=palette,
            references={"all heads": 100.0},
            height=240,
        )

    title = say.without_title(table, result.condition, result.summary)
    caption = (
        f"{prompts(result)} {_base(result)} A low bar: the head is needed; no other head stands in for it."
    )
    return Panel("heads-without", title, table, draw, code("table"), caption, result.models, False)


def _pair_grid(pairs: pl.DataFrame, value: str, title: str, palette: Palette, diverging: bool) -> Chart:
    few = pairs["first"].n_unique() <= 10
    return matrix(
        pairs,
        x="second",
        y="first",
        value=value,
        x_title="Head",
        y_title="Head",
        value_title=title,
        palette=palette,
        diverging=diverging,
        labels=few,
        format=".1f",
    )


def pairs_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """What two heads cover together."""
    pairs, summary = result.tables["pairs"], result.summary

    def draw(palette: Palette) -> Chart:
        return _pair_grid(pairs, "coverage", "coverage of both, %", palette, False)

    title = say.both_title(pairs, result.condition, summary)
    few = len(summary["pair_heads"]) < summary["n_heads"]
    which = f"Pairs of the first {len(summary['pair_heads'])} heads of the train ranking. " if few else ""
    caption = f"{which}{prompts(result)} {_base(result)}"
    return Panel("heads-pairs", title, pairs, draw, code("pairs"), caption, result.models, False)


def interaction_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """What two heads do together beyond the sum of both alone."""
    pairs = result.tables["pairs"]

    def draw(palette: Palette) -> Chart:
        return _pair_grid(pairs, "interaction", "interaction, % of all heads", palette, True)

    caption = (
        f"KL of both − KL of one − KL of the other, in percent of all heads' KL. {prompts(result)} "
        f"{_base(result)} The intervals of the interactions hold for all {pairs.height} pairs together. "
        "KL grows like the square of a small change, so heads that push the same way interact positively."
    )
    title = say.pairs_title(pairs, result.condition, result.summary)
    return Panel("heads-interaction", title, pairs, draw, code("pairs"), caption, result.models, False)


def predictors_panel(result: JobResult, code: Callable[[str], str]) -> Panel:
    """Measured coverage against gradient × activation and direct logit attribution."""
    table = result.tables["table"]
    points = pl.concat(
        table.select(
            (100 * pl.col(key) / pl.col(key).max()).alias("x"),
            pl.col("coverage").alias("y"),
            pl.col("head").cast(pl.String).alias("name"),
            pl.lit(name).alias("series"),
        )
        for key, name in say.PREDICTORS.items()
    )
    apart = (pl.col("x") - pl.col("x").first().over("name")).abs() > BESIDE
    first = pl.col("series") == next(iter(say.PREDICTORS.values()))
    far = (pl.col("x") > 2) | (pl.col("y") > 2)
    points = points.with_columns(label=pl.when(far & (first | apart)).then(pl.col("name")))

    def draw(palette: Palette) -> Chart:
        hues = dict(zip(say.PREDICTORS.values(), (palette.b, palette.a), strict=True))
        return named_points(
            points,
            x_title="prediction, % of the largest",
            y_title="measured coverage alone, %",
            colors=hues,
            palette=palette,
        )

    caption = (
        f"{prompts(result)} Both predict how log p of {result.condition['target']}'s own most likely next "
        "token moves, mean size over prompts: by its gradient (all later blocks included), and straight "
        f"through the frozen final norm. {_base(result)} ρ: Spearman's, p by permutation over "
        f"{result.summary['n_heads']} heads; null: heads in random order."
    )
    title = say.predictors_title(result.summary)
    return Panel("heads-predicted", title, table, draw, code("table"), caption, result.models, False)


def map_panel(result: JobResult, selection: Selection, code: Callable[[str], str]) -> Panel:
    """Coverage of every head alone, in percent of its own block's heads."""
    table, interval = result.tables["table"], result.summary["interval"]

    def draw(palette: Palette) -> Chart:
        return cells_chart(table, "coverage", "coverage alone, % of the block", selection.layer, palette)

    caption = (
        f"{prompts(result)} 100 %: all heads of the same block. Empty: all heads together do nothing beyond "
        f"rounding, {words.nats(result.summary['self_check']['value'])} nats with the own activation put "
        f"back. Intervals: {interval['level']:.0%} paired bootstrap over {interval['unit']}s. Ranked on "
        f"{result.summary['n_train']} train prompts. A click selects the block.{noise.note(result.summary)}"
    )
    title = say.map_title(table, result.condition, result.summary)
    return Panel("heads-map", title, table, draw, code("table"), caption, result.models)


def cells_panel(result: JobResult, selection: Selection, code: Callable[[str], str]) -> Panel:
    """KL of every head alone, in nats, so that blocks can be compared."""
    table, interval = result.tables["table"], result.summary["interval"]

    def draw(palette: Palette) -> Chart:
        return cells_chart(table, "kl", "KL alone, nats", selection.layer, palette)

    caption = (
        f"{prompts(result)} Null: 0; the own activation put back gives at most "
        f"{words.nats(result.summary['self_check']['value'])} nats. Intervals: {interval['level']:.0%} "
        f"bootstrap over {interval['unit']}s. A click selects the block.{noise.note(result.summary)}"
    )
    title = say.cells_title(table, result.condition, result.summary)
    return Panel("heads-map-nats", title, table, draw, code("table"), caption, result.models)


def kl_panel(result: JobResult, selection: Selection, code: Callable[[str], str]) -> Panel:
    """KL of all heads of each block, and what blocks can be compared by."""
    blocks = result.tables["blocks"]
    curve = blocks.with_columns(value=pl.col("kl"), series=pl.lit("all heads"))

    floor = noise.kl_floor(result.summary)

    def draw(palette: Palette) -> Chart:
        look = Look(
            "KL of all heads, nats",
            {"all heads": palette.b},
            references=noise.lines(result.summary),
            selected=selection.layer,
            height=240,
        )
        return layer_curve(curve, look, palette)

    interval = result.summary["interval"]
    caption = (
        f"{prompts(result)} What 100 % means in each block of the map above. Band: {interval['level']:.0%} "
        f"bootstrap over {interval['unit']}s. Null: 0, the KL of the model's own activation."
        f"{noise.note(result.summary)}"
    )
    title = say.kl_title(blocks, result.condition, floor)
    return Panel("heads-blocks", title, blocks, draw, code("blocks"), caption, result.models)
