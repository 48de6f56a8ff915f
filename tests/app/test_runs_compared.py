"""The Runs page: searching the list, and several runs of one kind beside each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from live_results import live_result
from streamlit.testing.v1 import AppTest

from app.frame import running as live_view
from app.frame.opened import open_at, read_facts
from app.frame.selection import defaults, update
from app.frame.stored import archived, of_pair
from app.live.jobs import JobResult
from app.patching import replacement
from app.patching.analysis import MAPPED, amplitudes
from app.runs import compare, view
from engine.kinds import experiment_from_json
from store.journal.notes import NoteLog
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]


def kept(store: Path, kl: float, **changes: object) -> tuple[str, JobResult]:
    """A stored patch of about a KL."""
    opened = Store(store)
    facts = read_facts(opened)
    condition = replacement.condition_of(update(defaults(facts), facts, **changes))
    made = live_result(condition, kl)
    key = condition.content_hash(opened.fingerprint)
    return RunLog(store).append(made.condition, made.summary, made.table, content_hash=key), made


def said(app: AppTest) -> str:
    parts = [*app.markdown, *app.caption]
    return "\n".join(str(one.value) for one in parts).replace("\\", "")


def test_two_runs_stand_beside_each_other(open_app: Open, own_store: Path) -> None:
    first, one = kept(own_store, 0.5, layer=3)
    second, other = kept(own_store, 0.2, layer=2)
    app = open_app(own_store, "runs", run=f"{first},{second}")
    assert not app.exception
    told = said(app)
    assert "1: layer 3" in told
    assert "2: layer 2" in told
    # the difference of the means of the validation prompts, by hand
    held = [run.table.filter(pl.col("split") == "validation")["kl"].to_numpy() for run in (one, other)]
    assert 2 < len(held[0]) < 12
    gap = held[1].mean() - held[0].mean()
    assert f"run 2 − run 1 is −{abs(gap):.3g} (an interval needs 12 units) on {len(held[0])} prompts" in told
    assert "Traceback" not in told
    code = next(c.value for c in app.code if "beside" in c.value)
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["table"]["difference"].drop_nulls().to_list() == [pytest.approx(gap)]


def tagged(app: AppTest) -> list[str]:
    """The tags of the runs that are listed; "" of all where the list has no such column."""
    listed = next(one.value for one in app.dataframe if "finding" in one.value)
    return list(listed["tags"]) if "tags" in listed else [""] * len(listed)


def test_an_archived_run_is_left_out_of_lists_and_can_be_taken_back(open_app: Open, own_store: Path) -> None:
    first, _ = kept(own_store, 0.5, layer=3)
    second, _ = kept(own_store, 0.2, layer=2)
    opened = open_at(str(own_store))
    pair = defaults(opened.facts)
    assert [summary["run_id"] for _, summary in of_pair(opened, pair, ("patch",))] == [second, first]
    app = open_app(own_store, "runs", run=first)
    assert app.button(key="runs-archive").label == "Archive"
    app.button(key="runs-archive").click().run()
    assert not app.exception
    assert archived(opened) == {first}
    assert [summary["run_id"] for _, summary in of_pair(opened, pair, ("patch",))] == [second]
    assert tagged(app) == [""]
    assert live_view.find(opened, experiment_from_json(RunLog(own_store).open(first).condition)) == first
    app.checkbox(key="runs-archived").check().run()
    assert tagged(app) == ["", "#archived"]
    assert app.button(key="runs-archive").label == "Take out of the archive"
    app.button(key="runs-archive").click().run()
    assert not app.exception
    assert archived(opened) == frozenset()
    assert not [box for box in app.checkbox if box.key == "runs-archived"]
    assert [note.text for note in NoteLog(own_store).list()[0]] == ["#archived", "#-archived"]


def test_a_run_alone_is_opened_and_an_unknown_one_is_said_to_be(open_app: Open, own_store: Path) -> None:
    first, _ = kept(own_store, 0.5, layer=3)
    assert "Open: run" in said(open_app(own_store, "runs", run=first))
    assert "There is no run" in said(open_app(own_store, "runs", run=f"{first},0123456789abcdef"))


def test_runs_are_named_by_what_sets_them_apart() -> None:
    base = {"job": "patch", "layer": 3, "where": {"split": "validation", "category": None}}
    other = {"job": "patch", "layer": 3, "where": {"split": "validation", "category": "claim"}}
    assert compare.labels([base, other]) == ["1: where category –", "2: where category claim"]
    assert compare.labels([base, base]) == ["Run 1", "Run 2"]


def test_kinds_that_cannot_be_compared_say_so() -> None:
    patch, head_map = {"job": "patch"}, {"job": "tokenwise"}
    assert compare.not_comparable([patch, patch]) is None
    mixed = compare.not_comparable([patch, head_map])
    assert mixed is not None
    assert mixed[0] == "Only runs of one kind can be compared"
    alone = compare.not_comparable([head_map, head_map])
    assert alone is not None
    assert alone[0] == "These runs keep no numbers of single prompts"
    strange = compare.not_comparable([{"job": "of tomorrow"}, patch])
    assert strange is not None
    assert strange[0] == "These runs can't be compared"


def test_the_list_is_searched_by_words_and_kind() -> None:
    rows = [
        ("a1", "Heads", "base ← tuned at block 3", "heads 2 and 6 carry it", "#figure2 #keep"),
        ("b2", "Patching", "At 3", "KL", ""),
    ]
    listed = pl.DataFrame(rows, schema=["run", "kind", "experiment", "finding", "tags"], orient="row")
    assert view.matching(listed, "")["run"].to_list() == ["a1", "b2"]
    assert view.matching(listed, "BLOCK carry")["run"].to_list() == ["a1"]
    assert view.matching(listed, "block kl").height == 0
    assert view.matching(listed, ".*").height == 0
    assert view.matching(listed, "#Keep")["run"].to_list() == ["a1"]
    assert view.matching(listed, "3", "Patching")["run"].to_list() == ["b2"]
    assert view.ids(",a,b,,a") == ["a", "b"]


def test_every_amplitude_is_a_figure() -> None:
    rows = {
        "id": ["x", "x", "y", "y"],
        "pair_id": ["p"] * 4,
        "alpha": [0.5, 1.0] * 2,
        "kl": [1.0, 2.0, 3.0, 4.0],
    }
    run = JobResult({}, {}, {"table": pl.DataFrame(rows)})
    assert amplitudes(run).to_dict(as_series=False) == {
        "id": ["x", "y"],
        "pair_id": ["p", "p"],
        "KL at α = 0.5, nats": [1.0, 3.0],
        "KL at α = 1, nats": [2.0, 4.0],
    }
    before = JobResult({}, {}, {"table": pl.DataFrame({"id": ["x"], "kl": [1.0]})})
    assert amplitudes(before).columns == ["id", "KL, nats"]
    assert MAPPED.each is not None
    mapped = JobResult({}, {}, {"prompts": pl.DataFrame({"id": ["x"], "kl_raw": [1.0], "kl_bogus": [2.0]})})
    assert MAPPED.each(mapped).columns == ["id", "KL moment-matched, nats"]


def test_the_title_has_an_interval_where_there_are_units_enough() -> None:
    last = {"figure": "KL, nats", "run": 1, "n": 24, "difference": -0.5}
    told = compare.title({**last, "difference_low": -0.75, "difference_high": 0.25})
    assert told == "KL, nats: run 2 − run 1 is −0.5 (−0.75 to +0.25) on 24 prompts"
    few = compare.title({**last, "difference_low": None, "difference_high": None})
    assert "to" not in few.split("is")[1]


def test_one_run_that_cannot_be_told_keeps_no_other_from_the_list(
    open_app: Open, own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(own_store, 0.5, layer=3)
    kept(own_store, 0.2, layer=2)
    told = replacement.run_panels

    def panels(opened: Any, run: JobResult, selection: Any) -> Any:
        if run.condition["layer"] == 2:
            raise ValueError("two rows where one was expected")
        return told(opened, run, selection)

    kind = replacement_kind()
    monkeypatch.setitem(kind.__dict__, "panels", panels)
    app = open_app(own_store, "runs")
    findings = app.dataframe[-1].value["finding"].to_list()
    assert len(findings) == 2
    assert [("can't be shown here" in one) for one in findings].count(True) == 1


def replacement_kind() -> Any:
    from app.patching.analysis import PATCHES

    return PATCHES
