"""A server of several stores: one is chosen, links name it, and one that can't be opened is left again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.frame import opened as resources
from app.frame.fields import Facts
from app.frame.selection import defaults, parse, to_params, update
from app.stores.known import named
from tests.opened_pages import open_page
from tests.planted_store import build_store

SIZES = {"base": 4, "tuned": 4}
FACTS = Facts(("base", "tuned"), SIZES, SIZES, ("resid_post",), ("decision",))


def test_stores_are_called_after_their_folders(tmp_path: Path) -> None:
    for name in ("runs/one", "runs/two", "else/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "runs/notes").mkdir()
    runs = str(tmp_path / "runs")
    assert named([runs]) == {"one": f"{runs}/one", "two": f"{runs}/two"}
    other = str(tmp_path / "else/two")
    assert named([other, runs, f"{runs}/"]) == {"two": other, "one": f"{runs}/one", "runs/two": f"{runs}/two"}
    assert named(["s3://bucket/a", "s3://bucket/b/a"]) == {"a": "s3://bucket/a", "b/a": "s3://bucket/b/a"}
    gone = str(tmp_path / "gone")
    assert named([gone, str(tmp_path / "runs/notes")]) == {"gone": gone, "notes": f"{runs}/notes"}
    assert named([]) == {}
    assert list(named([f"{runs}/one", "s3://key:secret@bucket/one", "https://h/one?sig=secret"])) == [
        "one",
        "s3://bucket/…",
        "https://h/…",
    ]
    assert resources.stores(["--beside", "b", "--store", "a", "--beside", "./a"]) == {"a": "a", "b": "b"}
    both = resources.stores(["--store", "runs/demo", "--beside", "demo"])
    assert list(both) == ["demo", f"{Path.cwd().name}/demo"]


def test_a_link_names_the_store() -> None:
    there = dataclasses.replace(FACTS, store="two", several=True)
    chosen = update(defaults(there), there, layer=3)
    params = to_params(chosen, there)
    assert params == {"store": "two", "layer": "3"}
    assert parse(params, there) == (chosen, [])
    here, notices = parse(params, FACTS)
    assert here.layer == 3
    assert notices == ["The link names a store 'two', which this server doesn't have."]
    alone = dataclasses.replace(there, several=False)
    assert to_params(chosen, alone) == {"layer": "3"}
    assert parse(params, alone) == (chosen, []), "a link of another server to this very store"


@pytest.fixture
def two(planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The app on a planted store, beside one of three models and a folder that is none."""
    other = build_store(tmp_path / "other")
    known = {"planted": str(planted), "other": str(other), "broken": str(tmp_path)}

    def run(page: str = "similarity", **params: str) -> AppTest:
        monkeypatch.setattr(resources, "stores", lambda: known)
        return open_page(monkeypatch, planted, page, **params)

    return run


def refused(app: AppTest) -> bool:
    """Whether the page says that there is no store."""
    return any("There is no store" in text.value for text in app.markdown)


def test_another_store_is_chosen_and_the_selection_goes_along(two: Callable[..., AppTest]) -> None:
    app = two(layer="1")
    control = app.selectbox(key="choose-store")
    assert (control.value, control.options) == ("planted", ["planted", "other", "broken"])
    control.set_value("other").run()
    assert not app.exception
    assert app.query_params["store"] == "other"
    assert app.query_params["layer"] == "1"
    control = app.selectbox(key="choose-store")
    control.set_value("broken").run()
    assert not app.exception
    assert refused(app)
    app.selectbox(key="choose-store").set_value("planted").run()
    assert not refused(app)
    assert app.query_params["store"] == "planted"
    assert app.query_params["layer"] == "1"


def test_a_link_opens_its_store_and_one_to_a_broken_store_can_be_left(two: Callable[..., AppTest]) -> None:
    app = two(store="other")
    assert app.selectbox(key="choose-store").value == "other"
    assert app.query_params["store"] == "other"
    app = two(store="broken")
    assert refused(app)
    app.selectbox(key="choose-store").set_value("other").run()
    assert not refused(app)
    assert app.query_params["store"] == "other"


def test_one_store_needs_no_control(planted: Path, open_app: Callable[..., AppTest]) -> None:
    app = open_app(planted, "similarity", store="other")
    assert not [box for box in app.selectbox if box.key == "choose-store"]
    assert any("which this server doesn't have" in warning.value for warning in app.warning)


def test_a_store_stays_the_same_object(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for an open store is found again at the next rerun."""
    monkeypatch.setattr("sys.argv", ["main.py", "--store", str(planted)])
    first = resources.open_store()
    assert resources.open_store() is first
    assert (first.facts.store, first.facts.several) == (planted.name, False)
