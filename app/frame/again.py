"""Run a stored experiment again, and see whether the same numbers come out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from app import screen
from app.escape import plain
from app.frame import running as live_view
from app.frame import words
from app.frame.opened import Opened
from engine.lab.repeat import Repeat, compared, largest_difference


def repeats(opened: Opened, condition: Mapping[str, Any]) -> list[tuple[Repeat, str]]:
    """Stored repetitions of an experiment with their run ids, the first attempt first."""
    found = [
        (Repeat.from_json(other), str(summary["run_id"]))
        for other, summary in live_view.runs_of(opened, "repeat")
        if other["of"] == dict(condition)
    ]
    return sorted(found, key=lambda pair: pair[0].attempt)


def verdict(difference: float | None, attempt: int, what: str = "KL") -> str:
    """What a repetition showed.

    Rule: the largest |difference| of any KL, or of any number of a run without KLs: 'the same' when it is 0,
    else told, KLs in nats.
    """
    start = f"Run again ({attempt}): "
    if difference is None:
        return start + "its tables have another shape, so that the numbers cannot be compared."
    if difference == 0:
        return start + f"every {what} came out the same, to the last bit."
    size = f"{words.nats(difference)} nats" if what == "KL" else f"{difference:.2g}"
    return start + f"the {what}s differ by at most {size}."


def difference(opened: Opened, again: Repeat, tables: Mapping[str, pl.DataFrame]) -> float | None:
    """Largest |ΔKL| of a repetition's tables from the first run's; None where they can't be compared."""
    first = live_view.find(opened, again.experiment())
    return None if first is None else largest_difference(live_view.opened_run(opened, first).tables, tables)


def show(opened: Opened, condition: Mapping[str, Any], key: str = "again") -> None:
    """The button that runs a stored experiment again, and what earlier repetitions showed."""
    done = repeats(opened, condition)
    attempt = 1 + max((repeat.attempt for repeat, _ in done), default=0)
    again = Repeat(of=dict(condition), attempt=attempt)
    if live_view.find(opened, again.experiment()) is None:
        return
    live_view.run_button(opened, [again], "Run again and compare", key=key)
    for repeat, run_id in done:
        tables = live_view.opened_run(opened, run_id).tables
        moved = difference(opened, repeat, tables)
        screen.caption(plain(verdict(moved, repeat.attempt, compared(tables))))
