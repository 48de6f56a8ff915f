"""Diff mining: titles by their rules, panels whose code gives their tables, the page, links."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from live_study import make_store
from opened_study import chosen, opened_at, trusted
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.diff_mining import panels, view, words
from app.frame.opened import Opened
from app.frame.panel import HEADING, parted
from app.frame.selection import Selection, changed, parse, to_params
from app.live.jobs import JobResult
from app.live.run import run_live

MODELS = ("tuned", "base")
SUMMARY = {"equal": False, "units": 40, "unit": "text", "limited": True, "kl": 0.1, "floor": 0.01}
SUMMARY |= {"measured": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trusted(make_store(tmp_path_factory.mktemp("diff_mining"), "bfloat16", positions=("decision",)))


@pytest.fixture(scope="module")
def opened(path: Path) -> Opened:
    return opened_at(path)


def ran(opened: Opened, selection: Selection) -> JobResult:
    asked = view.asked(opened, selection)
    _, found = run_live(opened.path, asked)
    return JobResult(asked.to_json(), found.summary, found.tables)


@pytest.fixture(scope="module")
def result(opened: Opened) -> JobResult:
    return ran(opened, chosen(opened, mined_over="prompts"))


def rows(*lines: tuple[str, str, float, bool]) -> pl.DataFrame:
    shape = {"side": pl.String, "text": pl.String, "mean": pl.Float64, "beyond": pl.Boolean}
    table = pl.DataFrame(list(lines), schema=shape, orient="row")
    return table.with_columns(low=pl.col("mean") - 0.2, high=pl.col("mean") + 0.2)


def test_a_title_names_what_is_beyond_chance_alone() -> None:
    told = rows(
        ("promoted", " yes", 1.4, True),
        ("promoted", " maybe", 0.9, False),
        ("suppressed", " but", -1.1, True),
    )
    title = words.tokens_title(MODELS, told, SUMMARY)
    assert title == "tuned says more “␣yes” and less “␣but”; “␣yes” 4.1 × (3.3 × to 5 ×)"
    less = words.tokens_title(MODELS, told.filter(side="suppressed"), SUMMARY)
    assert less.startswith("tuned says less “␣but”; “␣but” 0.33 ×")
    none = words.tokens_title(MODELS, told.with_columns(beyond=False), SUMMARY)
    assert none == "No token stands out of chance and rounding in what tuned says"
    assert "say the same" in words.tokens_title(MODELS, told, {**SUMMARY, "equal": True})
    quiet = words.tokens_title(MODELS, told, {**SUMMARY, "kl": 0.01})
    assert quiet == "tuned and base differ by no more than rounding in what they say"
    few = words.tokens_title(MODELS, told, {**SUMMARY, "units": 11})
    assert few == "11 texts are too few to tell a token from chance"
    long = rows(*(("promoted", "x" * 60 + str(i), 2.0 - i / 10, True) for i in range(5)))
    assert len(parted(words.tokens_title(MODELS, long, SUMMARY))[0]) <= HEADING


def test_topics_are_named_where_resamples_find_them() -> None:
    lines = [
        (topic, rank, f"t{topic}{rank}", share, stable)
        for topic, share, stable in ((0, 0.6, 0.95), (1, 0.4, 0.5))
        for rank in range(4)
    ]
    table = pl.DataFrame(lines, schema=["topic", "rank", "text", "share", "stability"], orient="row")
    title = words.topics_title(table)
    assert title == "Raised together: “t00”, “t01”, “t02” (60 %); 1 of 2 topics are found again in resamples"
    assert words.topics_title(table.filter(topic=1)) == "None of 1 topics is found again in resamples"


def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, result: JobResult) -> None:
    made = panels.panels(opened, result, chosen(opened))
    assert made[0].name == "diff-mining"
    for panel in made:
        for palette in (LIGHT, DARK):
            panel.draw(palette).altair()
        space: dict[str, object] = {}
        exec(panel.code.replace("runs/demo", opened.path), space)
        assert panel.table.equals(space["table"])
    assert f"{result.summary['contexts']:,} tokens of" in made[0].caption


def test_a_link_and_a_stored_condition_mean_the_same(opened: Opened, result: JobResult) -> None:
    selection = chosen(opened, mined_over="prompts")
    back, notices = parse(to_params(selection, opened.facts), opened.facts)
    assert not notices
    assert view.asked(opened, back).to_json() == result.condition
    changes = view.selection_of(result.condition, chosen(opened))
    assert view.asked(opened, changed(chosen(opened), **changes)).to_json() == result.condition
    assert view.planned(opened, chosen(opened, b="base")) == []


def test_the_page_before_and_after(path: Path, result: JobResult, open_app: Callable[..., AppTest]) -> None:
    for over, run in (("prompts", True), ("texts", False)):
        at = open_app(path, "diff_mining", a="base", b="tuned", mined_over=over)
        assert not at.exception
        said = " ".join(text.value for text in at.markdown)
        assert ("Where each of them changes most" in said) == run
        assert ("not been compared word by word" in said) != run


def test_factors_of_any_size_are_told() -> None:
    told = [words.times(one) for one in (-30.0, -1.0, 0.0, 2.0, 7.0, 800.0)]
    assert told == ["9.4e-14 ×", "0.37 ×", "1 ×", "7.4 ×", "1,097 ×", "more than 1,000,000 ×"]


def test_a_model_beside_itself_has_a_page(
    path: Path, opened: Opened, open_app: Callable[..., AppTest]
) -> None:
    _, found = run_live(
        opened.path, view.asked(opened, chosen(opened, a="base", b="base", mined_over="prompts"))
    )
    assert found.summary["equal"]
    at = open_app(path, "diff_mining", a="base", b="base", mined_over="prompts")
    said = " ".join(text.value for text in at.markdown)
    assert "say the same" in said
    assert "went wrong" not in said
