"""How often each worded conclusion is said where it is false, and where it is true."""

from __future__ import annotations

from benchmarks.calibration import (
    effects,
    geometry,
    languages,
    parts,
    patched,
    patches,
    rounding,
    steering,
    studies,
    titles,
)
from benchmarks.calibration.entry import PLANTED, Entry, Measured, measure, measure_case
from benchmarks.calibration.gate import GATE, LEVEL
from benchmarks.calibration.spoken import OWN

RULES_OF_THE_ENGINE = (geometry, effects, patched)
TITLES = (titles, patches, steering, parts, studies, languages, *OWN.values(), rounding)
ENTRIES: tuple[Entry, ...] = tuple(e for module in (*RULES_OF_THE_ENGINE, *TITLES) for e in module.ENTRIES)
"""Every conclusion, those of the engine first."""

__all__ = ["ENTRIES", "GATE", "LEVEL", "PLANTED", "Entry", "Measured", "measure", "measure_case"]
