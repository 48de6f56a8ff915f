"""The page of heads: titles by their rules, panels whose code gives their tables, every state of the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from drawn_panels import drawn
from live_study import BLOCKS, CHANGED, make_store
from planted_store import CHECKS
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.frame import export
from app.frame.opened import Opened, read_facts
from app.frame.selection import Facts, Selection, changed, defaults
from app.heads import view as heads_view
from app.heads import words as heads_words
from app.live.jobs import JobResult, JobStatus
from app.live.run import run_live
from store.reader import Store

Open = Callable[..., AppTest]
LAYER = CHANGED + 1
"""The first block whose heads see the change."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of tiny models with four stored results: two blocks and the maps of both substitutes."""
    path = make_store(tmp_path_factory.mktemp("heads"))
    chosen = selection(path)
    for layer in (0, LAYER):
        run_live(str(path), heads_view.experiment_of(chosen, layer))
    run_live(str(path), heads_view.map_of(chosen))
    return path


def selection(path: Path, **changes: Any) -> Selection:
    start = defaults(read_facts(Store(path)))
    return changed(start, a="base", b="tuned", substitute="head_out", layer=LAYER, **changes)


@pytest.fixture(scope="module")
def opened(store: Path) -> Opened:
    found = Store(store)
    return Opened(str(store), found, read_facts(found))


def stored(opened: Opened, experiment: Any) -> JobResult:
    from store.runs import RunLog

    log = RunLog(opened.path)
    run_id = log.find(experiment.content_hash(opened.store.fingerprint))
    assert run_id is not None
    run = log.open(run_id)
    return JobResult(run.condition, run.summary, run.tables)


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    said = "\n".join([*(m.value for m in app.markdown), *(c.value for c in app.caption)])
    assert "Something went wrong" not in said
    assert ":material/report:" not in said
    return said


@pytest.mark.parametrize("what", ["block", "map"])
def test_the_code_of_every_panel_gives_its_table(opened: Opened, what: str) -> None:
    chosen = selection(Path(opened.path))
    experiment = heads_view.experiment_of(chosen) if what == "block" else heads_view.map_of(chosen)
    panels = heads_view.run_panels(opened, stored(opened, experiment), chosen)
    assert len(panels) == (7 if what == "block" else 3)
    assert len({panel.name for panel in panels}) == len(panels)
    for panel in panels:
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert scope["table"].equals(panel.table)
        assert panel.models == ("tuned", "base")
        for palette in (LIGHT, DARK):
            drawn(panel, palette)
        assert panel.title in export.svg_bytes(panel.draw(LIGHT), panel.title).decode().replace("&apos;", "'")
        assert "validation prompts" in panel.caption
        assert "Null" in panel.caption or "rounding" in panel.caption
        assert export.csv_bytes(panel.table)


def test_a_block_without_an_effect_has_a_reason_and_no_bars(opened: Opened) -> None:
    chosen = selection(Path(opened.path))
    result = stored(opened, heads_view.experiment_of(chosen, 0))
    title, why = heads_view.nothing(result) or ("", "")
    assert "no effect" in title
    assert "nothing to cover" in why
    assert heads_view.run_panels(opened, result, chosen) == []
    assert heads_view.nothing(stored(opened, heads_view.experiment_of(chosen))) is None


def test_the_page_shows_stored_results_without_a_model(
    store: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "self_checks", lambda _store: CHECKS)
    params = {"a": "base", "b": "tuned", "substitute": "head_out"}
    said = text(open_app(store, "heads", layer=str(LAYER), **params))
    assert f"block {LAYER}'s effect on tuned" in said
    assert "nothing to cover in blocks" in said
    empty = text(open_app(store, "heads", layer="0", **params))
    assert "There is no effect of block 0's heads to divide up" in empty
    other = open_app(store, "heads", layer="1", **params)
    assert "The heads of block 1 have not been run under these settings" in text(other)
    assert "Run this block" in {button.label for button in other.button}
    assert "Run before" in text(other)  # the map of every block


