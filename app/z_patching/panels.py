"""Panels of a stored Z-patching run; no Streamlit here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from app.charts.intervals import interval_dots
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.panel import Panel
from app.live.jobs import JobResult
from app.z_patching import words as say
from engine.z_patching.outcomes import METRICS

Code = Callable[[str], str]
PARTS = ("Z", "Z⊥", "full")
CONTROLS = ("pair", "other", "own", "random")
NAMES = {"pair": "same problem", "other": "other problem", "own": "own mean", "random": "random subspaces"}
SHOWN = ("answer changed", "different number", "no answer", "correct → wrong", "language disrupted")
INTERVALS = "Intervals: 95 % Wilson score over problems."


def cell_of(result: JobResult, layer: int, k: int) -> Mapping[str, Any]:
    """The verdict of a block and dimension; the first where there is none."""
    found: list[Mapping[str, Any]] = result.summary["verdicts"]
    return next((v for v in found if (v["layer"], v["k"]) == (layer, k)), found[0])


def of_cell(result: JobResult, found: Mapping[str, Any]) -> pl.DataFrame:
    """Rates of one block and dimension; those of everything patched belong to each k."""
    here = pl.col("layer") == found["layer"]
    return result.tables["rates"].filter(here, (pl.col("k") == found["k"]) | pl.col("k").is_null())


def verdict_panel(
    result: JobResult, found: Mapping[str, Any], code: Code, transported: str | None = None
) -> Panel:
    """Rates of Z, Z⊥ and full with their intervals, under the verdict in words.

    Args:
        transported: see `words.transport_note`.
    """
    chosen = of_cell(result, found).filter(pl.col("source") == "pair", pl.col("metric").is_in(SHOWN))
    order = {name: i for i, name in enumerate(SHOWN)}
    table = (
        chosen.select(name="metric", series="part", value="value", low="low", high="high", n="n")
        .with_columns(order=pl.col("name").replace_strict(order))
        .sort("order", maintain_order=True)
        .drop("order")
    )

    def draw(palette: Palette) -> Chart:
        colors = dict(zip(PARTS, (palette.pair, palette.series[1], palette.null), strict=True))
        return interval_dots(
            table, x_title="share of problems", colors=colors, palette=palette, percent=True, limits=(0, 1)
        )

    likes = of_cell(result, found).filter(pl.col("metric").is_in(["like Z", "like Z⊥"]))
    like = ", ".join(f"{row['metric'][5:]} in {int(row['count'])}" for row in likes.iter_rows(named=True))
    caption = (
        f"{say.setup(result.condition, result.summary)} {say.verdict_caption(found, result.condition)} "
        f"{say.transport_note(found, result.condition, transported)}Patching everything gives the same "
        f"answer and language as {like} of {result.summary['n']}. {INTERVALS}"
    )
    lines = (
        f"rates = run.tables['rates'].filter(pl.col('layer') == {found['layer']}, "
        f"(pl.col('k') == {found['k']}) | pl.col('k').is_null())",
        f"order = {order!r}",
        "table = (",
        "    rates.filter(pl.col('source') == 'pair', pl.col('metric').is_in(list(order)))",
        "    .select(name='metric', series='part', value='value', low='low', high='high', n='n')",
        "    .with_columns(order=pl.col('name').replace_strict(order))",
        "    .sort('order', maintain_order=True)",
        "    .drop('order')",
        ")",
    )
    title = say.verdict_title(found)
    model = (str(result.condition["model"]),)
    return Panel("z-verdict", title, table, draw, code("\n".join(lines)), caption, model, False)


def controls_panel(result: JobResult, found: Mapping[str, Any], code: Code) -> Panel:
    """Changed answers and languages by where the vector came from."""
    rates = of_cell(result, found)
    table = rates.filter(pl.col("metric").is_in(["answer changed", "language disrupted"])).select(
        name=pl.concat_str("part", pl.lit(": "), "metric"),
        series=pl.col("source").replace_strict(NAMES),
        value="value",
        low="low",
        high="high",
        n="n",
    )

    def draw(palette: Palette) -> Chart:
        hues = (palette.pair, palette.series[2], palette.series[5], palette.null)
        return interval_dots(
            table,
            x_title="share of problems",
            colors=dict(zip(NAMES.values(), hues, strict=True)),
            palette=palette,
            percent=True,
            limits=(0, 1),
        )

    said = rates.filter(pl.col("metric") == "other problem's answer", pl.col("source") == "other")
    hits = ", ".join(f"{r['part']} {int(r['count'])}" for r in said.iter_rows(named=True))
    caption = (
        "Who gave the vector. Random subspaces: mean over draws, with the smallest and the largest draw; "
        f"they have Z's dimension (for Z⊥: their complements). {INTERVALS} Interchange: with another "
        f"problem's source the output is that problem's answer in {hits} of {result.summary['n']} problems."
    )
    lines = (
        f"rates = run.tables['rates'].filter(pl.col('layer') == {found['layer']}, "
        f"(pl.col('k') == {found['k']}) | pl.col('k').is_null())",
        f"names = {NAMES!r}",
        "table = rates.filter(pl.col('metric').is_in(['answer changed', 'language disrupted'])).select(",
        "    name=pl.concat_str('part', pl.lit(': '), 'metric'),",
        "    series=pl.col('source').replace_strict(names),",
        "    value='value', low='low', high='high', n='n',",
        ")",
    )
    title = say.controls_title(rates.to_dicts(), found)
    model = (str(result.condition["model"]),)
    return Panel("z-controls", title, table, draw, code("\n".join(lines)), caption, model, False)


def compared_panel(result: JobResult, outcome: str, code: Code) -> Panel:
    """One outcome over blocks and dimensions, Z, Z⊥ and random subspaces of Z's dimension."""
    metric = {"answer": "answer changed", "language": "language disrupted"}[outcome]
    table = (
        result.tables["rates"]
        .filter(
            pl.col("metric") == metric, pl.col("k").is_not_null(), pl.col("source").is_in(["pair", "random"])
        )
        .filter((pl.col("source") == "pair") | (pl.col("part") == "Z"))
        .select(
            name=pl.format("block {}, k = {}", "layer", "k"),
            series=pl.when(pl.col("source") == "random").then(pl.lit("random k")).otherwise("part"),
            value="value",
            low="low",
            high="high",
            n="n",
        )
    )

    def draw(palette: Palette) -> Chart:
        colors = {"Z": palette.pair, "Z⊥": palette.series[1], "random k": palette.null}
        return interval_dots(
            table, x_title=metric, colors=colors, palette=palette, percent=True, limits=(0, 1)
        )

    several = len(result.summary["verdicts"])
    caption = (
        f"{METRICS[metric].capitalize()}. {INTERVALS} Random k: mean, smallest and largest of "
        f"{result.condition['draws']} draws. Each of the {several} cells is tested by itself."
    )
    lines = (
        "table = (",
        f"    run.tables['rates'].filter(pl.col('metric') == {metric!r}, pl.col('k').is_not_null())",
        "    .filter(pl.col('source').is_in(['pair', 'random']))",
        "    .filter((pl.col('source') == 'pair') | (pl.col('part') == 'Z'))",
        "    .select(",
        "        name=pl.format('block {}, k = {}', 'layer', 'k'),",
        "        series=pl.when(pl.col('source') == 'random').then(pl.lit('random k')).otherwise('part'),",
        "        value='value', low='low', high='high', n='n',",
        "    )",
        ")",
    )
    title = say.compared_title(result.summary["verdicts"], outcome)
    model = (str(result.condition["model"]),)
    return Panel(f"z-compared-{outcome}", title, table, draw, code("\n".join(lines)), caption, model, False)


