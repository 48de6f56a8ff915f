"""What a panel is made of; no Streamlit here, so tests and notebooks can build panels too."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import altair as alt
import polars as pl

from app.charts.palette import LIGHT, Palette
from app.charts.template import Chart
from app.frame.call import Call

THINGS = (
    *("answer", "block", "candidate", "cell", "component", "dimension", "direction", "draw", "head", "layer"),
    *("pair", "place", "problem", "prompt", "row", "run", "token", "tensor", "weight"),
)
DOES = {"are": "is", "carry": "carries", "cover": "covers", "differ": "differs", "have": "has"}
DOES |= {"hold": "holds", "make": "makes", "remain": "remains", "stand": "stands"}
HEADING = 110
"""Characters of a finding that stand above its chart; what a longer one adds stands below."""
_CLAUSES = re.compile(r"; (?![^(]*\))")
_QUOTED = re.compile("(“[^”]*”)")
_ONE = re.compile(rf"(?<![\d.,/×^−-])1 ({'|'.join(THINGS)})s\b(?: ({'|'.join(DOES)})\b)?")


def typeset(text: str) -> str:
    """Numbers as they are printed: a minus sign before a number, a space before a percent sign; one thing of
    a kind in the singular. What stands inside “…” is quoted, and left alone."""
    parts = _QUOTED.split(text)
    return "".join(part if at % 2 else _typeset(part) for at, part in enumerate(parts))


def _typeset(text: str) -> str:
    text = re.sub(r"(?<=\d)%", " %", re.sub(r"(?<![\w.)\]])-(?=\.?\d)", "−", text))
    return _ONE.sub(lambda one: f"1 {one[1]}" + (f" {DOES[one[2]]}" if one[2] else ""), text)


def parted(title: str) -> tuple[str, str]:
    """A finding's heading, and what it adds: its clauses, parted by "; ", as far as they fit, and the others.

    The first clause is never parted, whatever its length.
    """
    heading, *others = _CLAUSES.split(title)
    while others and len(heading) + 2 + len(others[0]) <= HEADING:
        heading = f"{heading}; {others.pop(0)}"
    return heading, "; ".join(others)


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
    draw: Callable[[Palette], Chart]
    code: str
    caption: str
    models: tuple[str, ...]
    clickable: bool = True

    def __post_init__(self) -> None:
        for words in ("title", "caption"):
            object.__setattr__(self, words, typeset(getattr(self, words)))

    @classmethod
    def of(
        cls,
        call: Call,
        name: str,
        title: str,
        draw: Callable[[Palette], Chart],
        caption: str,
        models: tuple[str, ...],
        clickable: bool = True,
    ) -> Panel:
        """A finding about the table of a call, whose code is that very call."""
        return cls(name, title, call.table, draw, call.code, caption, models, clickable)

    @property
    def heading(self) -> str:
        """What of the title stands above the chart."""
        return parted(self.title)[0]

    @property
    def more(self) -> str:
        """What the heading has no room for: "Also: …", or nothing."""
        others = parted(self.title)[1]
        return f"Also: {others}" if others else ""

    @property
    def said(self) -> str:
        """What is read below the chart: what the heading has no room for, and the caption."""
        return f"{self.more}. {self.caption}" if self.more else self.caption

    def chart(self, palette: Palette = LIGHT) -> alt.LayerChart:
        """The drawing as an Altair chart with its data inside, for notebooks.

        It fills the width that it is given; `.properties(width=...)` gives it one of its own.
        """
        return self.draw(palette).altair()
