"""The synthesis of a two-language study as an analysis."""

from __future__ import annotations

from app.frame.analysis import Analysis, Blocks, Chapter
from app.frame.blocks import Table, Text
from app.frame.chapters import plain, quiet
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import weights as geometry
from app.synthesis import parts as synthesis_parts
from app.synthesis import view as synthesis
from app.synthesis.parts import Part

QUESTION = "What is known so far of a subspace that two languages share, and what is still missing?"


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """The checklist of a two-language study, part by part, in the words of the pages."""
    if not synthesis.available(opened):
        return plain(synthesis.WHY_EMPTY)
    chosen = synthesis.effective(opened, selection)
    synthesis.prepare(opened, chosen, quiet)
    found = synthesis.parts(opened, chosen)
    frame = synthesis.table(opened, chosen)
    said = synthesis.title(found, geometry.model_of(chosen), synthesis_parts.blocks(opened, chosen))
    table = Table("checklist", "The checklist as a table", frame, folded=True)
    return (Text(synthesis.RULE, said), *map(_part, found), table)


def _part(part: Part) -> Text:
    """One part: whether it is met, what it says at either block, what is missing."""
    said = [f"{one.words}." for one in part.findings.values()]
    told = [text for text in (synthesis.agreement(part), part.missing) if text]
    said += [f"{text[0].upper()}{text[1:]}." for text in told]
    title = f"{part.level.capitalize()}, {'met' if part.met else 'not met'}: {part.name}"
    return Text(" ".join(said), title)


SYNTHESIS = Analysis(
    "synthesis",
    "Synthesis",
    QUESTION,
    section="Languages",
    icon="fact_check",
    answers="what a two-language study has shown so far, against a checklist",
    null="as the pages behind it",
    chapters=(Chapter("synthesis", "Synthesis", QUESTION, chapter),),
)