def test_the_page_without_a_one_token_position_says_so(
    planted: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Facts, "tokens", ())
    assert heads_view.WHY_EMPTY[0] in text(open_app(planted, "heads"))


def test_a_result_leads_back_to_its_settings(opened: Opened) -> None:
    for changes in (
        {},
        {"target": "a"},
        {"vectors": "raw", "substitute": "head_z", "read_at": "decision", "language": "zh", "layer": 1},
    ):
        chosen = changed(selection(Path(opened.path)), **changes)
        for make in (heads_view.experiment_of, heads_view.map_of):
            condition = make(chosen).to_json()  # type: ignore[operator]
            start = selection(Path(opened.path), category="add")
            back = changed(start, **heads_view.selection_of(condition, start))
            back = dataclasses.replace(back, layer=chosen.layer)
            assert make(back) == make(chosen)  # type: ignore[operator]


def test_a_growing_map_is_read_from_the_running_job(opened: Opened) -> None:
    experiment = heads_view.map_of(selection(Path(opened.path)))
    cells = [
        {"layer": 0, "head": 0, "kl": 0.0, "coverage": None},
        {"layer": 1, "head": 0, "kl": 0.1, "coverage": 3.0},
    ]
    job = JobStatus("1", "k", "s", experiment, "running", partial={"cells": cells})
    found = heads_view.growing([job])
    assert found is not None
    assert found["coverage"].to_list() == [None, 3.0]
    assert heads_view.growing([dataclasses.replace(job, partial=None)]) is None


CONDITION = {"layer": 4, "target": "tuned", "source": "base"}
EFFECT = {"kl": 0.37, "low": 0.2, "high": 0.6, "floor": 1e-7, "shown": True}


def singles(coverage: list[float], half: float = 5.0, train: list[float] | None = None) -> pl.DataFrame:
    """Heads with what they cover alone on validation, and on train (the same unless given)."""
    return pl.DataFrame(
        {
            "head": range(len(coverage)),
            "coverage": coverage,
            "low": [c - half for c in coverage],
            "high": [c + half for c in coverage],
            "coverage_train": coverage if train is None else train,
        }
    )


def test_a_title_says_more_than_any_other_only_when_intervals_separate_the_first_on_train() -> None:
    def title(table: pl.DataFrame) -> str:
        return heads_words.singles_title(table, CONDITION, {"effect": EFFECT})

    of = "block 4's effect on tuned (0.37 nats)"
    assert title(singles([1, 90, 2, 3])) == (
        f"Head 1, the first on train, alone covers 90 % (85 to 95) of {of}; more than any other head"
    )
    assert title(singles([1, 60, 55, 3])) == (
        f"Head 1, the first on train, alone covers 60 % (55 to 65) of {of}; head 2 is level within the "
        "intervals"
    )
    assert title(singles([10, 11, 12, 13])).startswith(
        "No head is told apart by what it covers alone; head 3"
    )
    other = singles([1, 60, 90, 62, 91], train=[1, 90, 60, 3, 4])
    assert title(other) == (
        f"Head 1, the first on train, alone covers 60 % (55 to 65) of {of}; head 3 is level within the "
        "intervals, heads 2 and 4 above"
    )
    assert title(other.filter(pl.col("head") != 3)).endswith("; heads 2 and 4 are above")


def test_the_curve_title_says_localised_only_when_it_is() -> None:
    found = {"heads": [2, 6], "coverage": 98.0, "low": 95.0, "high": 101.0, "random": 25.0, "localised": True}
    summary = {"effect": EFFECT, "carrying": found, "n_heads": 8}
    title = heads_words.curve_title(pl.DataFrame(), CONDITION, summary)
    assert title == "Heads 2 and 6 carry 98 % (95 to 101) of block 4's effect on tuned (0.37 nats): localised"
    spread = heads_words.curve_title(
        pl.DataFrame(), CONDITION, {**summary, "carrying": {**found, "localised": False}}
    )
    assert "localised" not in spread
    assert "2 of 8 heads, where random sets of that size cover 25 %" in spread
    curve = pl.DataFrame({"kind": ["greedy"], "k": [7], "coverage": [60.0], "low": [50.0], "high": [70.0]})
    none = heads_words.curve_title(curve, CONDITION, {**summary, "carrying": None})
    assert none.startswith("No set of up to 7 heads is shown to carry block 4's effect")


