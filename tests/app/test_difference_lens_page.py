"""Difference lens: titles by their rules, panels whose code gives their tables, the page, links, tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from live_study import BLOCKS, CHANGED, PAIRS, make_store
from opened_study import chosen, opened_at, trusted
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.charts.signed_bars import signed_bars
from app.difference_lens import panels, view, words
from app.escape import plain
from app.frame import controls
from app.frame.opened import Opened
from app.frame.panel import HEADING
from app.frame.selection import Selection, changed, parse, to_params
from app.live.jobs import JobResult
from app.live.run import run_live
from engine.difference_lens.numbers import FEWEST
from engine.difference_lens.texts import NEUTRAL

MODELS = ("tuned", "base")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trusted(
        make_store(tmp_path_factory.mktemp("difference_lens"), "bfloat16", positions=("decision", "mean"))
    )


@pytest.fixture(scope="module")
def opened(path: Path) -> Opened:
    return opened_at(path)


def ran(opened: Opened, selection: Selection) -> JobResult:
    asked = view.asked(opened, selection)
    _, found = run_live(opened.path, asked)
    return JobResult(asked.to_json(), found.summary, found.tables)


@pytest.fixture(scope="module")
def prompts(opened: Opened) -> JobResult:
    """What the page opens with."""
    return ran(opened, chosen(opened))


@pytest.fixture(scope="module")
def texts(opened: Opened) -> JobResult:
    return ran(opened, chosen(opened, read_over="texts", first_tokens=2))


def test_every_position_is_read_and_blocks_before_the_change_are_equal(prompts: JobResult) -> None:
    places = prompts.tables["places"]
    assert prompts.summary["positions"] == ["decision", "mean"]
    assert (prompts.summary["units"], prompts.summary["unit"]) == (PAIRS, "pair")
    assert places.height == 2 * BLOCKS
    states = dict(zip(places.select("position", "layer").rows(), places["state"], strict=True))
    for position in ("decision", "mean"):
        for layer in range(BLOCKS):
            assert states[position, layer] == ("equal" if layer < CHANGED else "read")
    (note,) = prompts.summary["notes"]
    assert note == "The vectors at mean are the stored ones, rounded to bfloat16."
    rounded = places.filter(position="mean", layer=CHANGED)["noise"][0]
    exact = places.filter(position="decision", layer=CHANGED)["noise"][0]
    assert rounded > exact, "a float32 model is run again where that can be"
    assert prompts.table["layer"].min() == CHANGED


def test_panels_say_what_their_tables_hold(opened: Opened, prompts: JobResult, texts: JobResult) -> None:
    for result, changes in (
        (prompts, {"layer": 3, "position": "mean"}),
        (prompts, {"layer": 0}),
        (texts, {"read_over": "texts", "at_token": 1, "layer": 2}),
    ):
        made = panels.panels(opened, result, chosen(opened, **changes))
        assert [panel.name for panel in made] == ["difference-lens", "difference-lens-map"]
        for panel in made:
            scope: dict[str, Any] = {}
            exec(panel.code, scope)
            assert panel.table.equals(scope["table"]), panel.name
            assert len(panel.heading) <= HEADING
            for palette in (LIGHT, DARK):
                assert panel.draw(palette).spec()["layer"]
                panel.chart(palette)
    few = panels.panels(opened, prompts, chosen(opened, layer=3, position="mean"))
    assert (
        few[0].title
        == f"Block 3, the mean over content: {PAIRS} pairs are too few to tell a token from chance"
    )
    assert few[1].title == f"{PAIRS} pairs are too few to tell a token from chance"
    assert few[0].table["low"].null_count() == few[0].table.height, "no limits, no intervals"
    equal = panels.panels(opened, prompts, chosen(opened, layer=0, position="decision"))
    assert equal[0].title == "Block 0, the decision token: the streams of tuned and base are equal"


def test_plain_texts_of_one_first_token_are_one_unit(opened: Opened, texts: JobResult) -> None:
    """A tokenizer of few letters leaves few units of the shipped texts, at every token."""
    assert (texts.summary["n"], texts.summary["unit"]) == (len(NEUTRAL), "text")
    differ = texts.tables["places"]["units"].unique().to_list()
    assert differ == [texts.summary["units"]]
    assert FEWEST < differ[0] < len(NEUTRAL)
    made = panels.panels(opened, texts, chosen(opened, read_over="texts", at_token=1, layer=3))
    assert not made[0].table["beyond"].any()
    assert "no token stands out of chance" in made[0].title


@pytest.mark.parametrize("which", ["prompts", "texts"])
def test_a_link_and_a_stored_condition_mean_the_same(
    opened: Opened, which: str, request: pytest.FixtureRequest
) -> None:
    condition = request.getfixturevalue(which).condition
    selection = changed(chosen(opened), **view.selection_of(condition, chosen(opened)))
    back, notices = parse(to_params(selection, opened.facts), opened.facts)
    assert not notices
    assert view.asked(opened, back).to_json() == condition
    assert view.planned(opened, chosen(opened, b="base")) == []


def place(**changes: Any) -> dict[str, Any]:
    usual = {"layer": 5, "position": "decision", "state": "read", "beyond": 9, "outstanding": 2}
    usual |= {"units": 60, "chance": 9}
    return usual | changes


def tokens(up: list[str], down: list[str], beyond: bool = True) -> pl.DataFrame:
    rows = [("promoted", text) for text in up] + [("suppressed", text) for text in down]
    return pl.DataFrame(
        {
            "side": [side for side, _ in rows],
            "text": [text for _, text in rows],
            "token_id": range(len(rows)),
            "beyond": [beyond] * len(rows),
        },
        schema={"side": pl.String, "text": pl.String, "token_id": pl.Int64, "beyond": pl.Boolean},
    )


def test_titles_of_a_place() -> None:
    units = (60, "pair")
    shown = tokens([" Yes", "Sure", "a", "b"], ["No", "3", "c"])
    assert words.bars_title(MODELS, place(), shown, units) == (
        "tuned promotes “␣Yes”, “Sure”, “a” and suppresses “No”, “3” at block 5, the decision token; "
        "2 tokens move further than 95 % of random directions move any"
    )
    alone = words.bars_title(MODELS, place(outstanding=0), tokens([], ["No"]), units)
    assert alone == (
        "tuned suppresses “No” at block 5, the decision token; "
        "random directions of this length move some token as far"
    )
    one = words.bars_title(MODELS, place(outstanding=1), tokens(["x"], []), units)
    assert "; 1 token moves further" in one
    unseen = tokens(["x"], ["y"], beyond=False)
    none = words.bars_title(MODELS, place(chance=0), unseen, units)
    assert none == "Block 5, the decision token: no token stands out of chance in what tuned changes"
    few = words.bars_title(MODELS, place(units=FEWEST - 1), shown, (FEWEST - 1, "category cluster"))
    assert few.endswith("11 category clusters are too few to tell a token from chance")
    lost = words.bars_title(MODELS, place(state="rounding"), tokens([], []), units)
    assert lost.endswith("differ by no more than rounding; no token stands out")
    within = words.bars_title(MODELS, place(), unseen, units)
    assert within.endswith(": what exceeds chance in what tuned changes is within rounding")
    assert words.bars_title(MODELS, place(), unseen, units, False).endswith(
        ": there are too few draws for limits of this level"
    )


def test_titles_where_rows_begin_alike() -> None:
    shown = tokens(["x"], ["y"])
    same = words.bars_title(MODELS, place(state="alike", units=1), tokens([], []), (40, "text"))
    assert same == "Block 5, the decision token: the texts are the same up to here"
    few = words.bars_title(MODELS, place(units=FEWEST - 1), shown, (40, "text"))
    assert few.endswith(
        ": the texts have 11 different beginnings up to here, too few to tell a token from chance"
    )
    few = words.bars_title(MODELS, place(units=2), shown, (40, "pair"))
    assert few.endswith(
        ": the prompts have 2 different beginnings up to here, too few to tell a token from chance"
    )
    every = places([(0, "equal", 0, 0), (1, "read", 900, 3), (2, "alike", 0, 0), (3, "read", 900, 3)])
    every = every.with_columns(units=pl.Series([60, 60, 1, 11]))
    assert words.map_title(MODELS, every, (60, "text")) == (
        "Tokens stand out at block 1, the decision token alone: 3 tokens; "
        "at 2 of 3 places too few texts begin differently"
    )
    assert words.map_title(MODELS, every[2:], (60, "text")) == (
        "The texts have 11 different beginnings up to here, too few to tell a token from chance"
    )
    assert words.map_title(MODELS, every[:3], (60, "text"), False) == (
        "There are too few draws for limits of this level"
    )


def test_a_title_has_as_many_tokens_as_there_is_room_for() -> None:
    long = [f"{mark}-hypothetical-word" for mark in "abcde"]
    title = words.bars_title(MODELS, place(), tokens(long, long), (60, "pair"))
    assert len(title.split("; ")[0]) <= HEADING
    assert "promotes “a-" in title
    assert " and suppresses “a-" in title


HOSTILE = ["\n", "a\tb", "\u202eevil", "**bold**", "[x](http://a.b)", "<b>", "$x$", ":smile:", "`"]


def test_tokens_are_shown_as_they_are(opened: Opened, prompts: JobResult) -> None:
    """Breaks and marks that turn text around are written out, and Markdown is not obeyed."""
    names = words.names_of(tokens(HOSTILE, ["same", "same"]))
    assert len(set(names)) == len(names)
    assert names[0] == "“⏎”"
    assert names[2] == "“⟨202E⟩evil”"
    assert names[-2:] == ["“same” #9", "“same” #10"]
    assert all(name.isprintable() for name in names)
    for text in HOSTILE:
        title = words.bars_title(MODELS, place(), tokens([text], []), (60, "pair"))
        assert "\n" not in title
        shown = plain(title)
        assert "**" not in shown.replace(r"\*\*", "")
        assert "](" not in shown.replace(r"\]", "")
    table = prompts.table.filter(layer=3, position="mean").with_row_index()
    odd = table.with_columns(text=pl.Series((HOSTILE * 5)[: table.height])).drop("index")
    result = JobResult(prompts.condition, prompts.summary, {**prompts.tables, "table": odd})
    made = panels.panels(opened, result, chosen(opened, layer=3, position="mean"))
    drawn = made[0].draw(LIGHT).spec()["layer"][0]["data"]["values"]
    assert len({row["name"] for row in drawn}) == odd.height


def places(rows: list[tuple[int, str, int, int]]) -> pl.DataFrame:
    columns = {"layer": pl.Int64, "state": pl.String, "beyond": pl.Int64, "outstanding": pl.Int64}
    return pl.DataFrame(rows, schema=columns, orient="row").with_columns(
        position=pl.lit("decision"), units=60, chance="beyond"
    )


def test_titles_of_the_map() -> None:
    units = (60, "pair")
    some = places([(0, "equal", 0, 0), (1, "read", 5, 1), (2, "read", 900, 3), (3, "read", 2, 0)])
    assert words.map_title(MODELS, some, units) == (
        "Tokens stand out at blocks 1-2; most at block 2, the decision token: 3 tokens"
    )
    assert words.map_title(MODELS, some[:2], units) == (
        "Tokens stand out at block 1, the decision token alone: 1 token"
    )
    assert words.map_title(MODELS, some.with_columns(outstanding=0), units).startswith(
        "No token that exceeds"
    )
    within = some.with_columns(outstanding=0, beyond=0)
    assert words.map_title(MODELS, within, units) == "What exceeds chance is within rounding at every block"
    nothing = some.with_columns(outstanding=0, beyond=0, chance=0)
    assert words.map_title(MODELS, nothing, units) == "No token stands out of chance at any block"
    equal = some.with_columns(state=pl.lit("equal"))
    assert words.map_title(MODELS, equal, units).startswith("The streams of tuned and base are equal at")
    rounding = places([(0, "equal", 0, 0), (1, "rounding", 0, 0)])
    assert "differ by no more than rounding" in words.map_title(MODELS, rounding, units)
    assert (
        words.map_title(MODELS, some.with_columns(units=3), (3, "text"))
        == "3 texts are too few to tell a token from chance"
    )


def test_rounding_that_was_never_measured_is_no_zero(opened: Opened, prompts: JobResult) -> None:
    chosen_at = chosen(opened, layer=3, position="mean")
    for measured in (True, False):
        summary = prompts.summary | {"measured": measured}
        made = panels.panels(opened, JobResult(prompts.condition, summary, prompts.tables), chosen_at)
        for panel in made:
            assert ("beyond chance and rounding" in panel.caption) == measured
            assert ("rounding was not measured" in panel.caption) != measured
        assert "that of storing is 0.23 %" in made[0].caption or measured
    exact = panels.panels(
        opened,
        JobResult(prompts.condition, prompts.summary | {"measured": False}, prompts.tables),
        chosen(opened, layer=3, position="decision"),
    )
    at = prompts.tables["places"].filter(layer=3, position="decision")
    assert ("storing" in exact[0].caption) == bool(at["noise"][0])


def test_a_run_from_before_beginnings_were_told_apart_opens(opened: Opened, prompts: JobResult) -> None:
    old = {key: value for key, value in prompts.summary.items() if key != "measured"}
    tables = prompts.tables | {"places": prompts.tables["places"].drop("units", "chance")}
    chosen_at = chosen(opened, layer=3, position="mean")
    made, now = (
        panels.panels(opened, result, chosen_at)
        for result in (JobResult(prompts.condition, old, tables), prompts)
    )
    assert [panel.title for panel in made] == [panel.title for panel in now]


def test_bars_without_anything_to_draw() -> None:
    empty = pl.DataFrame(
        schema={
            "name": pl.String,
            "value": pl.Float64,
            "low": pl.Float64,
            "high": pl.Float64,
            "series": pl.String,
        }
    )
    chart = signed_bars(empty, x_title="x", name_title="token", colors={}, palette=LIGHT)
    assert chart.altair().to_dict()


def test_a_click_into_the_map_chooses_block_and_position(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for picked, position in (("mean", "mean"), ("token 1", "decision")):
        chart = {"selection": {"pick": [{"position": picked, "layer": 3}]}}
        state = {"chart": chart, "selection-facts": opened.facts}
        state["selection"] = chosen(opened, layer=0, position="decision")
        monkeypatch.setattr(controls.st, "session_state", state)
        controls.clicked("chart")
        assert (controls.current().layer, controls.current().position) == (3, position)


def test_the_page_before_and_after(
    path: Path, prompts: JobResult, texts: JobResult, open_app: Callable[..., AppTest]
) -> None:
    for told, changes in (
        ("too few to tell a token from chance", {"layer": "3"}),
        (
            "no token stands out of chance",
            {"layer": "3", "read_over": "texts", "first_tokens": "2", "at_token": "1"},
        ),
        ("This difference has not been read", {"flipped": "prompt"}),
    ):
        at = open_app(path, "difference_lens", a="base", b="tuned", **changes)
        assert not at.exception
        assert told in " ".join(text.value for text in at.markdown)
