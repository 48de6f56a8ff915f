"""The bridge as an analysis."""

from __future__ import annotations

from app.bridge import panels as bridge
from app.bridge import tables as bridge_queries
from app.bridge.fields import BridgeFields
from app.frame.analysis import Analysis, Blocks, Chapter
from app.frame.blocks import Text
from app.frame.chapters import plain, quiet
from app.frame.opened import Opened
from app.frame.selection import Selection


def chapter(opened: Opened, selection: Selection) -> Blocks:
    """Whether one language's coordinates in Z are a linear map of the other's."""
    if not bridge.available(opened):
        return plain(bridge.WHY_EMPTY)
    chosen = bridge_queries.effective(opened, selection)
    bridge_queries.prepare(opened, chosen, quiet)
    note = bridge.warning(opened, chosen)
    return (*((Text(note),) if note else ()), *bridge.panels(opened, chosen))


BRIDGE = Analysis(
    "bridge",
    "Bridge",
    "Does a linear map lead from one language's activations in Z to the other's, problem by problem?",
    section="Languages",
    icon="merge",
    answers="is one language's Z a linear map of the other's?",
    null="leave-one-out; permuted pairs",
    chapters=(
        Chapter(
            "bridge",
            "Bridge",
            "Does a linear map lead from one language's activations in Z to the other's?",
            chapter,
        ),
    ),
    fields=BridgeFields,
)
