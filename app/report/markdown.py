"""A report as a Markdown journal: one text, with its figures and data as files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping

import polars as pl

from app.escape import apart
from app.frame import export
from app.frame.blocks import Attached, Block, Report, Section, Table, Text, keys
from app.report.cells import cell, numeric, readable

NAME = "report.md"
LONGEST = 40
"""Rows of a table in the text; the CSV beside it has all of them."""

_MARKS = re.compile(r"([\\`*\[\]<|~$]|(?<!\w)_|_(?!\w)|&(?=#?\w+;))")
_STARTS = re.compile(r"^([-+=>#]|\d+(?=[.)]))")


def files(report: Report, figures: Mapping[str, str]) -> dict[str, bytes]:
    """The journal and what it refers to, by relative path.

    Args:
        figures: SVG of every panel by its key; see `app.report.figures`.
    """
    found = {NAME: render(report).encode()}
    for key, block in report.keyed():
        if isinstance(block, Text):
            continue
        if isinstance(block, Attached):
            found[block.name] = block.data
            continue
        frame = block.frame if isinstance(block, Table) else block.table
        found[f"data/{key}.csv"] = export.csv_bytes(frame)
        if key in figures:
            found[f"figures/{key}.svg"] = figures[key].encode()
    return found


def render(report: Report) -> str:
    """The text."""
    parts = [f"# {inline(report.title)}", escape(report.lead)]
    parts.append("\n".join(f"- {inline(name)}: {inline(value)}" for name, value in report.facts))
    parts.append("\n".join(f"- [{inline(s.title)}](#{anchor(s.title)})" for s in report.sections))
    parts += [part for section in report.sections for part in _section(section)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text as a paragraph of Markdown that shows exactly this text, on one line."""
    line = inline(text)
    start = _STARTS.match(line)
    if start is None:
        return line
    at = start.end() if line[0].isdigit() else 0
    return f"{line[:at]}\\{line[at:]}"


def inline(text: str) -> str:
    """Text inside a line of Markdown: a heading, a cell."""
    return apart(_MARKS.sub(r"\\\1", " ".join(readable(text).split())))


def anchor(title: str) -> str:
    """The anchor that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _section(section: Section) -> list[str]:
    parts = [f"## {inline(section.title)}", escape(section.intro)]
    for key, block in keys(section):
        parts += _block(key, block)
    return [*parts, f"> {inline(section.missing)}" if section.missing else ""]


def _block(key: str, block: Block) -> list[str]:
    if isinstance(block, Text):
        heading = f"### {inline(block.title)}" if block.title else ""
        return [heading, escape(block.text), fenced(block.code, block.language) if block.code else ""]
    if isinstance(block, Attached):
        return [f"[{inline(block.name)}]({block.name})"]
    if isinstance(block, Table):
        return [f"### {inline(block.title)}", escape(block.caption), table(block.read, key)]
    return [
        f"### {inline(block.title)}",
        f"![{inline(block.title)}](figures/{key}.svg)",
        escape(block.caption),
        table(block.table, key),
    ]


def fenced(code: str, language: str) -> str:
    """A code block whose fence is longer than any in the code."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{readable(code)}\n{fence}"


def table(frame: pl.DataFrame, key: str) -> str:
    """A pipe table, numbers to the right, with a link to all its rows."""
    rows = [[inline(cell(value)) or " " for value in row] for row in frame.head(LONGEST).iter_rows()]
    rules = ["---:" if right else "---" for right in numeric(frame)]
    lines = [[inline(name) or " " for name in frame.columns], rules, *rows]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    more = f"The first {LONGEST} of {frame.height} rows. " if frame.height > LONGEST else ""
    return f"{text}\n\n{more}[CSV](data/{key}.csv)"
