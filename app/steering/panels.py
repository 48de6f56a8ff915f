"""Panels of stored steering runs: chart, computed title, null and interval; no Streamlit here."""

from __future__ import annotations

import polars as pl

from app.charts.bars import interval_bars
from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.points import named_points
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.steering import words as say

VALIDATION = "table = {table}.filter(pl.col('split') == 'validation')"


def all_panels(opened: Opened, result: JobResult) -> list[Panel]:
    """Shift, cost, one against the other, and both at equal cost where that was run."""
    made = [shift_panel(opened, result), cost_panel(opened, result), frontier_panel(opened, result)]
    return [*made, equal_panel(opened, result)] if "equal" in result.tables else made


def _models(result: JobResult) -> tuple[str, ...]:
    condition = result.condition
    needs = condition["direction"] in ("difference", "leading")
    return (condition["target"], condition["source"]) if needs else (condition["target"],)


def _setting(result: JobResult) -> str:
    """What v is, where it is added, what the words stand for, on which prompts."""
    condition, summary = result.condition, result.summary
    read = words.read_said(condition)
    wanted, neutral = (
        f"{summary['counts'][role]['validation']} validation prompts ({say.named(condition[group])})"
        for role, group in (("wanted", "where"), ("neutral", "neutral"))
    )
    return (
        f"v: {summary['direction']}, from train prompts, length 1; α in units of the site's mean norm "
        f"({summary['norm']:.3g}). {condition['component']} of block {condition['layer']} at "
        f"{words.position_said(condition['position'])}, read {read}. Wanted: {summary['wanted']}; others: "
        f"{summary['against']}. Shift on {wanted}, side effect on {neutral}."
    )


def _how(result: JobResult) -> str:
    interval, check = result.summary["interval"], result.summary["self_check"]
    return (
        f"Bands: {interval['level']:.0%} bootstrap over {interval['unit']}s. The own activation put back "
        f"gives at most {words.nats(check['value'])} nats.{noise.log_note(result.summary)}"
    )


def _curves(result: JobResult, value: str) -> pl.DataFrame:
    """Validation curves of v and of random directions over signed α, as a chart takes them."""
    names = {"direction": "v", "random": _random(result)}
    return result.table.filter(
        (pl.col("split") == "validation") & pl.col("series").is_in(list(names))
    ).select(
        pl.col("alpha").alias("x"),
        pl.col("series").replace_strict(names),
        pl.col(value).alias("value"),
        pl.col(f"{value}_low").alias("low"),
        pl.col(f"{value}_high").alias("high"),
    )


def _random(result: JobResult) -> str:
    return f"mean of {result.condition['draws']} random directions"


def _chosen(result: JobResult) -> dict[str, float]:
    at = result.summary["chosen"]
    return {} if at is None else {"chosen on train": at}


def shift_panel(opened: Opened, result: JobResult) -> Panel:
    """Wanted shift over α."""
    table = result.table.filter(pl.col("split") == "validation")
    lines = _curves(result, "shift")
    spread = table.filter(pl.col("series") == "random").select(
        pl.col("alpha").alias("x"), pl.col("shift_least").alias("low"), pl.col("shift_most").alias("high")
    )

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            lines,
            x_title="α, in mean norms of the site",
            y_title="wanted shift, nats",
            colors={"v": palette.b, _random(result): palette.null},
            palette=palette,
            marks=_chosen(result),
            null=spread,
        )

    budget = result.condition["budget"]
    caption = (
        "Shift: change of log p(wanted) − log p(others). Grey: from the smallest to the largest of the "
        f"random directions. α chosen on train: the largest shift whose side effect stays within {budget:g} "
        f"nats. {_setting(result)} {_how(result)}"
    )
    code = read_run(opened, result, VALIDATION.format(table="run.table"))
    title = say.shift_title(table, result.condition, result.summary)
    return Panel("steer-shift", title, table, draw, code, caption, _models(result), False)


