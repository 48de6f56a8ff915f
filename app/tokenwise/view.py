"""The experiment of a selection and back, its controls and its panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.charts.bars import interval_bars
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.escape import given, plain
from app.frame import noise, store_rounding
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, without
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.tokenwise import prompt, words
from app.tokenwise.charts import lens_chart
from app.tokenwise.fields import TokenwiseFields, broken, one_line
from engine.tokenwise.spec import Tokenwise

LEAST = 1e-6
"""Relative distance of streams below which they are equal: float32."""
LENS = (
    "Each cell: the likeliest next token where the model's final norm and unembedding read this state of "
    "the stream (logit lens); colour: its probability. State 0 is the embedding, the last one what the model "
    "says. These weights were trained for the last state: what an early one seems to say may mean nothing."
)


def asked(opened: Opened, selection: Selection) -> Tokenwise:
    """Model B beside model A on the typed prompt, or on the selected one of the study."""
    own = TokenwiseFields.of(selection)
    pair: dict[str, Any] = {"target": selection.b, "source": selection.a, "reply": own.reply}
    if own.typed:
        raw = prompt.is_plain(opened, own.wrapped)
        system = None if raw or not own.system else broken(own.system)
        return Tokenwise(**pair, typed=broken(own.typed), system=system, raw=raw)
    return Tokenwise(**pair, prompt=prompt.of_the_study(opened, own))


def selection_of(condition: Mapping[str, Any], _selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `asked` gives this stored condition again."""
    typed = condition.get("typed", "")
    return {
        "a": condition["source"],
        "b": condition["target"],
        "prompt": condition["prompt"],
        "typed": one_line(typed),
        "system": one_line(condition.get("system") or ""),
        "wrapped": ("plain" if condition.get("raw") else "chat") if typed else "study",
        "reply": condition.get("reply", 0),
    }


def planned(opened: Opened, selection: Selection) -> list[Tokenwise]:
    """What a full study has of it: the prompt that the page opens with, where both models read it alike."""
    wanted = asked(opened, without(selection, "prompt", "typed", "system", "wrapped", "reply"))
    alike = selection.a != selection.b and prompt.read_alike(opened, wanted.models(), (wanted.prompt,))
    return [wanted] if alike else []


def not_run(wanted: Tokenwise) -> tuple[str, str]:
    """Empty state: what a click will do."""
    return (
        "This prompt has not been read token by token",
        f"**Run** sends it through {wanted.target} and {wanted.source} once and compares what they say "
        "behind each token, and at each state of the stream.",
    )


def panels(opened: Opened, result: JobResult, _selection: Selection) -> list[Panel]:
    """KL behind each token, the logit lens of either model, how far the streams are apart."""
    made = [kl_panel(opened, result)]
    made += [lens_panel(opened, result, side) for side in ("target", "source")]
    states = states_panel(opened, result)
    return [*made, *([] if states is None else [states])]


def replies(result: JobResult, _selection: Selection) -> None:
    """How either model goes on, side by side."""
    table = result.tables.get("replies")
    if table is None:
        return
    with st.container(border=True, key="panel-tokenwise-replies"):
        screen.markdown(f"#### {plain(words.replies_title(table))}")
        for side, row in zip(st.columns(table.height), table.iter_rows(named=True), strict=True):
            with side:
                screen.caption(plain(row["model"]))
                st.text(row["text"] + ("" if row["ended"] else " …"))


def _places(table: pl.DataFrame) -> pl.DataFrame:
    """token -> the place's name: "12 “␣apples”"."""
    named = [f"{number} {words.token(text)}" for number, text in table.select("token", "text").rows()]
    return table.select("token", place=pl.Series(named, dtype=pl.String))


