"""The report page: one click, then the files, a preview and the command that gives the same."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from planted_store import CHECKS, build_store
from streamlit.testing.v1 import AppTest

from app.frame.opened import open_at
from app.frame.selection import defaults, update
from app.report.build import CHAPTERS, build, documents
from app.report.page import Made, command

Open = Callable[..., AppTest]


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    said = [*(m.value for m in app.markdown), *(c.value for c in app.caption)]
    return "\n".join(said).replace("\\", "")


def button(app: AppTest) -> AppTest:
    return next(b for b in app.button if b.key == "make-report")


def kept(app: AppTest) -> Made:
    found: Made = app.session_state["report-made"][1]
    return found


def test_before_the_click_the_page_says_what_there_will_be(open_app: Open, planted: Path) -> None:
    app = open_app(planted, "report")
    said = text(app)
    assert "Not made yet" in said
    assert "base and tuned, resid_post at the last content token, all prompts" in said
    assert button(app).label == "Make the report"
    assert "Something went wrong" not in said


def test_one_click_makes_what_the_command_makes(open_app: Open, own_store: Path) -> None:
    app = open_app(own_store, "report")
    button(app).click().run()
    said = text(app)
    assert f"{len(CHAPTERS)} chapters" in said
    assert "Similarity (CKA)" in said
    assert "tuned leaves base at block 2" in said  # titles of panels are in the contents
    opened = open_at(str(own_store))
    report = build(opened, defaults(opened.facts))
    document, journal = documents(report)
    made = kept(app)
    assert made.html.decode() == document
    with zipfile.ZipFile(io.BytesIO(made.journal)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == journal
    assert made.name == "planted-base-tuned-report"
    frames = [frame.value for frame in app.dataframe]
    assert any(list(frame.columns)[:2] == ["Layer", "Hook"] for frame in frames)
    assert f"python precompute.py report {own_store}" in [c.value for c in app.code]


def test_other_settings_need_another_report(open_app: Open, own_store: Path) -> None:
    app = open_app(own_store, "report")
    button(app).click().run()
    assert "Not made yet" not in text(app)
    app.query_params["position"] = "mean"
    app.run()
    assert "Not made yet" in text(app)
    assert "at the mean over content" in text(app)


def test_an_untrusted_store_gives_no_report(open_app: Open, tmp_path: Path) -> None:
    failed = {**CHECKS[0], "value": 0.25, "passed": False}
    app = open_app(build_store(tmp_path / "failed", checks=[failed]), "report")
    assert "failed its own checks" in text(app)
    assert not [b for b in app.button if b.key == "make-report"]


def test_an_error_is_a_message(open_app: Open, planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("hidden detail")

    monkeypatch.setattr("app.report.page.build", broken)
    app = open_app(planted, "report")
    button(app).click().run()
    assert "Something went wrong on this page" in text(app)
    assert "hidden detail" not in text(app)


def test_the_command_names_the_pair_where_it_is_not_the_usual_one(planted: Path) -> None:
    opened = open_at(str(planted))
    usual = defaults(opened.facts)
    assert command(opened, usual) == f"python precompute.py report {planted}"
    turned = update(usual, opened.facts, a="tuned", b="base")
    assert command(opened, turned).endswith(" --pair base,tuned")
