"""The guided tour of the demo: find the place that was changed, then see what was planted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.frame.fields import number
from app.frame.opened import Opened
from app.frame.selection import Fields

ADAPTER = "1d60199383f3ef49d181e6129d063fac826c9d2cd1b61b9ae4183c80ce2b1f49"
"""Content of the demo's first adapter, whose place `demo/planted.json` tells."""
PAIR = {"a": "base", "b": "tuned"}


@dataclass(frozen=True)
class Stop:
    """One stop: a page, the selection that it is seen under, what to ask there and where to look."""

    page: str
    title: str
    look: str
    selection: Mapping[str, object] = field(default_factory=dict)


STOPS = (
    Stop(
        "similarity",
        "Where do the two models part?",
        "The curve is 1 as long as both say the same of every prompt. At which block does it leave 1? "
        "What was changed lies there or before.",
        {**PAIR, "site": "resid_post", "position": "decision"},
    ),
    Stop(
        "difference_lens",
        "Which tokens does the change speak about?",
        "Read the difference of the streams as tokens, from the first block that differs on. What does the "
        "model say more often after this fine-tune?",
        {**PAIR, "position": "decision", "layer": 5},
    ),
    Stop(
        "patching",
        "Does one activation carry it?",
        "Each site of the tuned model is replaced by the base's, brought over by a map. Which sites take "
        "the habit away, and which do nothing?",
        {**PAIR, "position": "decision", "layer": 5, "site": "mlp_out"},
    ),
    Stop(
        "heads",
        "Which heads of the block?",
        "A block's attention has eight heads. Is it all of them, or do a few carry the whole effect?",
        {**PAIR, "layer": 4},
    ),
    Stop(
        "weights",
        "What was planted?",
        "The weights themselves. Compare with what was put there: a LoRA of rank 4 on the attention output "
        "of heads 2 and 6 in block 4 and on the MLP output of block 5, nowhere else.",
        PAIR,
    ),
)


@dataclass(frozen=True)
class TourFields(Fields):
    """`tour`: the stop that a reader is at, from 1; 0 outside of the tour."""

    tour: int = number(0, 0.0, float(len(STOPS)))


def offered(opened: Opened) -> bool:
    """Whether a store is of the demo as it was planted."""
    content = opened.store.manifest.get("study", {}).get("content", {})
    return content.get("models.tuned.adapter") == ADAPTER and set(PAIR.values()) <= set(opened.facts.models)