def kl_panel(opened: Opened, result: JobResult) -> Panel:
    """KL of the next token behind each token of the prompt."""
    said, floor = result.condition, float(result.summary["floor"])
    table = result.table
    drawn = table.join(_places(table), on="token", maintain_order="left").select(
        name="place",
        value="kl",
        low=pl.lit(None, pl.Float64),
        high=pl.lit(None, pl.Float64),
        series=pl.lit("KL"),
    )
    lines = {"rounding noise": floor} if floor > noise.DRAWN else {}

    def draw(palette: Palette) -> Chart:
        return interval_bars(
            drawn,
            x_title="token of the prompt",
            y_title="KL, nats",
            colors={"KL": palette.b},
            palette=palette,
            references=lines,
        )

    given([str(said.get("prompt") or "")])
    which = "the typed prompt" if said.get("typed") else f"the prompt {said['prompt']}"
    caption = (
        f"KL({said['target']} ‖ {said['source']}) of the next token behind each token of "
        f"{which}. One prompt, so no interval: other prompts may differ." + noise.note(result.summary)
    )
    row = table.row(int(result.summary["worst"]), named=True)
    title = words.kl_title(said["target"], said["source"], row, floor)
    return _panel(opened, result, ("kl", title, caption), table, draw, "['table']")


def lens_panel(opened: Opened, result: JobResult, side: str) -> Panel:
    """The logit lens of one model."""
    model = result.condition[side]
    lens = result.tables["lens"].filter(model=model)
    table = lens.join(_places(result.table), on="token", maintain_order="left").with_columns(
        said=pl.col("text").map_elements(lambda text: words.token(text)[1:-1], return_dtype=pl.String)
    )
    last = table.filter(token=table["token"].max()).sort("state")
    title = words.lens_title(model, last["token_id"].to_list(), last["text"][-1])
    name = "lens" if side == "target" else "lens-source"
    drawn = table.select("place", "state", "said", "p", "p_final")
    read = f"['lens'].filter(model={model!r})"
    return _panel(opened, result, (name, title, LENS), lens, lambda palette: lens_chart(drawn, palette), read)


def states_panel(opened: Opened, result: JobResult) -> Panel | None:
    """How far the two streams are apart; None where they can't be compared."""
    said, states = result.condition, result.tables["states"]
    if states.is_empty():
        return None
    table = states.join(_places(result.table), on="token", maintain_order="left")
    apart = states.group_by("state").agg(pl.col("relative").max()).sort("state")["relative"].to_list()
    least = [_least(opened, result, state) for state in range(len(apart))]

    def draw(palette: Palette) -> Chart:
        return matrix(
            table,
            x="place",
            y="state",
            value="relative",
            x_title="token of the prompt",
            y_title="state",
            value_title="‖Δh‖ ÷ ‖h‖",
            palette=palette,
        )

    caption = (
        f"‖h of {said['target']} − h of {said['source']}‖ ÷ ‖h of {said['source']}‖ of the residual stream "
        "at each token. State 0 is the embedding. Either model's measured rounding noise is at most "
        f"{100 * max(least):.2g} % of a state's length."
    )
    title = words.states_title(said["target"], said["source"], apart, least)
    return _panel(opened, result, ("states", title, caption), states, draw, "['states']")


def _least(opened: Opened, result: JobResult, state: int) -> float:
    """Rounding noise of either model's stream at a state, relative; of the run where the store has none."""
    models = result.models
    known = [store_rounding.relative_noise(opened.store, model, "resid_pre", state) for model in models]
    measured = result.summary.get("rounding") or {}
    whole = [float(measured.get(model, {}).get("relative", 0.0)) for model in models]
    return max(*(one or other for one, other in zip(known, whole, strict=True)), LEAST)


def _panel(
    opened: Opened,
    result: JobResult,
    said: tuple[str, str, str],
    table: pl.DataFrame,
    draw: Callable[[Palette], Chart],
    read: str,
) -> Panel:
    """A panel by (name, title, caption); `read`: what of `run.tables` its table is."""
    name, title, caption = said
    code = read_run(opened, result, f"table = run.tables{read}")
    models = result.models
    return Panel(f"tokenwise-{name}", title, table, draw, code, caption, models, False)
