"""Z geometry as an analysis."""

from __future__ import annotations

import dataclasses
from functools import partial

from app.frame.analysis import Analysis, Blocks, Chapter, Make
from app.frame.blocks import Block, Text
from app.frame.chapters import collect, plain, quiet
from app.frame.opened import Opened
from app.frame.selection import Selection
from app.geometry import separation as geometry_separation
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry

TITLE = "Z geometry"


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """What heads read, and whether it holds what two languages share, at the selected block."""
    if not geometry.available(opened):
        return plain(geometry.WHY_EMPTY)
    chosen = dataclasses.replace(geometry.effective(opened, selection), layers="one")
    makers: list[Make] = []
    blocks: list[Block] = []
    if geometry.comparable(opened):
        for pooling in geometry_queries.poolings(opened, chosen):
            makers += [partial(m, opened, chosen, pooling) for m in geometry_separation.makers(chosen)]
    else:
        blocks.append(Text(plain(geometry.WHY_ONE_LANGUAGE)))
    makers += [partial(make, opened, chosen) for make in geometry.WEIGHTS]
    geometry_queries.prepare(opened, geometry.model_of(chosen), chosen, quiet)
    return (*blocks, *collect(makers))


GEOMETRY = Analysis(
    "geometry",
    TITLE,
    "Z is what a block's heads read from the stream. Does it hold what two languages share about a problem?",
    section="Languages",
    icon="deployed_code",
    answers="what do heads read, where do blocks part, and do two languages differ there?",
    null="random subspaces, permuted pairs, closed forms",
    chapters=(
        Chapter(
            "geometry",
            TITLE,
            "Z is what a block's heads read from the stream. Does it hold what two languages share?",
            chapter,
        ),
    ),
)
