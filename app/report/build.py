"""A store and a selection in, a report out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

from app import components, overview, transport, transport_table
from app import transport_queries as tq
from app.report import closing, html, languages, live, markdown, sections, subspaces
from app.report.blocks import Report, Section
from app.report.figures import Advance, draw_all
from app.report.missing import not_run
from app.report.summary import summary
from app.resources import Opened, failed_checks
from app.run_kinds import ARD, HEADS, RANK, STEERING, WEIGHT_STEERING, Z_PATCHING
from app.selection import Selection, defaults, update
from engine.errors import StoreError

SECTIONS: Sequence[Callable[[Opened, Selection], Section]] = (
    summary,
    sections.compared,
    sections.prompts,
    sections.similar,
    sections.residual_updates,
    live.transport_maps,
    live.mapped,
    live.patches,
    partial(live.section, RANK),
    partial(live.section, STEERING),
    partial(live.section, HEADS),
    live.behaviour,
    languages.z_geometry,
    partial(live.section, Z_PATCHING),
    partial(live.section, ARD),
    languages.bridge_between,
    languages.what_stands,
    sections.weight_differences,
    partial(live.section, WEIGHT_STEERING),
    subspaces.chapter,
    closing.definitions,
    not_run,
    closing.provenance,
)
"""The chapters, in order."""


def silent(_done: int, _total: int, _what: str) -> None:
    """Progress that nobody watches."""


def build(opened: Opened, selection: Selection, advance: Advance = silent) -> Report:
    """The report of a pair under a selection; chapters without data say why.

    Args:
        advance: called with (chapters done, of how many, what is being made).

    Raises:
        StoreError: the store failed its own checks, or has none: the pages show no numbers of it either.
    """
    require_trust(opened)
    made: list[Section] = []
    for number, make in enumerate(SECTIONS):
        advance(number, len(SECTIONS), made[-1].title if made else "models and settings")
        made.append(make(opened, selection))
    study = components.study_name(opened)
    pair = selection.a if selection.a == selection.b else f"{selection.a} and {selection.b}"
    facts = (
        ("study", study),
        ("fingerprint", opened.store.fingerprint),
        ("prompts", str(opened.store.prompts.height)),
        ("device", overview.device(opened)),
        ("store made", str(opened.store.manifest.get("created", "unknown"))[:16].replace("T", " ")),
        ("self-checks", _checks(opened)),
    )
    lead = (
        "Every number, title and caption is the one that the dashboard shows for the same store and "
        "settings. Titles are computed from the data."
    )
    return Report(f"{study}: {pair}", lead, facts, tuple(made))


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


def _checks(opened: Opened) -> str:
    checks = opened.store.self_checks()
    held = sum(bool(check["passed"]) for check in checks)
    return f"{held} of {len(checks)} hold" if checks else "none were recorded"


def fit_everywhere(opened: Opened, selection: Selection, advance: Advance = silent) -> None:
    """Fits the selection's map at every site and block, in both directions; what is known stays."""
    for side in "ab":
        at = transport.effective(opened, dataclasses.replace(selection, target=side))
        place, spec = tq.Place.of(at), tq.spec_of(at)
        if transport_table.known(opened, place, spec) is None:
            transport_table.compute(opened, place, spec, lambda text: partial(_fitting, advance, text))


def _fitting(advance: Advance, text: str, done: int, total: int) -> None:
    advance(done, total, text)


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
