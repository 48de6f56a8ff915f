"""The synthesis of a two-language study as an analysis."""

from __future__ import annotations

from app.frame import controls
from app.frame import parts as components
from app.frame.analysis import Analysis, Blocks, Chapter
from app.frame.blocks import Table, Text
from app.frame.call import quiet
from app.frame.chapters import plain
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.synthesis import parts as synthesis_parts
from app.synthesis import view as synthesis
from app.synthesis.parts import Part

QUESTION = "What is known so far of a subspace that two languages share, and what is still missing?"


def empty(opened: Opened) -> tuple[str, str] | None:
    """Why there is nothing; None for a study of two languages."""
    return None if synthesis.available(opened) else synthesis.WHY_EMPTY


def settings(opened: Opened) -> None:
    """Rank and block, the model, and which prompts count."""
    controls.across(
        lambda: controls.steps("k", "Rank k of Z", geometry_queries.ranks(opened.store)),
        lambda: controls.slide("layer", "Block ℓ, with the next one"),
    )
    with controls.row():
        controls.switch("model", "Model", geometry.model_names(controls.current()))
        controls.switch("joined", "Heads joined", geometry.JOINED)
    controls.filter_controls(spoken=False)


def show(opened: Opened, selection: Selection) -> None:
    """The checklist."""
    chosen = synthesis.effective(opened, selection)
    synthesis.prepare(opened, chosen, components.progress)
    synthesis.show(opened, chosen)


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """The checklist of a two-language study, part by part, in the words of the pages."""
    if (why := empty(opened)) is not None:
        return plain(why)
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
    empty=empty,
    controls=settings,
    body=show,
)
