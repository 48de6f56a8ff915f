"""The tour of the demo: its stops exist, lead on, and tell what was planted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.frame.opened import read_facts
from app.frame.selection import defaults, parse, to_params, update
from app.main import PAGES
from app.tour import demo, view
from engine.study.study import Study
from store.manifest import read_manifest
from store.reader import Store
from store.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
Open = Callable[..., AppTest]


def test_it_is_about_the_demo_that_ships() -> None:
    content = Study.load(ROOT / "studies/demo.toml").to_json()["content"]
    assert content["models.tuned.adapter"] == demo.ADAPTER


def test_the_last_stop_tells_the_truth() -> None:
    planted = json.loads((ROOT / "demo/planted.json").read_text())
    said = demo.STOPS[-1].look
    heads = " and ".join(map(str, planted["attention"]["heads"]))
    assert f"rank {planted['rank']}" in said
    assert f"heads {heads} in block {planted['attention']['layer']}" in said
    assert f"the MLP output of block {planted['mlp']['layer']}" in said
    assert planted["attention"]["module"] == "o_proj"
    assert planted["changed_layers"] == [planted["attention"]["layer"], planted["mlp"]["layer"]]
    assert not any("block 4" in stop.look or "block 5" in stop.look for stop in demo.STOPS[:-1])


def test_every_stop_is_a_page_and_its_selection_comes_back(planted: Path) -> None:
    pages = {name for section in PAGES.values() for name, *_ in section}
    facts = read_facts(Store(planted))
    for number, stop in enumerate(demo.STOPS, start=1):
        assert stop.page in pages
        wanted = update(defaults(facts), facts, **stop.selection, tour=number)
        assert parse(to_params(wanted, facts), facts)[0] == wanted


@pytest.fixture
def toured(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (demo, view):
        monkeypatch.setattr(module, "offered", lambda _opened: True)


def said(app: AppTest) -> str:
    return "\n".join(str(one.value) for one in app.markdown)


def test_a_stop_stands_above_its_page_until_the_tour_ends(
    open_app: Open, planted: Path, toured: None
) -> None:
    app = open_app(planted, "similarity", tour="1")
    assert not app.exception
    assert f"Stop 1 of {len(demo.STOPS)}" in said(app)
    app.button(key="tour-end").click().run()
    assert "Stop 1 of" not in said(app)
    assert "Stop 5 of" in said(open_app(planted, "weights", tour="5"))


def test_other_studies_have_no_tour(open_app: Open, planted: Path) -> None:
    assert not demo.offered(
        type("Opened", (), {"store": Store(planted), "facts": read_facts(Store(planted))})()
    )
    assert "Stop 1 of" not in said(open_app(planted, "similarity", tour="1"))
    assert "tour" not in read_manifest(open_source(planted))
