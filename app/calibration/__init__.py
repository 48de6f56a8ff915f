"""Every conclusion that a page words, with how it is drawn where it is false and where it is true."""

from __future__ import annotations

from app.calibration import languages, parts, patches, rounding, steering, studies, titles
from app.calibration.spoken import OWN
from engine.analysis.calibration import ENTRIES as ENGINE
from engine.analysis.calibration import Entry

TITLES = (titles, patches, steering, parts, studies, languages, *OWN.values(), rounding)
ENTRIES: tuple[Entry, ...] = (*ENGINE, *(entry for module in TITLES for entry in module.ENTRIES))
"""Every conclusion, those of the engine first."""

__all__ = ["ENTRIES"]