def without(left: list[float], train: list[float], half: float = 3.0) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "head": range(len(left)),
            "without_coverage": left,
            "without_low": [v - half for v in left],
            "without_high": [v + half for v in left],
            "without_train": train,
        }
    )


def test_a_head_is_needed_only_when_little_is_left_without_it() -> None:
    def title(table: pl.DataFrame) -> str:
        return heads_words.without_title(table, CONDITION, {"effect": EFFECT})

    of = "block 4's effect on tuned (0.37 nats)"
    none = title(without([97, 99, 100], [99, 97, 100]))
    assert none == (
        f"No single head is shown to be needed for {of}; without head 1, missed most on train, "
        "99 % (96 to 102) is left"
    )
    one = title(without([10, 99, 100], [12, 98, 100]))
    assert one.startswith(f"Head 0 can't be left out of {of}; without head 0, missed most on train, 10 %")
    both = without([10, 12, 100], [12, 10, 100])
    assert title(both).startswith(f"Heads 0 and 1 can't be left out of {of}; without head 1, missed most")
    assert title(both.drop("without_train")) == f"Heads 0 and 1 can't be left out of {of}"


def both(coverage: list[float], train: list[float]) -> pl.DataFrame:
    ends = [{"low": c - 5.0, "high": c + 5.0, "coverage": c} for c in coverage]
    names = [{"first": 0, "second": i + 1, "coverage_train": t} for i, t in enumerate(train)]
    return pl.DataFrame([a | b for a, b in zip(names, ends, strict=True)])


def test_the_pair_that_is_named_is_the_first_on_train() -> None:
    def title(table: pl.DataFrame) -> str:
        return heads_words.both_title(table, CONDITION, {"effect": EFFECT})

    of = "block 4's effect on tuned (0.37 nats)"
    assert title(both([90.0, 20.0], [80.0, 70.0])) == (
        f"Heads 0 and 1, first on train, cover 90 % (85 to 95) of {of}; more than any other pair"
    )
    assert title(both([50.0, 90.0, 52.0], [80.0, 70.0, 1.0])) == (
        f"Heads 0 and 1, first on train, cover 50 % (45 to 55) of {of}; 1 other is level within the "
        "intervals, 1 other above"
    )
    assert (
        title(both([50.0, 90.0], [1.0, 2.0]).drop("coverage_train")) == f"What 2 pairs of heads cover of {of}"
    )


def pairs(values: list[tuple[float, float, float]]) -> pl.DataFrame:
    rows = [
        {"first": 0, "second": i + 1, "interaction": v, "interaction_low": low, "interaction_high": high}
        for i, (v, low, high) in enumerate(values)
    ]
    return pl.DataFrame(rows)


def test_interactions_are_told_only_beyond_their_intervals() -> None:
    summary = {"effect": EFFECT}
    none = heads_words.pairs_title(pairs([(5, -1, 9), (0.1, 0.05, 0.2)]), CONDITION, summary)
    assert none.startswith("No pair of heads is shown")
    one = heads_words.pairs_title(pairs([(5, -1, 9), (-8, -12, -4)]), CONDITION, summary)
    assert one.startswith("Heads 0 and 2 together do 8.0 % (4.0 to 12.0) less of")
    assert one.endswith("no other pair is shown to")
    known = pairs([(5, 1, 9), (-8, -12, -4)]).with_columns(interaction_train=pl.Series([9.0, -2.0]))
    named = heads_words.pairs_title(known, CONDITION, summary)
    assert named.startswith("Heads 0 and 1 together do 5.0 % (1.0 to 9.0) more"), "larger on train"
    assert named.endswith("1 other pairs of 2 interact")


