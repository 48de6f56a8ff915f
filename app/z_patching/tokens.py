"""One problem of a Z-patching run token by token: what the model nearly said at every step."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.charts.lines import numeric_lines
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.z_patching import panels as z_patching_panels
from app.z_patching import words as say
from app.z_patching.view import COLOURS, PAGE, selection_of
from engine.texts.languages import language
from engine.z_patching.spec import ZPatching
from engine.z_patching.tokens_spec import ZTokens

__all__ = ["PAGE", "panel", "run_panels", "run_selection", "show"]

MAIN = ("unpatched", "Z ← same problem", "Z⊥ ← same problem", "full ← same problem")


def named(table: pl.DataFrame) -> pl.DataFrame:
    """The table with the condition in words beside it."""
    names = [z_patching_panels.condition_name(row) for row in table.iter_rows(named=True)]
    return table.with_columns(condition=pl.Series(names, dtype=pl.String))


def panel(opened: Opened, result: JobResult) -> Panel:
    """Probability of every generated token under the main conditions, and where it was closest."""
    table, condition = result.table, result.condition
    every = named(table)
    kept = every.filter(pl.col("rank") == 0, pl.col("condition").is_in(MAIN))
    drawn = kept.select(x=pl.col("step") + 1, series="condition", value="probability")

    def draw(palette: Palette) -> Chart:
        hues = (palette.mark, palette.pair, palette.series[1], palette.null)
        return numeric_lines(
            drawn,
            x_title="generated token",
            y_title="its probability",
            colors=dict(zip(MAIN, hues, strict=True)),
            palette=palette,
            x_format="d",
            limits=(0.0, 1.02),
            height=220,
        )

    title = say.tokens_title(every, MAIN, result.summary["pair_id"], condition)
    caption = say.tokens_caption(condition, result.summary)
    code = read_run(opened, result, "table = run.tables['table']")
    return Panel(
        "z-tokens", title, table, draw, code, caption, ZPatching.from_json(condition["of"]).models(), False
    )


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panel of one stored result."""
    return [panel(opened, result)]


def run_selection(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which the page shows the run and the cell that the problem is of."""
    changes = selection_of(condition["of"], selection)
    return {**changes, "z": f"{changes['z']};show:{condition['layer']}@{condition['k']}"}


def show(opened: Opened, result: JobResult, problem: int, found: Mapping[str, Any]) -> None:
    """The likeliest tokens of a problem where they were computed, else the button that computes them."""
    run = ZPatching.from_json(result.condition)
    wanted = ZTokens(of=run, problem=problem, layer=int(found["layer"]), k=int(found["k"]))
    stored = live_view.stored(opened, wanted)
    if stored is None:
        live_view.run_button(opened, [wanted], "Show the likeliest tokens of this problem", key="z-likeliest")
        return
    components.show(opened, panel(opened, stored))
    table = named(stored.table)
    names = table["condition"].unique(maintain_order=True).to_list()
    with st.container(border=True, key="z-tokens-steps"):
        chosen = screen.selectbox("Condition", names, index=names.index(MAIN[1]), key="z-tokens-condition")
        st.html(grid(table.filter(pl.col("condition") == chosen)))
        screen.caption(
            f"Every column is a step: the generated token above the {wanted.top - 1} likeliest others. "
            "Underlined by language: English blue, Chinese orange, neither grey."
        )


def grid(table: pl.DataFrame) -> str:
    """HTML of one condition: a column a step, the likeliest tokens below each other."""
    steps = table.sort("step", "rank").partition_by("step", maintain_order=True)
    columns = "".join(_column(step.to_dicts()) for step in steps)
    style = "display:flex;flex-wrap:wrap;gap:6px;font-size:.8rem;line-height:1.5"
    return f'<div style="{style}">{columns}</div>'


def _column(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = "".join(_line(row, "600" if row["rank"] == 0 else "400") for row in rows)
    style = "border:1px solid rgba(128,128,128,.35);border-radius:4px;padding:2px 6px;min-width:4.2rem"
    return f'<div style="{style}">{lines}</div>'


def _line(row: Mapping[str, Any], weight: str) -> str:
    token = str(row["token"])
    text = html.escape(token).replace(" ", "&nbsp;").replace("\n", "↵") or "·"
    special = token.startswith("<") and token.endswith(">")  # not what the answer says
    hue = COLOURS["none" if special else language(token)]
    faint = 0.45 + 0.55 * float(row["probability"])
    mark = f'<span style="border-bottom:2px solid {hue};white-space:pre">{text}</span>'
    share = f'<span style="float:right;padding-left:8px">{say.percent(row["probability"])}</span>'
    return f'<div style="font-weight:{weight};opacity:{faint:.2f}">{mark}{share}</div>'
