"""What a two-language study has found so far, against a checklist of three levels.

Minimum and strong ask what was measured, whatever it says; gold asks what holds. A level is complete when
everything in it and in the levels before it is met.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl
import streamlit as st

from app import screen
from app.ard.fields import ArdFields
from app.escape import plain
from app.frame import controls, export, words
from app.frame import parts as components
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import weights as geometry
from app.residual_updates import panels as updates
from app.synthesis import parts as sp
from app.synthesis.parts import LEVELS, WHY_EMPTY, Finding, Level, Part, available, effective, prepare
from engine.errors import PatchbayError
from engine.residual_updates.numbers import ResidualUpdates

__all__ = ["LEVELS", "WHY_EMPTY", "available", "effective", "parts", "prepare", "show", "table", "title"]

SAID = {"block": pl.Int64, "problems": pl.Int64, "finding": pl.String}
RULE = (
    "A part of the first two levels is met when it was measured, whatever it says; one of the third when "
    f"it holds. Answers under patches count from {sp.PROBLEMS} problems. Each block is judged by itself "
    "with the tests, nulls and intervals of the page behind the link. Both blocks say the same when "
    "their conclusions are equal; that is no test of its own."
)
"""When a part is met."""
ICONS = {True: ":material/check_circle:", False: ":material/radio_button_unchecked:"}


def parts(opened: Opened, selection: Selection) -> list[Part]:
    """The whole checklist in its order."""
    filled = [
        sp.geometry_part(opened, selection),
        sp.updates_part(opened, selection),
        sp.answers_part(opened, selection),
        *sp.ard_parts(opened, selection),
        sp.bridge_part(opened, selection),
    ]
    return [
        *filled,
        both_blocks(opened, selection, filled),
        transport_part(opened, selection, filled),
        phases_part(opened, selection),
        rotation_part(opened, selection),
    ]


def both_blocks(opened: Opened, selection: Selection, filled: Sequence[Part]) -> Part:
    """Whether every part says the same at both blocks."""
    differ = [part.name for part in filled if part.agree is False]
    unknown = [part.name for part in filled if part.agree is None or not part.met]
    missing = []
    if len(sp.blocks(opened, selection)) < 2:
        missing.append("there is no next block")
    else:
        missing += [f"not the same: {', '.join(differ)}"] if differ else []
        missing += [f"not at both blocks yet: {', '.join(unknown)}"] if unknown else []
    return Part("gold", "The same at both blocks", not missing, {}, "; ".join(missing), "", {})


def transport_part(opened: Opened, selection: Selection, filled: Sequence[Part]) -> Part:
    """Whether optimal transport was tried, where the mean did not part Z from its complement."""
    name, page = "Optimal transport instead of the mean", "z_patching"
    run = sp.z_run(opened, selection, transport=True)
    if run is not None:
        found = sp.verdicts(opened, selection, run)
        return Part(
            "gold", name, bool(found), found, "" if found else "not run yet", page, sp.link(run, selection)
        )
    answers = next(part for part in filled if part.page == page)
    keys = {one.key for one in answers.findings.values()}
    if answers.met and keys == {"double dissociation"}:
        return Part(
            "gold", f"{name}: not needed, the mean parts Z from Z⊥", True, {}, "", page, answers.changes
        )
    return Part("gold", name, False, {}, "not run yet", page, {})


def told_apart(found: ResidualUpdates) -> tuple[int, int] | None:
    """Two blocks whose R differs: the highest and the lowest.

    Rule: the limits of R, which hold for all blocks together, of one lie above those of the other.
    """
    low, high = found.low_all, found.high_all
    if not (np.isfinite(low).any() and np.isfinite(high).any()):
        return None
    top, bottom = int(np.nanargmax(low)), int(np.nanargmin(high))
    return (top, bottom) if low[top] > high[bottom] else None


def phases_part(opened: Opened, selection: Selection) -> Part:
    """Whether R tells blocks apart; the rule is `told_apart`."""

    def read(block: int) -> Finding | None:
        found = sp.update_of(opened, selection, block)
        low, high = found.low_all, found.high_all
        if not (np.isfinite(low).any() and np.isfinite(high).any()):
            return None
        apart = told_apart(found)
        if apart is None:
            said = "R is not shown to differ between any two blocks"
            return Finding("not told apart", f"Z of block {block}: {said}", 0)
        one, two = (found.labels[i] for i in apart)
        ends = [f"{words.number(low[i])} to {words.number(high[i])} at {found.labels[i]}" for i in apart]
        said = f"R of the update {one} lies above that of {two} ({' against '.join(ends)})"
        return Finding("told apart", f"Z of block {block}: {said}", 0)

    found = sp.each(opened, selection, read) if updates.available(opened) else {}
    holds = bool(found) and all(one.key == "told apart" for one in found.values())
    missing = "" if holds else "not shown" if found else "not measured"
    return Part(
        "gold", "R(ℓ) tells phases apart", holds, found, missing, "residual_updates", sp.ref(selection)
    )


def rotation_part(opened: Opened, selection: Selection) -> Part:
    """Whether the bridge is a rotation, at every block asked."""
    found = {
        block: dataclasses.replace(one, key="rotation-like" if "rotation-like" in one.words else "not")
        for block, one in sp.bridges(opened, selection).items()
    }
    holds = bool(found) and all(one.key == "rotation-like" for one in found.values())
    missing = "" if holds else "not shown to be a rotation" if found else "not measured"
    return Part("gold", "The bridge is a rotation", holds, found, missing, "bridge", {})


def reached(found: Sequence[Part]) -> Level | None:
    """The highest level of which everything is met, with everything before it."""
    best: Level | None = None
    for level in LEVELS:
        if not all(part.met for part in found if part.level == level):
            return best
        best = level
    return best


def title(found: Sequence[Part], model: str, at: Sequence[int]) -> str:
    """How much of each level is met, and the level reached."""
    counts = []
    for level in LEVELS:
        own = [part.met for part in found if part.level == level]
        counts.append(f"{level} {sum(own)} of {len(own)}")
    top = reached(found)
    end = f"complete up to {top}" if top else "no level is complete"
    return f"{model}, {words.blocks(at)}: {', '.join(counts)}; {end}"


def agreement(part: Part) -> str:
    """Whether the blocks say the same, in words; nothing where gold asks for it anyway."""
    if part.agree is None:
        return "one block only" if len(part.findings) == 1 else ""
    return "both blocks say the same" if part.agree else "the two blocks do not say the same"


def table(opened: Opened, selection: Selection) -> pl.DataFrame:
    """One row a part and block: level, part, met, block, problems, finding, agreement, missing."""
    rows = []
    for part in parts(opened, selection):
        base = {"level": part.level, "part": part.name, "met": part.met}
        end = {"agreement": agreement(part), "missing": part.missing}
        every: list[dict[str, object]] = [
            {"block": block, "problems": one.n or None, "finding": one.words}
            for block, one in part.findings.items()
        ]
        rows += [{**base, **said, **end} for said in every or [dict.fromkeys(SAID)]]
    names = ("level", "part", "met", *SAID, "agreement", "missing")
    return pl.DataFrame(rows, schema_overrides=SAID, infer_schema_length=None).select(names)


def code(opened: Opened, selection: Selection) -> str:
    """Lines that give the table again."""
    names = ("a", "b", "model", "layer", "k", "joined", "site", "position", "split", "category")
    chosen = ", ".join(f"{name}={getattr(selection, name)!r}" for name in names)
    chosen += f", penalty={ArdFields.of(selection).penalty!r}"
    return "\n".join(
        [
            "from app.synthesis import view as synthesis",
            "from app.frame.opened import open_at",
            "from app.frame.selection import changed, defaults",
            "",
            f"opened = open_at({opened.path!r})",
            f"chosen = changed(defaults(opened.facts), {chosen})",
            "table = synthesis.table(opened, synthesis.effective(opened, chosen))",
        ]
    )


def show(opened: Opened, selection: Selection) -> None:
    """Draw the checklist."""
    found, at = parts(opened, selection), sp.blocks(opened, selection)
    screen.markdown(f"#### {plain(title(found, geometry.model_of(selection), at))}")
    for level, question in LEVELS.items():
        with st.container(border=True, key=f"level-{level}"):
            screen.markdown(f"##### {question}")
            for number, part in enumerate(p for p in found if p.level == level):
                _line(part, f"{level}-{number}", selection)
    screen.caption(RULE)
    with screen.popover("Code and data", icon=":material/code:"):
        st.code(code(opened, selection), language="python", wrap_lines=True)
        screen.download_button(
            "synthesis.csv",
            lambda: export.csv_bytes(table(opened, selection)),
            file_name="synthesis.csv",
            mime="text/csv",
            on_click="ignore",
        )


def _line(part: Part, key: str, selection: Selection) -> None:
    """One part: whether it is met, what it says at either block, and where."""
    with st.container(key=f"part-{key}"):
        notes = [part.missing, agreement(part)]
        sizes = sorted({one.n for one in part.findings.values() if one.n})
        unit = "prompts" if part.page == "residual_updates" else "problems"
        notes.append(f"{' and '.join(map(str, sizes))} {unit}" if sizes else "")
        told = "; ".join(note for note in notes if note)
        screen.markdown(f"{ICONS[part.met]} **{part.name}**" + (f" · {plain(told)}" if told else ""))
        if part.findings:
            screen.markdown("\n".join(f"- {plain(one.words)}" for one in part.findings.values()))
        if part.page:
            changes = {"layer": selection.layer, "k": selection.k, "layers": "one", **part.changes}
            try:
                params = controls.link(**changes)
            except PatchbayError:  # a stored run of something that this store's selection does not offer
                params = controls.link(layer=selection.layer)
            components.page_link(part.page, f"Open {NAMES[part.page]}", params)


NAMES = {
    "geometry": "Z geometry",
    "residual_updates": "Residual updates",
    "z_patching": "Z-patching",
    "ard": "ARD-MMD",
    "bridge": "Bridge",
}
