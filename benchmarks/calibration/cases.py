"""Cases by their names, measured in one process or several."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

from benchmarks.calibration import ENTRIES, Entry, Measured, measure_case

__all__ = ["measured"]


def one_case(name: str, case: str, repeats: int | None, seed: int) -> Measured:
    """One case by its names, as another process asks for it."""
    logging.getLogger("streamlit").setLevel(logging.ERROR)
    entry = next(e for e in ENTRIES if e.name == name)
    return measure_case(entry, case, repeats, seed)


def measured(chosen: Sequence[Entry], repeats: int | None, seed: int, workers: int) -> Iterator[Measured]:
    """Every case of the chosen entries, in order; the numbers don't depend on `workers`."""
    asked = [(entry.name, case, repeats, seed) for entry in chosen for case in entry.cases]
    if workers == 1:
        yield from (one_case(*one) for one in asked)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(one_case, *zip(*asked, strict=True))
