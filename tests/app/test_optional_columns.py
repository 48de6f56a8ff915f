"""Optional columns of prompts absent, all null or partly null: every page, experiment, panel, the report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from drawn_panels import drawn
from polars.testing import assert_frame_equal
from pydantic import ValidationError
from streamlit.testing.v1 import AppTest
from tiny_study import NOUNS, write_study

import precompute
from app import main
from app.analyses import ANALYSES
from app.frame.blocks import Report
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import defaults, update
from app.live.jobs import JobResult
from app.live.run import run_live
from app.report.build import build as report_of
from engine.errors import PatchbayError
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment
from engine.patching.spec import Condition
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import read_prompts
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
PAGES = [name for entries in main.PAGES.values() for name, *_ in entries]
COLUMNS = ("pair_id", "language", "category", "label", "answer", "choices")
STATES = ("absent", "partly", "no pair_id", "no language", "no category", "no label, answer, choices")
MOST = 1
"""Experiments of one planned set that are run: the others differ in block or site alone."""


def row(i: int) -> dict[str, Any]:
    text = f"Tom has {i} {NOUNS[i % 8]} and buys {3 * i} more. How many?"
    return {
        "id": f"q{i}",
        "text": text if i % 2 == 0 else f"小明有{i}个苹果，又买了{3 * i}个。",
        "pair_id": f"p{i // 2}",
        "language": ("en", "zh")[i % 2],
        "category": ("add", "buy", "sell")[i // 2 % 3],
        "label": ("right", "wrong")[i // 2 % 2],
        "answer": str(i // 2 * 4),
        "choices": [str(i // 2 * 4), "7"],
    }


def changed(rows: list[dict[str, Any]], state: str) -> list[dict[str, Any]]:
    """The prompts with their optional columns as a state says."""
    for number, one in enumerate(rows):
        for name in COLUMNS:
            if state == "absent" or (state.startswith("no ") and name in state):
                del one[name]
            elif state == "null" or (state == "partly" and (number // 2 + COLUMNS.index(name)) % 3 == 0):
                one[name] = None
    return rows


def write_prompts(folder: Path, state: str) -> Path:
    rows = changed([row(i) for i in range(48)], state)
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=STATES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "-").replace(",", ""))
    study = write_study(folder, positions=["last_content", "decision", "mean"])
    write_prompts(folder, request.param)
    assert precompute.main([str(study), "--store", str(folder / "store")]) == 0
    store = Store(folder / "store")
    return Opened(str(folder / "store"), store, read_facts(store))


def experiments(opened: Opened) -> list[Experiment]:
    """What the pages plan for this store; a PatchbayError says what it has not."""
    chosen = update(defaults(opened.facts), opened.facts, layer=1)
    where = {"component": "resid_post", "layer": 1, "position": "decision"}
    found: list[Experiment] = [Condition(target="tuned", source="base", kind="raw", **where)]
    for planned in itertools.chain.from_iterable(one.planned for one in ANALYSES):
        with suppress(PatchbayError):
            found += planned.experiments(opened, chosen)[:MOST]
    return found


def small(wanted: Experiment) -> Experiment:
    """The same with fewer resamples, random draws and steps."""
    least = {"n_boot": 100, "steps": 5, "answers": 2, "max_new_tokens": 2, "alphas": [1.0]}
    least["draws"] = 1 if wanted.job == "weight_steering" else 20
    for name, value in least.items():
        if name in wanted.to_json():
            with suppress(PatchbayError, ValidationError):  # a kind may bound it otherwise
                wanted = experiment_from_json(wanted.to_json() | {name: value})
    return wanted


@pytest.fixture(scope="module")
def run(opened: Opened) -> dict[str, Any]:
    """Every planned experiment: its result by job, or why there is none."""
    found: dict[str, Any] = {}
    for wanted in map(small, experiments(opened)):
        try:
            run_live(opened.path, wanted)
        except PatchbayError as error:
            found[wanted.job] = error
            continue
        log = RunLog(opened.path)
        stored = log.open(str(log.find(wanted.content_hash(opened.store.fingerprint))))
        found[wanted.job] = JobResult(stored.condition, stored.summary, stored.tables)
    return found


def holds(panel: Panel) -> None:
    """It draws, says something, and its code makes a table."""
    drawn(panel)
    assert panel.title
    assert "None" not in panel.title + panel.caption
    names: dict[str, Any] = {}
    exec(panel.code, names)
    assert "table" in names


def test_columns_of_nulls_are_read_as_absent_ones(tmp_path: Path) -> None:
    """So that a store cannot tell the two, and one of them stands for both."""
    absent, null = (
        read_prompts(PromptsSpec(files=(str(write_prompts(tmp_path, state)),)))
        for state in ("absent", "null")
    )
    assert_frame_equal(null, absent)


def test_every_experiment_runs_or_says_why_not(run: dict[str, Any]) -> None:
    assert {"patch", "mapped", "rank", "steering", "heads", "head_map", "behaviour"} <= set(run)
    for job, found in run.items():
        if isinstance(found, PatchbayError):
            assert found.what, job
            assert found.expected is not None, job


def test_every_result_is_shown(opened: Opened, run: dict[str, Any]) -> None:
    chosen = defaults(opened.facts)
    shown = 0
    for kind in itertools.chain.from_iterable(one.kinds for one in ANALYSES):
        for job in set(kind.jobs) & set(run):
            result = run[job]
            if isinstance(result, PatchbayError) or kind.nothing(result) is not None:
                continue
            changes = kind.selection_of(result.condition, chosen)
            for panel in kind.panels(opened, result, update(chosen, opened.facts, **changes)):
                holds(panel)
                shown += 1
    assert shown


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens(opened: Opened, run: dict[str, Any], open_app: Open, page: str) -> None:
    app = open_app(opened.path, page)
    assert not app.exception
    said = "\n".join(str(m.value) for m in app.markdown)
    assert "Something went wrong" not in said
    assert ":material/report:" not in said


def test_the_report_is_whole(
    opened: Opened, run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Report] = []

    def build(*asked: Any) -> Report:
        made.append(report_of(*asked))
        return made[-1]

    monkeypatch.setattr("app.report.build.build", build)
    assert precompute.main(["report", opened.path, "--out", str(tmp_path / "report")]) == 0
    panels = [panel for _, panel in made[0].panels()]
    assert panels
    for panel in panels:
        holds(panel)
