"""A finding above its chart is short; what it adds stands below it, and nothing of it is lost."""

from __future__ import annotations

import polars as pl
import pytest

from app.frame.panel import HEADING, Panel, parted
from app.frame.parts import LEAD, led


def panel(title: str, caption: str = "Band: bootstrap.") -> Panel:
    def draw(_palette: object) -> None:
        raise AssertionError("not drawn")

    return Panel("p", title, pl.DataFrame(), draw, "", caption, ("a",))  # type: ignore[arg-type]


def test_a_short_finding_is_its_heading() -> None:
    short = panel("tuned leaves base at block 2; above unrelated pairing everywhere")
    assert short.heading == short.title
    assert short.more == ""
    assert short.said == "Band: bootstrap."


def test_clauses_without_room_open_the_caption() -> None:
    first, second, third = "a" * 60, "b" * (HEADING - 62), "c d"
    assert parted(f"{first}; {second}") == (f"{first}; {second}", "")
    assert parted(f"{first}; {second}x") == (first, f"{second}x")
    long = panel(f"{first}; {second}; {third}")
    assert long.heading == f"{first}; {second}"
    assert long.said == "Also: c d. Band: bootstrap."


def test_a_later_clause_never_overtakes_a_longer_one() -> None:
    """It may speak of the one before it."""
    assert parted(f"{'a' * 60}; {'b' * 60}; c") == ("a" * 60, f"{'b' * 60}; c")


@pytest.mark.parametrize("rest", ["and on", "(in part; not in full)", "(p = 0.1; n = 8) of all"])
def test_what_is_in_parentheses_stays_together(rest: str) -> None:
    head, more = parted(f"{'a' * 100} {rest}; {'b' * 30}")
    assert head == f"{'a' * 100} {rest}"
    assert more == "b" * 30


def test_the_beginning_of_a_caption_is_two_lines_of_a_small_panel() -> None:
    assert led("One. Two. Three.") == "One. Two. Three."
    assert led(f"{'A' * 60}. {'B' * (LEAD - 63)}. Three.") == f"{'A' * 60}. {'B' * (LEAD - 63)}."
    assert led(f"{'A' * 200}. Two.") == f"{'A' * 200}.", "a first sentence is never parted"
