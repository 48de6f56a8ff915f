"""The report page, and what it keeps of a session: the report that was made, and what it was made of."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass

import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls, words
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.analysis import Analysis
from app.frame.blocks import Report, Table, Text
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, defaults, pair_of
from app.frame.stored import archived
from app.report.build import build, documents
from app.report.write import zipped

_STATE = "report-made"
NOT_MADE = (
    "Not made yet",
    "The report holds the summary table, every figure with its data, definitions, provenance, and what has "
    "not been run, under the settings of the other pages. It takes seconds and reads no model.",
)


@dataclass(frozen=True)
class Made:
    """A finished report as its two files."""

    report: Report
    name: str
    html: bytes
    journal: bytes
    seconds: float

    @property
    def size(self) -> str:
        """Size of the HTML file in words."""
        return words.size(len(self.html))

    @property
    def said(self) -> str:
        """What is in it, in one line."""
        figures = sum(1 for _ in self.report.panels())
        return f"{len(self.report.sections)} chapters, {figures} figures, made in {self.seconds:.1f} s."

    @property
    def previews(self) -> list[Table]:
        """The tables of the first chapter, the summary."""
        return [block for block in self.report.sections[0].blocks if isinstance(block, Table)]


def _key(opened: Opened, selection: Selection) -> tuple[object, ...]:
    """What a report depends on: store, settings, the runs that are there, and which are archived."""
    return opened.key, selection, live_view.written_runs(opened.path), archived(opened)


def made(opened: Opened, selection: Selection) -> Made | None:
    """This session's report of this store, these settings and these runs, or None."""
    key, found = st.session_state.get(_STATE, (None, None))
    return found if key == _key(opened, selection) else None


def make(opened: Opened, selection: Selection) -> Made:
    """Makes the report behind a progress bar and keeps it."""
    start, bar = time.perf_counter(), screen.progress(0.0, "Reading the store…")

    def chapters(done: int, total: int, what: str) -> None:
        bar.progress(0.6 * done / total, f"Chapters: {plain(what)}")

    def figures(done: int, total: int, what: str) -> None:
        bar.progress(0.6 + 0.4 * done / total, f"Figures: {plain(what)}")

    report = build(opened, selection, chapters)
    html, journal = documents(report, figures)
    bar.empty()
    name = "-".join((components.study_name(opened), selection.a, selection.b, "report"))
    found = Made(report, _file(name), html.encode(), zipped(journal), time.perf_counter() - start)
    st.session_state[_STATE] = (_key(opened, selection), found)
    return found


def _file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def about(selection: Selection) -> str:
    """Under which settings the report is made."""
    kept = [v for v in (selection.split, selection.language, selection.category) if v != "all"]
    prompts = " · ".join(kept) if kept else "all prompts"
    return plain(
        f"{selection.a} and {selection.b}, {selection.site} at {words.position_said(selection.position)}, "
        f"{prompts}: the settings of the other pages; change them there."
    )


def contents(report: Report) -> str:
    """Chapters with the titles of what is in them, as a Markdown list."""
    lines = []
    for section in report.sections:
        lines.append(f"- **{plain(section.title)}**")
        titles = [b.title for b in section.blocks if isinstance(b, Panel | Table | Text) and b.title]
        lines += [f"    - {plain(title)}" for title in titles or [section.missing] if title]
    return "\n".join(lines)


def command(opened: Opened, selection: Selection) -> str:
    """The command that writes the report of this pair under the usual settings."""
    start = defaults(opened.facts)
    target, source = pair_of(selection)
    pair = "" if (source, target) == (start.a, start.b) else f" --pair {shlex.quote(f'{target},{source}')}"
    return f"python precompute.py report {shlex.quote(opened.path)}{pair}"


def show(opened: Opened, selection: Selection) -> None:
    """The button that makes the report; then its files, first tables and contents, and the command."""
    screen.caption(about(selection))
    found = made(opened, selection)
    text = "Make the report" if found is None else "Make it again"
    if screen.button(text, icon=":material/summarize:", type="primary", key="make-report", width="stretch"):
        found = make(opened, selection)
    if found is None:
        components.empty(*NOT_MADE)
        return
    journal = "Markdown with figures and data (zip)"
    controls.across(
        lambda: _download(f"HTML, {found.size}", found.html, f"{found.name}.html", "text/html"),
        lambda: _download(journal, found.journal, f"{found.name}.zip", "application/zip"),
    )
    screen.caption(plain(found.said))
    for table in found.previews:
        screen.markdown(f"#### {plain(table.title)}")
        screen.dataframe(table.read, hide_index=True, width="stretch")
        screen.caption(plain(table.caption))
    screen.markdown("#### Contents")
    screen.markdown(contents(found.report))
    screen.caption("Without a browser, for this pair under the usual settings:")
    st.code(command(opened, selection), language="bash", wrap_lines=True)


def _download(text: str, data: bytes, name: str, mime: str) -> None:
    screen.download_button(
        text,
        data,
        file_name=name,
        mime=mime,
        icon=":material/download:",
        key=f"report-{name.rpartition('.')[2]}",
        on_click="ignore",
        width="stretch",
    )


REPORT = Analysis(
    "report",
    "Report",
    "Everything that this store says about a pair, as one file to keep, to print and to paste from.",
    section="Study",
    icon="summarize",
    body=show,
)