def side_by_side(table: pl.DataFrame, layer: int, k: int) -> pl.DataFrame:
    """One row per problem: the unpatched output and those of Z, Z⊥ and full, with answers and flags.

    Args:
        table: rows of the run, finished or not.
    """
    kept = table.filter(
        pl.col("draw").is_null(),
        (pl.col("part") == "unpatched")
        | (
            (pl.col("source") == "pair")
            & (pl.col("layer") == layer)
            & ((pl.col("k") == k) | pl.col("k").is_null())
        ),
    )
    found = kept.filter(pl.col("part") == "unpatched").select(
        "problem", "pair_id", **{name: pl.col(name) for name in ("text", "answer", "correct", "language")}
    )
    for part in PARTS:
        one = kept.filter(pl.col("part") == part).select(
            "problem",
            pl.col("text").alias(part),
            pl.col("answer").alias(f"{part} answer"),
            pl.col("correct").alias(f"{part} right"),
            pl.col("change").alias(f"{part} change"),
            pl.col("language").alias(f"{part} language"),
            pl.col("disrupted").alias(f"{part} disrupted"),
            pl.col("degenerate").alias(f"{part} degenerate"),
        )
        found = found.join(one, on="problem", how="left")
    return found.rename({"text": "unpatched", "correct": "right"}).sort("problem")


def timeline(table: pl.DataFrame, problem: int, layer: int, k: int) -> dict[str, list[str]]:
    """Pieces of the outputs of one problem, by condition in words."""
    kept = table.filter(
        pl.col("problem") == problem,
        (pl.col("part") == "unpatched")
        | ((pl.col("layer") == layer) & ((pl.col("k") == k) | pl.col("k").is_null())),
    )
    return {condition_name(row): row["tokens"] for row in kept.iter_rows(named=True)}


def condition_name(row: Mapping[str, Any]) -> str:
    """ "Z ← other problem", "random Z⊥ 2", "unpatched"."""
    if row["part"] == "unpatched":
        return "unpatched"
    if row["draw"] is not None:
        return f"random {row['part']} {row['draw'] + 1}"
    return f"{row['part']} ← {NAMES[row['source']]}"
