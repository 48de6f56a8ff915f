"""Prompts of templates: those of one have more in common than others."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.lab.units import resampling_units

TEMPLATES = "prompts of 24 templates"


def many(templates: NDArray[np.intp] | None) -> NDArray[np.int64] | None:
    """What intervals draw of prompts of these templates, by the rule that pages use."""
    if templates is None:
        return None
    names = [f"template {one}" for one in templates]
    return np.asarray(resampling_units(pl.DataFrame({"category": names})))
