"""The chapters of a two-language study that a store alone can fill: Z, the bridge, and what stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from app import (
    bridge,
    bridge_queries,
    geometry,
    geometry_queries,
    geometry_separation,
    synthesis,
    synthesis_parts,
)
from app.panel import Panel
from app.report.blocks import Block, Section, Table, Text
from app.report.sections import Make, collect, plain
from app.resources import Opened
from app.selection import Selection
from app.synthesis_parts import Part
from engine.errors import PatchbayError


def quiet(_text: str) -> Callable[[int, int], None]:
    """Progress that nobody watches."""
    return lambda done, total: None


def z_geometry(opened: Opened, selection: Selection) -> Section:
    """What heads read, and whether it holds what two languages share, at the selected block."""
    title = "Z geometry"
    intro = "Z is what a block's heads read from the stream. Does it hold what two languages share?"
    if not geometry.available(opened):
        return Section("geometry", title, intro, missing=plain(geometry.WHY_EMPTY))
    chosen = dataclasses.replace(geometry.effective(opened, selection), layers="one")
    makers: list[Make] = []
    blocks: list[Block] = []
    if geometry.comparable(opened):
        for pooling in geometry_queries.poolings(opened, chosen):
            makers += [partial(m, opened, chosen, pooling) for m in geometry_separation.makers(chosen)]
    else:
        blocks.append(Text(plain(geometry.WHY_ONE_LANGUAGE)))
    makers += [partial(make, opened, chosen) for make in geometry.WEIGHTS]
    try:
        geometry_queries.prepare(opened, geometry.model_of(chosen), chosen, quiet)
    except PatchbayError as error:
        return Section("geometry", title, intro, missing=str(error))
    return Section("geometry", title, intro, (*blocks, *collect(makers)))


def bridge_between(opened: Opened, selection: Selection) -> Section:
    """Whether one language's coordinates in Z are a linear map of the other's."""
    title = "Bridge"
    intro = "Does a linear map lead from one language's activations in Z to the other's?"
    if not bridge.available(opened):
        return Section("bridge", title, intro, missing=plain(bridge.WHY_EMPTY))
    try:
        chosen = bridge_queries.effective(opened, selection)
        bridge_queries.prepare(opened, chosen, quiet)
        note = bridge.warning(opened, chosen)
        panels: list[Panel] = bridge.panels(opened, chosen)
    except PatchbayError as error:
        return Section("bridge", title, intro, missing=str(error))
    notes = (Text(note),) if note else ()
    return Section("bridge", title, intro, (*notes, *panels))


def what_stands(opened: Opened, selection: Selection) -> Section:
    """The checklist of a two-language study, part by part, in the words of the pages."""
    title = "Synthesis"
    intro = "What is known so far of a subspace that two languages share, and what is still missing?"
    if not synthesis.available(opened):
        return Section("synthesis", title, intro, missing=plain(synthesis.WHY_EMPTY))
    try:
        chosen = synthesis.effective(opened, selection)
        synthesis.prepare(opened, chosen, quiet)
        found = synthesis.parts(opened, chosen)
        frame = synthesis.table(opened, chosen)
    except PatchbayError as error:
        return Section("synthesis", title, intro, missing=str(error))
    said = synthesis.title(found, geometry.model_of(chosen), synthesis_parts.blocks(opened, chosen))
    table = Table("checklist", "The checklist as a table", frame, folded=True)
    return Section("synthesis", title, intro, (Text(synthesis.RULE, said), *map(_part, found), table))


def _part(part: Part) -> Text:
    """One part: whether it is met, what it says at either block, what is missing."""
    said = [f"{one.words}." for one in part.findings.values()]
    told = [text for text in (synthesis.agreement(part), part.missing) if text]
    said += [f"{text[0].upper()}{text[1:]}." for text in told]
    title = f"{part.level.capitalize()}, {'met' if part.met else 'not met'}: {part.name}"
    return Text(" ".join(said), title)