def cost_panel(opened: Opened, result: JobResult) -> Panel:
    """Side-effect KL over α."""
    table = result.table.filter(pl.col("split") == "validation")
    lines = _curves(result, "kl")

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            lines,
            x_title="α, in mean norms of the site",
            y_title="side effect, KL in nats",
            colors={"v": palette.b, _random(result): palette.null},
            palette=palette,
            marks=_chosen(result),
            null=noise.band(result.summary, lines["x"]),
            floor=0.0,
            height=240,
        )

    caption = f"KL(steered ‖ unpatched) on the prompts that should stay. {_setting(result)} {_how(result)}"
    code = read_run(opened, result, VALIDATION.format(table="run.table"))
    title = say.cost_title(table, result.condition, result.summary)
    return Panel("steer-cost", title, table, draw, code, caption, _models(result), False)


def frontier_panel(opened: Opened, result: JobResult) -> Panel:
    """Shift against side effect, every α of v and of random directions, and the ablations."""
    table = result.table.filter(pl.col("split") == "validation")
    names = {
        "direction": "v",
        "random": _random(result),
        "ablate": "v taken away",
        "ablate_mean": "v taken to its mean",
    }
    if result.condition.get("dims", 1) > 1:
        dims = result.condition["dims"]
        names |= {"ablate": f"{dims} taken away", "ablate_mean": f"{dims} taken to their mean"}
        names["ablate_random"] = f"{dims} random ones taken away"
    ablation = pl.col("series").str.starts_with("ablate")
    points = table.select(
        pl.col("kl").clip(0.0).sqrt().alias("x"),
        pl.col("shift").alias("y"),
        pl.when(ablation)
        .then(pl.col("series").replace_strict(names))
        .otherwise(pl.format("α = {}", "alpha"))
        .alias("name"),
        pl.col("series").replace_strict(names),
        pl.lit(None, dtype=pl.String).alias("label"),
    )

    def draw(palette: Palette) -> Chart:
        hues = (palette.b, palette.null, palette.a, palette.pair, palette.mark)[: len(names)]
        return named_points(
            points,
            x_title="√ side effect, √nats",
            y_title="wanted shift, nats",
            colors=dict(zip(names.values(), hues, strict=True)),
            palette=palette,
            name_title="amplitude",
        )

    caption = (
        "One point per α and sign; up and to the left is better. √KL grows about evenly with α. taken away: "
        f"own − (own·v)v; to its mean: own − ((own − μ)·v)v, μ the train mean.{_span_note(result)} "
        f"{_setting(result)} {_how(result)}"
    )
    code = read_run(opened, result, VALIDATION.format(table="run.table"))
    title = say.ablation_title(table, result.condition, result.summary)
    return Panel("steer-frontier", title, table, draw, code, caption, _models(result), False)


def _span_note(result: JobResult) -> str:
    dims = result.condition.get("dims", 1)
    if dims == 1:
        return ""
    return (
        f" Here the part inside {dims} directions B, own − B Bᵀ own, and inside random spans of {dims} (mean "
        f"over {result.condition['draws']} draws); v is the mean difference's part inside B."
    )


def equal_panel(opened: Opened, result: JobResult) -> Panel:
    """v beside each random direction at the same side effect."""
    table = result.tables["equal"].filter(pl.col("split") == "validation")
    level, best = result.summary["equal"]["level"], result.summary["equal"]["best"]
    bars = table.select(
        pl.when(pl.col("series") == "direction")
        .then(pl.lit("v"))
        .otherwise(pl.format("random {}", "draw"))
        .alias("name"),
        pl.col("shift").alias("value"),
        pl.col("shift_low").alias("low"),
        pl.col("shift_high").alias("high"),
        pl.col("series").replace_strict({"direction": "v", "random": "random directions"}),
    )

    def draw(palette: Palette) -> Chart:
        return interval_bars(
            bars,
            x_title="direction",
            y_title="wanted shift, nats",
            colors={"v": palette.b, "random directions": palette.null},
            palette=palette,
            height=260,
        )

    left = result.condition["draws"] - best["draws"]
    caption = (
        f"α of each direction solved so that its side effect on train is {words.nats(level)} nats, that of v "
        "at its chosen α; sign chosen on train for every one of them. "
        + (f"{left} random directions never reach it and are left out. " if left else "")
        + f"{_setting(result)} {_how(result)}"
    )
    code = read_run(opened, result, VALIDATION.format(table="run.tables['equal']"))
    title = say.equal_title(result.summary)
    return Panel("steer-equal", title, table, draw, code, caption, _models(result), False)
