"""What a panel is made of; no Streamlit here, so tests and notebooks can build panels too."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from app.charts.palette import Palette
from app.charts.spec import Spec


def typeset(text: str) -> str:
    """Numbers as they are printed: a minus sign before a number, a space before a percent sign."""
    return re.sub(r"(?<=\d)%", " %", re.sub(r"(?<![\w.)\]])-(?=\.?\d)", "−", text))


@dataclass(frozen=True)
class Panel:
    """One finding: words, chart, table and how to get them again.

    Title and caption are typeset.

    Args:
        name: short file name stem, also the key of the panel.
        title: the finding in words.
        table: what the chart draws.
        draw: chart for a palette; called again for exports with the light one.
        code: notebook lines that end with `table`.
        caption: null, interval and how to read the chart.
        models: whose provenance the footer names.
        clickable: whether a click selects a layer.
    """

    name: str
    title: str
    table: pl.DataFrame
    draw: Callable[[Palette], Spec]
    code: str
    caption: str
    models: tuple[str, ...]
    clickable: bool = True

    def __post_init__(self) -> None:
        for words in ("title", "caption"):
            object.__setattr__(self, words, typeset(getattr(self, words)))
