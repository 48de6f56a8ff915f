"""What a report is made of. Plain data: renderers turn it into HTML or Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from app.frame.panel import Panel


@dataclass(frozen=True)
class Table:
    """A table with a heading; renderers show numbers with four significant digits.

    Args:
        name: short file name stem.
        frame: what its file has. shown: what is read, where that is another form of it.
        folded: whether a reader opens it first, where the format can fold.
    """

    name: str
    title: str
    frame: pl.DataFrame
    caption: str = ""
    folded: bool = False
    shown: pl.DataFrame | None = None

    @property
    def read(self) -> pl.DataFrame:
        """What is read."""
        return self.frame if self.shown is None else self.shown


@dataclass(frozen=True)
class Text:
    """A paragraph, with a heading and lines of code where they are given."""

    text: str
    title: str = ""
    code: str = ""
    language: str = "bash"


@dataclass(frozen=True)
class Attached:
    """A file that belongs to the report."""

    name: str
    data: bytes


Block = Panel | Table | Text | Attached


@dataclass(frozen=True)
class Section:
    """One chapter; without blocks, `missing` says why there is nothing.

    Args:
        name: short, unique: the anchor of the section.
    """

    name: str
    title: str
    intro: str
    blocks: tuple[Block, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Report:
    """A whole report.

    Args:
        facts: (name, value) pairs below the title.
    """

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    sections: tuple[Section, ...]

    def panels(self) -> Iterator[tuple[str, Panel]]:
        """Every panel with a key that is unique in the report."""
        for key, block in self.keyed():
            if isinstance(block, Panel):
                yield key, block

    def keyed(self) -> Iterator[tuple[str, Block]]:
        """Every block with its key, in order."""
        for section in self.sections:
            yield from keys(section)


def keys(section: Section) -> Iterator[tuple[str, Block]]:
    """The blocks of a section with their keys: its name, a number, and the block's own name."""
    for number, block in enumerate(section.blocks, 1):
        own = "" if isinstance(block, Text) else f"-{block.name}"
        yield f"{section.name}-{number}{own}", block
