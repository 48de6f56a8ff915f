"""How often each worded conclusion is said where it is false, and where it is true."""

from __future__ import annotations

from engine.analysis.calibration import effects, geometry, patched
from engine.analysis.calibration.entry import LEVEL, PLANTED, Entry, Measured, measure, share, table

ENTRIES: tuple[Entry, ...] = (*geometry.ENTRIES, *effects.ENTRIES, *patched.ENTRIES)
"""Conclusions whose rules are the engine's; those of titles are in `app.calibration`."""

__all__ = ["ENTRIES", "LEVEL", "PLANTED", "Entry", "Measured", "measure", "share", "table"]
