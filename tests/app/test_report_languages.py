"""The report's chapters about two languages say what their pages say; runs that are missing are named."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from app.bridge import panels as bridge
from app.bridge import spaces
from app.frame.blocks import Attached, Section, Table, Text
from app.frame.opened import Opened, open_at
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults
from app.geometry import separation as geometry_separation
from app.geometry import weights as geometry
from app.report.build import CHAPTERS, build, documents
from app.report.build import section as made
from app.report.own import not_run, wanted
from app.synthesis import parts as synthesis_parts
from app.synthesis import view as synthesis
from app.weight_steering import view as weight_steering_view
from app.weight_steering.analysis import planned as steered_by_the_other
from engine.kinds import experiment_from_json


@pytest.fixture(scope="module")
def opened(planted: Path) -> Opened:
    return open_at(str(planted))


@pytest.fixture(scope="module")
def chosen(opened: Opened) -> Selection:
    return dataclasses.replace(defaults(opened.facts), layer=1, k=4)


def chapter(name: str, opened: Opened, selection: Selection) -> Section:
    (one,) = [one for one in CHAPTERS if one.name == name]
    return made(one, opened, selection)


def panels(section: Section) -> list[Panel]:
    return [block for block in section.blocks if isinstance(block, Panel)]


def same(made: list[Panel], wanted_: list[Panel]) -> None:
    assert [(p.title, p.caption) for p in made] == [(p.title, p.caption) for p in wanted_]
    assert all(a.table.equals(b.table, null_equal=True) for a, b in zip(made, wanted_, strict=True))


def test_z_geometry_is_its_page(opened: Opened, chosen: Selection) -> None:
    at = geometry.effective(opened, chosen)
    pages = [
        make(opened, at, pooling)
        for pooling in geometry.poolings(opened, at)
        for make in geometry_separation.makers(at)
    ]
    pages += [panel for make in geometry.WEIGHTS if (panel := make(opened, at)) is not None]
    section = chapter("geometry", opened, chosen)
    same(panels(section), pages)
    assert len(pages) > 6
    assert any("Z separates" in p.title or "separate" in p.title for p in pages)


def test_the_bridge_is_its_page(opened: Opened, chosen: Selection) -> None:
    at = spaces.effective(opened, chosen)
    same(panels(chapter("bridge", opened, chosen)), bridge.panels(opened, at))


def test_the_synthesis_is_its_page(opened: Opened, chosen: Selection) -> None:
    """Every part with its finding, and the checklist's table."""
    at = synthesis.effective(opened, chosen)
    parts = synthesis.parts(opened, at)
    section = chapter("synthesis", opened, chosen)
    texts = [block for block in section.blocks if isinstance(block, Text)]
    model, blocks = geometry.model_of(at), synthesis_parts.blocks(opened, at)
    assert texts[0].title == synthesis.title(parts, model, blocks)
    assert len(texts) == 1 + len(parts)
    for part, text in zip(parts, texts[1:], strict=True):
        assert text.title == f"{part.level.capitalize()}, {'met' if part.met else 'not met'}: {part.name}"
        for finding in part.findings.values():
            assert finding.words in text.text
        assert part.missing[1:] in text.text
    (table,) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.frame.equals(synthesis.table(opened, at), null_equal=True)


def test_the_whole_report_has_them_in_order(opened: Opened, chosen: Selection) -> None:
    report = build(opened, chosen)
    names = [section.name for section in report.sections]
    assert len(names) == len(CHAPTERS)
    wanted_ = ["geometry", "z_patching", "ard", "bridge", "synthesis"]
    assert [name for name in names if name in wanted_] == wanted_
    document, _ = documents(report)
    for name in wanted_:
        assert f'id="{name}"' in document


def test_what_was_not_run_names_the_languages_and_thesteered_by_the_other(
    opened: Opened, chosen: Selection
) -> None:
    asked = {one.name: one.experiments for one in wanted(opened, chosen)}
    assert {e.to_json()["job"] for e in asked["z-patching"]} == {"z_patching"}
    assert {e.to_json()["job"] for e in asked["ard"]} == {"ard"}
    blocks = not_run(opened, chosen)
    titles = [block.title for block in blocks if isinstance(block, Text)]
    assert "Z-patching" in titles
    assert "ARD-MMD" in titles
    files = {block.name for block in blocks if isinstance(block, Attached)}
    for block in blocks:
        if isinstance(block, Text) and " run " in block.code:
            said = re.search(r"--condition (.*)$", block.code)
            assert said is not None
            assert said[1] in files or experiment_from_json(json.loads(said[1].strip("'")))


def test_weights_are_steered_by_the_other_models_difference(
    opened: Opened, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not steered_by_the_other(opened, chosen)  # the store holds no difference
    monkeypatch.setattr(weight_steering_view, "can_steer", lambda _: True)
    (one,) = steered_by_the_other(opened, chosen)
    given = one.to_json()
    assert given["model"] == "base"
    assert [delta["plus"] for delta in given["deltas"]] == ["tuned"]
    (turned,) = steered_by_the_other(opened, dataclasses.replace(chosen, a=chosen.b, b=chosen.a))
    assert turned == one
    assert not steered_by_the_other(opened, dataclasses.replace(chosen, b=chosen.a))
