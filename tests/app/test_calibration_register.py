"""Nothing that a page says goes uncalibrated: every function that words something is in the register."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest

from benchmarks.calibration import ENTRIES, Entry
from benchmarks.calibration.scan import ROOT, speaking
from benchmarks.calibration.spoken import CONCLUDES, FIGURES, PHRASES, RULES

BY_NAME = {entry.name: entry for entry in ENTRIES}


def test_every_function_that_words_something_is_registered_once() -> None:
    known = [*CONCLUDES, *FIGURES, *PHRASES]
    assert len(known) == len(set(known))
    found = speaking()
    assert not found - set(known), "give it an Entry, or say in calibration/spoken.py why it needs none"
    assert not set(known) - found, "it is gone; take it out of benchmarks/calibration/spoken.py"


def test_the_register_and_the_entries_name_each_other() -> None:
    named = {name for names in CONCLUDES.values() for name in names}
    assert named == set(BY_NAME)
    assert set(RULES) <= set(CONCLUDES)
    assert all(CONCLUDES.values())
    assert all(FIGURES.values())


def test_a_title_that_nobody_registered_is_found(tmp_path: Path) -> None:
    """In each of the ways in which a page can say something."""
    (tmp_path / "engine/similarity").mkdir(parents=True)
    (tmp_path / "app").mkdir()
    (tmp_path / "app/new_words.py").write_text(
        "def finding(x: float) -> str:\n    return 'Everything is better'\n"
        "def _helper(x: float) -> str:\n    return ''\n"
        "def count(x: float) -> int:\n    return 0\n"
    )
    (tmp_path / "app/panels.py").write_text(
        "def own(x):\n    title = 'a'\n    title += 'b'\n    return Panel('x', title, x)\n"
        "def told(x):\n    title = say.some_title(x)\n    return Panel('x', title, x)\n"
        "def both(x):\n    title = say.some_title(x)\n    title = f(title)\n    return Panel('', title, x)\n"
        "def some_title(x) -> str:\n    return ''\n"
        "def part(x):\n    return Finding('key', 'words', 1)\n"
    )
    (tmp_path / "engine/similarity/one.py").write_text(
        "class A:\n    @property\n    def words(self) -> str:\n        return ''\n"
        "def conclude(x) -> str:\n    return ''\n"
    )
    assert speaking(tmp_path) == {
        "app.new_words.finding",
        "app.panels.own",
        "app.panels.both",
        "app.panels.some_title",
        "app.panels.part",
        "engine.similarity.one.words",
        "engine.similarity.one.conclude",
    }


def called(rule: Callable[[Any], bool], given: Any) -> set[str]:
    """Dotted names of the project's functions that a rule calls."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            found.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        rule(given)
    finally:
        sys.setprofile(before)
    paths = ((Path(code.co_filename), code.co_name) for code in found)
    inside = ((path, name) for path, name in paths if path.is_relative_to(ROOT))
    return {".".join((*path.relative_to(ROOT).with_suffix("").parts, name)) for path, name in inside}


@pytest.fixture(scope="module")
def asked() -> dict[str, set[str]]:
    """What every entry's rule calls, on one draw of its plant and of each null."""

    def of(entry: Entry) -> set[str]:
        rng = np.random.default_rng(0)
        return set().union(*(called(entry.rule, m(rng)) for m in (entry.planted, *entry.nulls.values())))

    return {name: of(entry) for name, entry in BY_NAME.items()}


@pytest.mark.parametrize("function", sorted(CONCLUDES))
def test_an_entry_asks_the_function_that_the_page_calls(function: str, asked: dict[str, set[str]]) -> None:
    """The very function, or the one that decides what it words."""
    calls = set().union(*(asked[name] for name in CONCLUDES[function]))
    assert RULES.get(function, function) in calls
