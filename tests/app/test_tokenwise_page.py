"""Token by token: titles by their rules, panels whose code gives their tables, the page before and after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from live_study import BLOCKS, CHANGED, make_store
from opened_study import chosen, opened_at, trusted
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.frame.opened import Opened
from app.frame.selection import changed, parse, to_params
from app.live.jobs import JobResult
from app.live.run import run_live
from app.tokenwise import view, words
from app.tokenwise.fields import broken, one_line
from engine.tokenwise.spec import Tokenwise


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trusted(make_store(tmp_path_factory.mktemp("tokenwise")))


@pytest.fixture(scope="module")
def opened(path: Path) -> Opened:
    return opened_at(path)


@pytest.fixture(scope="module")
def result(opened: Opened) -> JobResult:
    asked = view.asked(opened, chosen(opened))
    _, found = run_live(opened.path, asked)
    return JobResult(asked.to_json(), found.summary, found.tables)


def test_panels_say_what_their_tables_hold(opened: Opened, result: JobResult) -> None:
    made = {panel.name: panel for panel in view.panels(opened, result, chosen(opened))}
    assert list(made) == [f"tokenwise-{name}" for name in ("kl", "lens", "lens-source", "states")]
    for panel in made.values():
        scope: dict[str, object] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"])  # type: ignore[arg-type]
        for palette in (LIGHT, DARK):
            assert panel.draw(palette).spec()["layer"]
    worst = result.table.row(by_predicate=pl.col("kl") == result.table["kl"].max(), named=True)
    assert f"token {worst['token']}, " in made["tokenwise-kl"].title
    assert f"leaves base's at state {CHANGED + 1};" in made["tokenwise-states"].title
    assert "tuned says" in made["tokenwise-lens"].title
    assert set(made["tokenwise-lens"].table["state"]) == set(range(BLOCKS + 1))


def test_the_page_before_and_after(
    path: Path, opened: Opened, result: JobResult, open_app: Callable[..., AppTest]
) -> None:
    ids = opened.store.prompts["id"].to_list()
    other = next(one for one in ids if one != result.condition["prompt"])
    for prompt, ran in ((result.condition["prompt"], True), (other, False)):
        at = open_app(path, "tokenwise", a="base", b="tuned", prompt=prompt)
        assert not at.exception
        said = " ".join(text.value for text in at.markdown)
        assert ("parts most from base" in said) == ran
        assert ("has not been read token by token" in said) != ran
        assert at.selectbox(key="tokenwise-prompt").value == prompt
    back = next(one for one in at.button if result.condition["prompt"] in one.label)
    back.click().run()
    assert not at.exception
    assert at.selectbox(key="tokenwise-prompt").value == result.condition["prompt"]
    assert "parts most from base" in " ".join(text.value for text in at.markdown)


def test_a_run_that_no_setting_asks_for_is_offered_by_its_link(
    path: Path, result: JobResult, open_app: Callable[..., AppTest]
) -> None:
    """A text with a break of line of another machine fits into no control."""
    run, _ = run_live(str(path), Tokenwise(target="tuned", source="base", typed="x\r\ny", raw=True))
    at = open_app(path, "tokenwise", a="base", b="tuned", typed="never run")
    assert not at.exception
    assert any(f"run={run}" in one.proto.query_string for one in at.get("page_link"))


def test_a_link_and_a_stored_condition_mean_the_same(opened: Opened, result: JobResult) -> None:
    selection = chosen(opened, prompt=result.condition["prompt"])
    back, notices = parse(to_params(selection, opened.facts), opened.facts)
    assert not notices
    assert view.asked(opened, back).to_json() == result.condition
    changes = view.selection_of(result.condition, selection)
    assert view.asked(opened, changed(selection, **changes)).to_json() == result.condition
    assert view.asked(opened, chosen(opened)).to_json() == result.condition, "the first of validation"
    assert view.planned(opened, chosen(opened, b="base")) == []


TYPED = 'Say "ja"\\no\n\tand stop'
"""A backslash, a break of line and a tab survive a link."""


def test_a_typed_prompt_is_rendered_as_the_study_renders_its_own(opened: Opened, path: Path) -> None:
    row = opened.store.prompts.row(0, named=True)
    asked = view.asked(opened, chosen(opened, typed=one_line(row["text"])))
    _, found = run_live(str(path), asked)
    own = opened.store.tokens("tuned")["token_ids"][0].to_list()
    assert found.table["token_id"].to_list() == own
    assert found.summary["prompt"] == asked.named


def test_typed_prompts_in_links_and_conditions(opened: Opened) -> None:
    line = one_line(TYPED)
    assert "\n" not in line
    assert broken(line) == TYPED
    assert one_line("a\x07b") == "ab"
    for wrapped, raw in (("chat", False), ("plain", True)):
        selection = chosen(opened, typed=line, system="Be brief.", wrapped=wrapped, reply=32)
        back, notices = parse(to_params(selection, opened.facts), opened.facts)
        assert not notices
        wanted = view.asked(opened, back)
        assert (wanted.typed, wanted.raw, wanted.reply, wanted.prompt) == (TYPED, raw, 32, "")
        assert wanted.system == (None if raw else "Be brief.")
        changes = view.selection_of(wanted.to_json(), selection)
        assert view.asked(opened, changed(selection, **changes)) == wanted


def test_a_typed_prompt_is_not_quoted_where_it_could_be_read_as_markdown(
    opened: Opened, path: Path, open_app: Callable[..., AppTest]
) -> None:
    """Nor does a run of a text that no link holds lead to another prompt."""
    text = "say **3 -5** or 1 tokens"
    wanted = Tokenwise(target="tuned", source="base", typed=text, raw=True)
    _, found = run_live(str(path), wanted)
    made = view.panels(opened, JobResult(wanted.to_json(), found.summary, found.tables), chosen(opened))
    assert "the typed prompt." in made[0].caption
    assert "**" not in made[0].caption
    long, _ = run_live(str(path), wanted.model_copy(update={"typed": "ab " * 4, "raw": True}))
    at = open_app(path, "runs", run=long)
    assert not any("no settings for it" in one.value for one in at.caption)
    odd, _ = run_live(str(path), wanted.model_copy(update={"typed": "a\r\nb"}))
    at = open_app(path, "runs", run=odd)
    assert not at.exception
    assert any("no settings for it" in one.value for one in at.caption)


def test_nothing_typed_is_said_to_be_nothing(path: Path, open_app: Callable[..., AppTest]) -> None:
    at = open_app(path, "tokenwise", a="base", b="tuned")
    next(b for b in at.button if b.label == "Take this prompt").click()
    at.run()
    assert [one.value for one in at.error] == [
        "Nothing is typed: write the text of a prompt first, then take it."
    ]
    assert "typed" not in at.query_params


def test_a_study_has_the_first_prompt_whatever_is_looked_at(opened: Opened) -> None:
    usual = view.asked(opened, chosen(opened))
    typed = chosen(opened, typed="p0 w1", system="Be brief.", wrapped="chat", reply=8)
    assert view.planned(opened, typed) == [usual]
    assert view.planned(opened, chosen(opened, prompt=opened.store.prompts["id"][-1])) == [usual]


def test_streams_are_apart_beyond_the_noise_of_the_same_state() -> None:
    """State 2 lies above its own noise, below that of the noisiest state."""
    said = words.states_title("tuned", "base", [0.0, 0.001, 0.05, 0.4], [1e-6, 0.002, 0.01, 0.1])
    assert said == "tuned's stream leaves base's at state 2; farthest at state 3: 40 % of its length"
    said = words.states_title("tuned", "base", [0.0, 0.001, 0.009, 0.09], [1e-6, 0.002, 0.01, 0.1])
    assert said == "The streams of tuned and base are equal but for rounding at every token"


def test_a_typed_prompt_is_taken_run_and_left_again(
    path: Path, opened: Opened, open_app: Callable[..., AppTest]
) -> None:
    at = open_app(path, "tokenwise", a="base", b="tuned")
    at.text_area[0].input("p0 w1 w2")
    at.number_input(key="tokenwise-reply").set_value(8)
    next(b for b in at.button if b.label == "Take this prompt").click()
    at.run()
    assert not at.exception
    assert at.query_params["typed"] == "p0 w1 w2"
    wanted = view.asked(opened, chosen(opened, typed="p0 w1 w2", reply=8))
    run_live(str(path), wanted)
    at.run()
    assert not at.exception
    said = " ".join(text.value for text in at.markdown)
    assert "#### tuned and base go on" in said
    assert len(at.text) == 2
    at.button(key="tokenwise-back").click()
    at.run()
    assert "typed" not in at.query_params
    assert at.selectbox(key="tokenwise-prompt").value


ROW = {
    "next_id_target": 5,
    "next_id_source": 3,
    "kl": 0.83,
    "token": 12,
    "text": " apples",
    "next_target": "5",
    "next_source": "3",
    "p_target": 0.4,
    "p_source": 0.98,
}


def test_an_unknown_prompt_of_a_link_is_the_first_one(opened: Opened, result: JobResult) -> None:
    assert view.asked(opened, chosen(opened, prompt="no such")).to_json() == result.condition


def test_titles() -> None:
    assert (
        words.kl_title("tuned", "base", ROW, 0.01)
        == "tuned parts most from base behind token 12, “␣apples”: KL 0.83 nats, “5” in place of “3”"
    )
    assert words.kl_title("tuned", "base", ROW | {"next_source": "5", "next_id_source": 5}, 0).endswith(
        "“5” at 40 % in place of 98 %"
    )
    assert "no token" in words.kl_title("tuned", "base", ROW, 0.9)
    assert "no token" in words.kl_title("tuned", "base", ROW | {"kl": 0.0}, 0.0)
    assert words.lens_title("m", [1, 2, 1, 3, 3], "c") == (
        "m says “c” behind the last token from state 3 of 4 on"
    )
    assert words.lens_title("m", [3, 3], "c").endswith("at every state")
    assert words.lens_title("m", [1, 3], "c").endswith("from state 1 of 1 on")
    twin = words.kl_title("tuned", "base", ROW | {"next_source": "5"}, 0)
    assert twin.endswith("“5” in place of “5”"), "two tokens of one text are two"
    assert "equal but for rounding" in words.states_title("t", "b", [0.0, 1e-7], [1e-6] * 2)
    title = words.states_title("t", "b", [0.0, 0.1, 0.3, 0.2], [1e-6] * 4)
    assert title == "t's stream leaves b's at state 1; farthest at state 2: 30 % of its length"
    assert words.states_title("t", "b", [0.0, 1.37], [1e-6] * 2).endswith("137 % of its length")
    table = pl.DataFrame({"model": ["a", "b"], "text": ["x", "y"]})
    assert words.replies_title(table) == "a and b go on differently"
    assert words.replies_title(table.with_columns(text=pl.lit("x"))).endswith("with the same words")
    assert words.replies_title(table[:1]) == "a goes on"
    assert words.token("\x1c\ud800") == "“⟨1C⟩⟨D800⟩”"
    assert words.token("a\n b" + "x" * 30) == "“a⏎␣bxxxxxxxxxxx…”"
