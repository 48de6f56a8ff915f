"""Panels of stored rank sweeps: chart, computed title, null and interval; no Streamlit here."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from app.charts.lines import numeric_lines
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import noise, words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.rank import words as say
from engine.rank.report import path

BASES = {"map": "what the map writes", "difference": "leading differences"}


def all_panels(opened: Opened, result: JobResult, alpha: float) -> list[Panel]:
    """Heatmap and curve of the map's ranks where it has any, the swap's curve, and spectra."""
    made = []
    if result.summary["truncated"] is not None:
        made += [map_panel(opened, result, alpha), path_panel(opened, result, alpha)]
    made.append(projector_panel(opened, result, alpha))
    return made + [spectrum_panel(opened, result, name) for name in result.summary["spectra"]]


def _setting(result: JobResult) -> str:
    """Where, which map, on which prompts."""
    condition, summary = result.condition, result.summary
    where = words.limits_said(condition)
    amplitude = "the deviation from the train mean" if condition["scale"] == "deviation" else "the vector"
    read = words.read_said(condition)
    return (
        f"{condition['component']} of block {condition['layer']}, {summary['map']}; α scales {amplitude}; "
        f"put in at {words.position_said(condition['position'])}, read {read}; {', '.join([*where, ''])}"
        f"{summary['n_validation']} validation prompts, chosen on {summary['n_train']} train prompts, each "
        "mapped by a map fitted without it."
    )


def _how(result: JobResult) -> str:
    """Interval and self-patch null."""
    interval, check = result.summary["interval"], result.summary["self_check"]
    return (
        f"Intervals: {interval['level']:.0%} paired bootstrap over {interval['unit']}s. Null: the own "
        f"activation put back gives at most {words.nats(check['value'])} nats.{noise.note(result.summary)}"
    )


def _drop(result: JobResult) -> str:
    raw = "; α scales it too" if result.condition["raw_alpha"] == "scaled" else ", at α = 1"
    return f"drop = 100 (KL₀ − KL)/KL₀, KL₀ of {say.against(result.summary)}{raw}."


def map_panel(opened: Opened, result: JobResult, alpha: float) -> Panel:
    """drop% over k × α."""
    keep = "(pl.col('kind') == 'truncated') & (pl.col('split') == 'validation')"
    table = result.table.filter((pl.col("kind") == "truncated") & (pl.col("split") == "validation"))
    found = result.summary["truncated"]
    marked = found["best"] if not found["reason"] else {"alpha": alpha}
    shown = table.with_columns(pl.col("k").cast(pl.String))
    chosen = {name: str(v) if name == "k" else v for name, v in marked.items()}

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="k",
            y="alpha",
            value="value",
            x_title="rank k of the map",
            y_title="α",
            value_title="drop, %",
            palette=palette,
            selected=chosen,
            format=",.3~r",
            compressed=10.0,
        )

    caption = (
        "Outlined: the best cell on train. Colours follow the logarithm beyond ±10 %; −100 % is twice the "
        f"disturbance. {_drop(result)} {_setting(result)} {_how(result)}"
    )
    code = read_run(opened, result, f"table = run.table.filter({keep})")
    title = say.map_title(result.table, result.summary)
    return Panel("rank-map", title, table, draw, code, caption, result.models, False)


def path_panel(opened: Opened, result: JobResult, alpha: float) -> Panel:
    """drop% over k: at the best α of each k on train, and at the chosen α."""
    table, found = path(result.tables, "truncated", alpha), result.summary["truncated"]
    lines = _lines(table, {"best α": "best α of each k (train)", "this α": f"α = {alpha:g}"})
    marks = {}
    if found["smallest"]:
        marks = {"within one standard error": found["smallest"]["k"], "best on train": found["best"]["k"]}

    def draw(palette: Palette) -> Chart:
        names = ("best α of each k (train)", f"α = {alpha:g}")
        return numeric_lines(
            lines,
            x_title="rank k of the map",
            y_title="drop, %",
            colors=dict(zip(names, (palette.b, palette.a), strict=True)),
            palette=palette,
            log_x=True,
            marks=marks,
            floor=-100.0,
        )

    caption = (
        "One standard error: of the paired difference from the best rank's KL, on train. "
        f"{_drop(result)} {_setting(result)} {_how(result)}"
    )
    title = say.path_title(result.table, result.summary)
    code = _path_code(opened, result, "truncated", alpha)
    return Panel("rank-drop", title, table, draw, code, caption, result.models, False)


def projector_panel(opened: Opened, result: JobResult, alpha: float) -> Panel:
    """Coverage over k of the projector at the chosen α, beside random bases."""
    table, summary = path(result.tables, "projector", alpha), result.summary
    found = next(at for at in summary["projector"] if at["alpha"] == alpha)
    draws = result.condition["draws"]
    names = {"this α": BASES[result.condition["basis"]], "random": f"random directions ({draws} draws)"}
    lines = _lines(table, names)
    marks = {"within one standard error": found["smallest"]} if found["smallest"] else {}

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            lines,
            x_title="directions swapped, k",
            y_title="coverage, % of the whole swap",
            colors=dict(zip(names.values(), (palette.b, palette.null), strict=True)),
            palette=palette,
            log_x=True,
            marks=marks,
        )

    basis = (
        "orth(C_y^½ V_k), what a map of rank k writes"
        if result.condition["basis"] == "map"
        else "leading directions of mapped − own on train, not centred"
    )
    caption = (
        f"own + P_k(mapped − own): the part of the replacement inside k directions ({basis}), α = {alpha:g}. "
        "coverage = 100 KL_k / KL of the whole swap; it may exceed 100. Chance: random directions, averaged "
        f"per prompt. {_setting(result)} {_how(result)}"
    )
    title = say.projector_title(result.table, summary, alpha)
    code = _path_code(opened, result, "projector", alpha)
    return Panel("rank-swap", title, table, draw, code, caption, result.models, False)


def spectrum_panel(opened: Opened, result: JobResult, name: str) -> Panel:
    """Singular values with their null."""
    table = result.tables["spectrum"].filter(pl.col("series") == name)
    what, chance, how = {
        "difference": (
            "the squared difference mapped − own",
            "with random signs",
            "Singular values of mapped − own over all train prompts, not centred. Grey: 95 % of 20 spectra "
            "after every entry got a random sign: sizes stay, what entries have in common goes.",
        ),
        "map": (
            "the squared singular values of the map's core",
            "with wrong pairs",
            "Singular values of X_wᵀY_w, the whitened cross-product whose rotation the map is. Grey: 95 % of "
            "20 maps fitted on wrong pairs.",
        ),
    }[name]
    top = float(table["value"].max() or 1.0)  # type: ignore[arg-type]
    floor = 1e-8 * top
    shown = [("observed", "value", "value", "value")]
    shown += [(chance, "null_high", "null_low", "null_high")]
    lines = pl.concat(
        table.select(
            pl.col("index").cast(pl.Float64).alias("x"),
            pl.col(value).clip(floor).alias("value"),
            pl.col(low).clip(floor).alias("low"),
            pl.col(high).clip(floor).alias("high"),
            series=pl.lit(series),
        )
        for series, value, low, high in shown
    )

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            lines,
            x_title="direction",
            y_title="singular value",
            colors={"observed": palette.b, chance: palette.null},
            palette=palette,
            log_x=True,
            log_y=True,
            height=260,
        )

    title = say.spectrum_title(table, result.summary["spectra"][name], what, chance)
    more = f"table = run.tables['spectrum'].filter(pl.col('series') == {name!r})"
    code = read_run(opened, result, more)
    return Panel(f"rank-spectrum-{name}", title, table, draw, code, how, result.models, False)


def _lines(table: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    """Rows of `path` as a chart takes them."""
    return table.select(
        pl.col("k").cast(pl.Float64).alias("x"),
        pl.col("series").replace_strict(names),
        "value",
        "low",
        "high",
    )


def _path_code(opened: Opened, result: JobResult, kind: str, alpha: float) -> str:
    first = "from engine.rank.report import path"
    return read_run(opened, result, first, f"table = path(run.tables, {kind!r}, {alpha!r})")
