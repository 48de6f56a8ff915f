"""The Overview says of each analysis what its page says first, and runs what has not been run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from live_study import CHANGED, make_store
from opened_pages import open_page
from planted_store import CHECKS

from app.analyses import ANALYSES
from app.charts.palette import LIGHT
from app.frame.opened import Opened, open_at
from app.frame.selection import Selection
from app.live.headless import run_all
from app.overview.findings import FIRST, SMALL, Answer, findings, small
from app.report.build import pair_selection
from app.similarity import panels as similarity
from engine.behaviour.spec import Behaviour
from engine.heads.spec import HeadSubsets
from engine.lab.experiment import Experiment
from engine.patching.mapped_spec import MappedPatch
from store.files import seal, unseal
from store.runs import RunLog

PAIR = {"target": "tuned", "source": "base"}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = make_store(tmp_path_factory.mktemp("overview"), "float32")
    manifest = unseal((path / "manifest.json").read_bytes(), "manifest")
    (path / "manifest.json").write_bytes(seal(manifest | {"self_checks": CHECKS}))
    asked: list[Experiment] = [
        MappedPatch.model_validate({**PAIR, "component": "resid_post", "layer": layer})
        for layer in (CHANGED, CHANGED + 1)
    ]
    asked.append(HeadSubsets(component="head_z", layer=CHANGED, most=2, n_boot=100, **PAIR))
    asked += [Behaviour(model=name, measures=("soft_refusal",), n_boot=100) for name in ("base", "tuned")]
    assert not run_all(str(path), asked, device="cpu", quiet=True)
    return open_at(str(path))


@pytest.fixture(scope="module")
def selection(opened: Opened) -> Selection:
    return pair_selection(opened, "tuned,base")


@pytest.fixture(scope="module")
def found(opened: Opened, selection: Selection) -> dict[str, Answer]:
    return {one.analysis.name: one for one in findings(ANALYSES, opened, selection)}


def test_each_analysis_with_a_result_says_one_thing_in_order(
    found: dict[str, Answer],
) -> None:
    assert {"similarity", "patching", "behaviour"} <= set(found)
    assert not {"rank", "z_patching", "weight_steering"} & set(found)  # nothing of them was run
    assert "heads" not in found  # the block that was run has no effect
    places = [FIRST.index(name) for name in found if name in FIRST]
    assert places == sorted(places)
    assert list(found)[: len(places)] == [name for name in FIRST if name in found]


def test_it_is_what_the_page_says(found: dict[str, Answer], opened: Opened, selection: Selection) -> None:
    assert found["similarity"].panel.title == similarity.curve_panel(opened, selection).title
    assert found["behaviour"].selection.measure == "soft_refusal"  # agreement was not measured
    assert "tuned" in found["behaviour"].panel.title


def test_the_patch_is_the_one_that_saves_most_on_train(found: dict[str, Answer], opened: Opened) -> None:
    shown = found["patching"].selection
    saved = {}
    for run_id in RunLog(opened.path).list()["run_id"]:
        run = RunLog(opened.path).open(run_id)
        if run.condition.get("job") == "mapped":
            kept = run.tables["prompts"].filter(split="train")
            saved[run.condition["layer"]] = float((kept["kl_raw"] - kept["kl_mapped"]).mean())  # type: ignore[arg-type]
    assert shown.layer == max(saved, key=lambda layer: saved[layer])


def test_a_damaged_run_gives_way_to_the_next(
    found: dict[str, Answer], opened: Opened, selection: Selection
) -> None:
    at = found["patching"].selection.layer
    runs = RunLog(opened.path)
    (run_id,) = [
        one
        for one in runs.list()["run_id"]
        if runs.open(one).condition.get("layer") == at and runs.open(one).condition["job"] == "mapped"
    ]
    table = next((Path(opened.path) / "runs" / run_id).glob("**/*.parquet"))
    whole = table.read_bytes()
    try:
        table.write_bytes(whole[:-20])
        left = {one.analysis.name: one for one in findings(ANALYSES, opened, selection)}
    finally:
        table.write_bytes(whole)
    assert left["patching"].selection.layer != at
    assert set(left) == set(found)


def test_no_other_pair_s_difference_is_told(opened: Opened) -> None:
    """The store keeps differences from `base`; of `tuned` and `other` it knows none."""
    told = {one.analysis.name for one in findings(ANALYSES, opened, pair_selection(opened, "other,tuned"))}
    assert not {"weights", "subspaces"} & told


def test_one_that_fails_leaves_the_others(opened: Opened, selection: Selection) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    analyses = [
        dataclasses.replace(one, headline=broken) if one.name == "similarity" else one for one in ANALYSES
    ]
    told = {one.analysis.name for one in findings(analyses, opened, selection)}
    assert {"patching", "behaviour"} <= told
    assert "similarity" not in told


def test_a_small_chart_has_the_data_of_the_large_one(found: dict[str, Answer]) -> None:
    for one in found.values():
        whole, little = one.panel.draw(LIGHT).spec(), small(one.panel, LIGHT)
        marks = [
            part for part in whole["layer"] if dict(part["mark"])["type"] != "text"
        ]  # names are left out
        assert [part["data"] for part in little["layer"]] == [part["data"] for part in marks]
        assert marks
        assert little["height"] == SMALL


def test_the_page_shows_them_and_offers_the_rest(
    found: dict[str, Answer], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page(monkeypatch, opened.path, "overview", a="base", b="tuned")
    assert not app.exception
    said = " ".join(text.value for text in app.markdown)
    for one in found.values():
        assert one.panel.title[:20] in said.replace("\\", "")
    (everything,) = [button for button in app.button if button.key == "run-all"]
    singles = [button for button in app.button if str(button.key).startswith("run-next-")]
    assert everything.label.startswith("Run all ")
    assert len(singles) >= 3
    assert not any("Heads of one block" in str(one.label) and one.disabled for one in singles)


def test_one_model_alone_has_no_findings(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    app = open_page(monkeypatch, opened.path, "overview", a="base", b="base")
    assert not app.exception
    assert not [button for button in app.button if button.key == "run-all"]
    assert app.metric  # what the store holds is still there
