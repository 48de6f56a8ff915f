"""Cases by their names, measured in one process or several."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from benchmarks.calibration import ENTRIES, PLANTED, Entry, Measured, measure_case

__all__ = ["measured", "undecided"]

Case = tuple[str, str]


def undecided(entries: Sequence[Entry], told: Sequence[Measured]) -> list[Case]:
    """Cases that a table doesn't have, and nulls that its gate decides nothing about."""
    done = {(one.name, one.case) for one in told if one.case == PLANTED or one.passes is not None}
    return [(entry.name, case) for entry in entries for case in entry.cases if (entry.name, case) not in done]


def one_case(name: str, case: str, repeats: int | None, seed: int) -> Measured:
    """One case by its names, as another process asks for it."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)
    entry = next(e for e in ENTRIES if e.name == name)
    return measure_case(entry, case, repeats, seed)


def measured(chosen: Sequence[Case], repeats: int | None, seed: int, workers: int) -> Iterator[Measured]:
    """Cases by the names of entry and case, in order; the numbers don't depend on `workers`."""
    asked = [(*case, repeats, seed) for case in chosen]
    if workers == 1:
        yield from (one_case(*one) for one in asked)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one_case, *zip(*asked, strict=True))
