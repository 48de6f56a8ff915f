"""Panels of stored weight-steering runs: figures over α, and all differences at one KL; no Streamlit here."""

from __future__ import annotations

import polars as pl

from app.charts.intervals import interval_dots
from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.weight_steering import words as say
from engine.weight_steering.spec import FIGURES, Figure, WeightSteering

LOGARITHMIC = ("perplexity",)


def all_panels(opened: Opened, result: JobResult, alpha: float) -> list[Panel]:
    """Every figure over α, with the amplitude looked at marked, and those of behaviour at equal KL."""
    have = set(result.table.filter(pl.col("split") == "validation")["figure"])
    made = [curve_panel(opened, result, f, alpha) for f in FIGURES if f.name in have]
    if "equal" in result.tables:
        wanted = [f for f in FIGURES if f.role == "wanted" and f.name in have]
        made[1:1] = [equal_panel(opened, result, figure) for figure in wanted[:2]]
    return made


def spec_of(result: JobResult) -> WeightSteering:
    """The stored experiment."""
    return WeightSteering.from_json(result.condition)


def _models(result: JobResult) -> tuple[str, ...]:
    return spec_of(result).models()


def colours(result: JobResult, palette: Palette) -> dict[str, str]:
    """Differences have colours of their own, random ones are grey."""
    hues = [palette.b, palette.a, *palette.series[2:]]
    series = spec_of(result).series()
    return {
        name: palette.null if name.startswith("random ") else hues[i % len(hues)]
        for i, name in enumerate(series)
    }


def _setting(result: JobResult, figure: Figure) -> str:
    """Whose weights, on which prompts."""
    spec, summary = spec_of(result), result.summary
    group = spec.where if figure.role == "wanted" else spec.neutral
    role = "answered" if figure.kind == "rate" else figure.role
    count = summary["counts"][role]["validation"]
    prompts = f"{count} validation prompts ({group.describe()})"
    return f"{spec.model} with W + αΔW. {figure.meaning} {prompts}."


def _how(result: JobResult, figure: Figure) -> str:
    """Interval and null."""
    interval, spec = result.summary["interval"], spec_of(result)
    method = {"rate": "Wilson's, changes by Newcombe's paired one"}.get(figure.kind, "bootstrap")
    null = "Null: α = 0 is the unsteered model, bit by bit"
    if spec.draws:
        ranks = f"as {spec.series()[0]}, tensor by tensor"
        null += f"; grey: random differences with the same norms and ranks {ranks}"
    noisy = {"rate": "", "mean": noise.log_note(result.summary)}
    told = noisy.get(figure.kind, noise.note(result.summary))
    return f"Intervals: {interval['level']:.0%} {method}, over {interval['unit']}s. {null}.{told}"


def curve_table(table: pl.DataFrame, figure: str) -> pl.DataFrame:
    """One figure on validation, α = 0 in every series: columns x, series, value, low, high."""
    found = table.filter((pl.col("figure") == figure) & (pl.col("split") == "validation"))
    zero, steered = found.filter(pl.col("series") == ""), found.filter(pl.col("series") != "")
    names = steered.select(pl.col("series").unique(maintain_order=True))
    both = pl.concat([steered, names.join(zero.drop("series"), how="cross").select(steered.columns)])
    return both.sort("alpha", maintain_order=True).select(
        pl.col("alpha").alias("x"), "series", "value", "low", "high"
    )


def curve_panel(opened: Opened, result: JobResult, figure: Figure, alpha: float) -> Panel:
    """One figure over α, all differences."""
    table = curve_table(result.table, figure.name)
    first, rate = spec_of(result).series()[0], figure.kind == "rate"
    ends = [pl.when(pl.col("series") == first).then(pl.col(end)).alias(end) for end in ("low", "high")]
    lines_shown = table.with_columns(ends) if rate else table

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            lines_shown,
            x_title="α",
            y_title=f"{figure.title}, {figure.unit}",
            colors=colours(result, palette),
            palette=palette,
            marks={f"α = {alpha:g}": alpha},
            null=noise.band(result.summary, table["x"]) if figure.name == "kl" else None,
            floor=0.0 if rate or figure.name == "kl" else None,
            log_y=figure.name in LOGARITHMIC,
            height=280,
        )

    band = f" Band: of {first} alone, for all others see the data." if rate else ""
    caption = f"{_setting(result, figure)} {_how(result, figure)}{band}"
    title = say.curve_title(result.table, figure, first, alpha, result.summary)
    lines = (
        "from app.weight_steering.panels import curve_table",
        f"table = curve_table(run.table, {figure.name!r})",
    )
    code = read_run(opened, result, *lines)
    return Panel(f"weights-{figure.name}", title, table, draw, code, caption, _models(result), False)


def equal_panel(opened: Opened, result: JobResult, figure: Figure) -> Panel:
    """One figure of all differences at the amplitudes where they cost the same."""
    which = f"(pl.col('split') == 'validation') & (pl.col('figure') == {figure.name!r})"
    table = result.tables["equal"].filter(
        (pl.col("split") == "validation") & (pl.col("figure") == figure.name)
    )
    series = spec_of(result).series()
    dots = table.with_columns(
        pl.format("{}, α = {}", "series", pl.col("alpha").round(2)).alias("name"),
        series=pl.lit("at equal KL"),
    )

    def draw(palette: Palette) -> Chart:
        return interval_dots(
            dots,
            x_title=f"{figure.title}, {figure.unit}",
            colors={"at equal KL": palette.b},
            palette=palette,
            percent=figure.kind == "rate",
            limits=(0.0, 1.0) if figure.kind == "rate" else None,
        )

    given = result.condition["budget"]
    level = result.summary["equal"]["level"]
    source = "set" if given is not None else "the smallest that one of the differences has at α = 1"
    caption = (
        f"α > 0 of each difference solved on train so that its KL to α = 0 is {words.nats(level)} nats there "
        f"({source}). {_setting(result, figure)} {_how(result, figure)}"
    )
    title = say.equal_title(result.summary, result.tables["equal"], figure, series[0], series[1:])
    code = read_run(opened, result, f"table = run.tables['equal'].filter({which})")
    name = f"weights-equal-{figure.name}"
    return Panel(name, title, table, draw, code, caption, _models(result), False)


def samples(result: JobResult, alpha: float) -> pl.DataFrame:
    """Answers side by side: text, the unsteered one, each difference's at the α run nearest to `alpha`."""
    if "samples" not in result.tables:
        return pl.DataFrame()
    made = result.tables["samples"]
    grid = [0.0, *spec_of(result).alphas]
    nearest = min(grid, key=lambda at: (abs(at - alpha), at))
    wide = made.filter(pl.col("series") == "").select("id", "text", pl.col("generated").alias("α = 0"))
    for name in spec_of(result).series() if nearest != 0.0 else ():
        own = made.filter((pl.col("series") == name) & (pl.col("alpha") == nearest))
        wide = wide.join(own.select("id", pl.col("generated").alias(name)), on="id", maintain_order="left")
    return wide.drop("id")