@pytest.mark.parametrize(
    ("gradient", "direct", "said"),
    [
        ((0.9, 0.01), (0.8, 0.02), "does; ρ = 0.90, p = 0.01 and ρ = 0.80, p = 0.02"),
        ((0.9, 0.01), (0.5, 0.2), "direct attribution is not shown to (ρ = 0.50, p = 0.2)"),
        ((0.6, 0.04), (-0.9, 0.001), "Neither gradient × activation"),
        ((0.9, 0.01), None, "direct attribution is not shown to (too few)"),
    ],
)
def test_predictors_are_said_to_order_heads_only_when_they_do(
    gradient: tuple[float, float], direct: tuple[float, float] | None, said: str
) -> None:
    def found(pair: tuple[float, float] | None) -> dict[str, Any]:
        if pair is None:
            return {"rho": None, "p": None, "n": 4, "reason": "too few"}
        return {"rho": pair[0], "p": pair[1], "n": 8, "reason": ""}

    summary = {"correlations": {"gradient": found(gradient), "direct": found(direct)}}
    assert said in heads_words.predictors_title(summary)


def test_the_maps_titles_rank_no_further_than_intervals() -> None:
    cells = pl.DataFrame(
        {
            "layer": [0, 1],
            "head": [0, 0],
            "kl": [0.1, 0.3],
            "kl_low": [0.08, 0.2],
            "kl_high": [0.12, 0.4],
            "kl_train": [0.1, 0.2],
            "coverage": [None, 90.0],
            "low": [None, 80.0],
            "high": [None, 95.0],
        }
    )
    blocks = [{"layer": 0, "shown": False}, {"layer": 1, "shown": True}]
    summary = {"blocks": blocks, "top": [{"layer": 1, "head": 0}]}
    assert "more than any other head" in heads_words.cells_title(cells, CONDITION, summary)
    level = cells.with_columns(kl_low=pl.lit(0.0))
    assert heads_words.cells_title(level, CONDITION, summary) == (
        "Head 0 of block 1, the first on train, moves tuned by 0.3 nats (0 to 0.4); 1 other is level within "
        "the intervals"
    )
    other = cells.with_columns(kl_train=pl.Series([0.2, 0.1]))
    assert heads_words.cells_title(other, CONDITION, summary) == (
        "Head 0 of block 0, the first on train, moves tuned by 0.1 nats (0.08 to 0.12); 1 other is above"
    )
    title = heads_words.map_title(cells, CONDITION, summary)
    assert title.startswith("Head 0 of block 1, the first on train,")
    assert title.endswith("nothing to cover in block 0")
    assert "beyond rounding" in heads_words.map_title(cells, CONDITION, {**summary, "top": []})
    frame = pl.DataFrame({"layer": [0, 1], "kl": [0.1, 0.3], "low": [0.0, 0.2], "high": [0.15, 0.4]})
    every = frame.with_columns(shown=pl.Series([False, True]), kl_train=pl.Series([0.1, 0.2]))
    assert heads_words.kl_title(every, CONDITION) == (
        "All heads together move tuned most at block 1: 0.3 nats (0.2 to 0.4); it is the first on train"
    )
    turned = every.with_columns(kl_train=pl.Series([0.2, 0.1]))
    assert heads_words.kl_title(turned, CONDITION) == (
        "All heads of block 0, the first on train, move tuned by 0.1 nats (0 to 0.15); block 1 is above"
    )
    assert (
        heads_words.kl_title(every.drop("kl_train"), CONDITION)
        == "What all heads of a block together do to tuned"
    )


def test_blocks_of_the_store_are_those_of_the_map(opened: Opened) -> None:
    chosen = selection(Path(opened.path))
    assert stored(opened, heads_view.map_of(chosen)).tables["blocks"].height == BLOCKS
