"""A store and a selection in, a report out."""

from __future__ import annotations

import dataclasses

from app.analyses import ANALYSES
from app.frame import parts as components
from app.frame.analysis import Advance, Chapter, caution
from app.frame.blocks import Report, Section, Text
from app.frame.opened import Opened, device, failed_checks
from app.frame.selection import Selection, defaults, update
from app.report import html, markdown, own
from app.report.figures import draw_all
from engine.errors import PatchbayError, StoreError


def _of(part: str) -> list[Chapter]:
    return [chapter for one in ANALYSES for chapter in one.chapters if chapter.part == part]


CHAPTERS: tuple[Chapter, ...] = (*_of("opening"), *_of("body"), *own.CHAPTERS, *_of("closing"))
"""The chapters, in order."""


def silent(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody watches."""


def build(opened: Opened, selection: Selection, advance: Advance = silent) -> Report:
    """The report of a pair under a selection; chapters without data say why.

    Args:
        advance: called with (chapters done, of how many, what is being made).

    Raises:
        StoreError: the store failed its own checks, or has none: the pages show no numbers of it either; or
            it holds no position with one row per prompt.
    """
    require_trust(opened)
    require_position(opened)
    at = own.deepest(opened, selection)
    made: list[Section] = []
    for number, chapter in enumerate(CHAPTERS):
        advance(number, len(CHAPTERS), made[-1].title if made else "models and settings")
        made.append(section(chapter, opened, at if chapter.deepest else selection))
    study = components.study_name(opened)
    pair = selection.a if selection.a == selection.b else f"{selection.a} and {selection.b}"
    facts = (
        ("study", study),
        ("fingerprint", opened.store.fingerprint),
        ("prompts", str(opened.store.prompts.height)),
        ("device", device(opened)),
        ("store made", str(opened.store.manifest.get("created", "unknown"))[:16].replace("T", " ")),
        ("self-checks", _checks(opened)),
    )
    lead = (
        "Every number, title and caption is the one that the dashboard shows for the same store and "
        "settings. Titles are computed from the data."
    )
    return Report(f"{study}: {pair}", lead, facts, tuple(made))


def section(chapter: Chapter, opened: Opened, selection: Selection) -> Section:
    """A chapter as it is made under a selection; without blocks it says why."""
    try:
        found = chapter.blocks(opened, selection)
    except PatchbayError as error:
        found = str(error)
    blocks, missing = ((), found) if isinstance(found, str) else (tuple(found), "")
    said = next((caution(one, opened, selection) for one in ANALYSES if chapter in one.chapters), "")
    blocks = (Text(said), *blocks) if blocks and said else blocks
    return Section(chapter.name, chapter.title, chapter.question, blocks, missing)


def require_trust(opened: Opened) -> None:
    """Raises StoreError unless the store has self-checks and all of them hold."""
    failed = [str(check["name"]).replace("_", " ") for check in failed_checks(opened.store)]
    if failed or not opened.store.self_checks():
        raise StoreError(
            "This store failed its own checks: its numbers are not reported."
            if failed
            else "This store has no self-checks: its numbers are not reported.",
            expected="every self-check of the precompute run to hold",
            given=", ".join(failed) or "none",
            next_step="run precompute.py on the same study into a new folder.",
        )


def require_position(opened: Opened) -> None:
    """Raises StoreError when every position has many rows per prompt: most chapters compare one row each."""
    if not opened.facts.positions:
        raise StoreError(
            "A report compares prompts by one row each, which this store has none of.",
            expected="a position such as last_content, decision or mean",
            given=", ".join(opened.store.positions(opened.facts.models[0])),
            next_step="add one to capture.positions in the study, and precompute a new store.",
        )


def _checks(opened: Opened) -> str:
    checks = opened.store.self_checks()
    held = sum(bool(check["passed"]) for check in checks)
    return f"{held} of {len(checks)} hold" if checks else "none were recorded"


def fit_all(opened: Opened, selection: Selection, advance: Advance = silent) -> None:
    """Computes what analyses can compute ahead of a report; what is known stays."""
    for one in ANALYSES:
        if one.fitted is not None:
            one.fitted.fit(opened, selection, advance)


def documents(report: Report, advance: Advance = silent) -> tuple[str, dict[str, bytes]]:
    """The HTML document, and the files of the Markdown journal by relative path."""
    figures = draw_all(report, advance)
    return html.render(report, figures), markdown.files(report, figures)


def pair_selection(opened: Opened, pair: str | None) -> Selection:
    """The defaults of a store for a pair "tuned,base", the target of patches first; None for the usual pair.

    Raises:
        StoreError: not two models of the store.
    """
    start = defaults(opened.facts)
    if pair is None:
        return start
    names = [name.strip() for name in pair.split(",")]
    if len(names) != 2 or not set(names) <= set(opened.facts.models):
        raise StoreError(
            "The pair of the report is not in this store.",
            expected="two of " + ", ".join(opened.facts.models) + ", as target,source",
            given=repr(pair),
            next_step="name two models, for example: --pair " + ",".join((start.b, start.a)),
        )
    target, source = names
    return dataclasses.replace(update(start, opened.facts, a=source, b=target), target="b")
