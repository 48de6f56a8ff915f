"""The report's chapter of subspace scores: what the page shows, or why there is nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_store import build_store
from subspace_runs import DELTAS, store_run

from app.frame.blocks import Report, Section, Table, Text
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults
from app.report import html
from app.report.build import CHAPTERS, section
from app.report.figures import draw_all
from app.report.own import wanted
from app.subspaces import panels as subspaces_panels
from app.subspaces import view as subspaces_view
from engine.subspaces.spec import DEFINITIONS, SubspaceScores
from store.reader import Store


def opening(path: Path) -> Opened:
    found = Store(path)
    return Opened(str(path), found, read_facts(found))


def chapter(opened: Opened, selection: Selection) -> Section:
    (one,) = [one for one in CHAPTERS if one.name == "subspaces"]
    return section(one, opened, selection)


@pytest.fixture
def unscored(tmp_path: Path) -> Opened:
    return opening(build_store(tmp_path / "store", subspaces=True))


def test_without_a_run_it_says_so_and_names_the_command(unscored: Opened) -> None:
    selection = defaults(unscored.facts)
    made = chapter(unscored, selection)
    assert not made.blocks
    assert made.missing == "No run of this kind is stored."
    (asked,) = [one for one in wanted(unscored, selection) if one.name == "subspaces"]
    assert asked.experiments == [SubspaceScores(definitions=DEFINITIONS)]


def test_without_the_section_in_the_study_it_says_what_to_add(planted: Path) -> None:
    opened = opening(planted)
    made = chapter(opened, defaults(opened.facts))
    assert "[subspaces]" not in made.missing  # the lines to add are on the page
    assert made.missing.startswith("This store holds nothing to score subspaces with.")
    assert "subspaces" not in [one.name for one in wanted(opened, defaults(opened.facts))]


def test_it_shows_what_the_page_shows(unscored: Opened) -> None:
    store_run(unscored.path, SubspaceScores(broad=5))
    newest = store_run(unscored.path)
    selection = defaults(unscored.facts)
    made = chapter(unscored, selection)
    result = subspaces_view.stored(unscored, SubspaceScores(definitions=DEFINITIONS), "")
    assert result is not None
    shown = subspaces_view.shown_of(unscored, result, selection)
    assert shown.delta == DELTAS[0]
    panels = [block for block in made.blocks if isinstance(block, Panel)]
    expected = subspaces_panels.run_panels(unscored, shown)
    assert [(p.name, p.title, p.caption, p.code) for p in panels] == [
        (p.name, p.title, p.caption, p.code) for p in expected
    ]
    assert all(one.table.equals(two.table) for one, two in zip(panels, expected, strict=True))
    texts = [block.text for block in made.blocks if isinstance(block, Text)]
    assert any(newest in text for text in texts[:2])  # behind what is said of the pair
    assert shown.found.text.split("\n")[0].replace("`", "") in texts
    assert any(text.startswith("Fragile: ") for text in texts)
    assert any(text.startswith("1 more of this kind") for text in texts)
    tables = {block.name: block.frame for block in made.blocks if isinstance(block, Table)}
    assert tables["subspace-summary"].height == len(shown.scores.names)
    assert tables["subspace-definitions"]["candidate"].to_list() == list(shown.scores.names)


def test_it_becomes_a_document(unscored: Opened) -> None:
    store_run(unscored.path)
    report = Report("t", "l", (), (chapter(unscored, defaults(unscored.facts)),))
    page = html.render(report, draw_all(report, lambda *_: None))
    assert page.count("<svg") >= 7
    assert "up_proj_output_written_contrast" in page
