"""Every kind of live experiment as the app shows it: which page it belongs to, and its panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app import (
    ard_view,
    behaviour_view,
    heads_view,
    patch_table,
    patch_view,
    rank_view,
    steering_view,
    subspaces_view,
    weight_steering_view,
    z_patching_tokens,
    z_patching_view,
)
from app.jobs import JobResult
from app.panel import Panel
from app.resources import Opened
from app.selection import Selection
from engine.errors import PatchError


@dataclass(frozen=True)
class Kind:
    """A kind of live experiment.

    Args:
        name, title, intro: short name, name for people, and the question it answers.
        jobs: values of an experiment's `job` that belong to it.
        page: name of the page that runs it.
        selection_of: changes to a selection under which that page asks a stored condition again.
        panels: of one stored result.
        nothing: why a result has no panels (title, text), or None.
    """

    name: str
    title: str
    intro: str
    jobs: tuple[str, ...]
    page: str
    selection_of: Callable[[Mapping[str, Any], Selection], dict[str, Any]]
    panels: Callable[[Opened, JobResult, Selection], Sequence[Panel]]
    nothing: Callable[[JobResult], tuple[str, str] | None] = lambda _result: None


MAPPED = Kind(
    "mapped",
    "Patching through a transport map",
    "Does a map make the source's activation usable in the target, and does it beat its controls?",
    ("mapped",),
    patch_table.PAGE,
    patch_table.selection_of,
    patch_table.run_panels,
)
PATCHES = Kind(
    "patching",
    "Patching without a map",
    "What does one model's activation do in the other?",
    ("patch",),
    patch_view.PAGE,
    patch_view.selection_of,
    patch_view.run_panels,
)
RANK = Kind(
    "rank",
    "Rank k × α",
    "How many dimensions carry the effect of a mapped patch?",
    ("rank",),
    rank_view.PAGE,
    rank_view.selection_of,
    rank_view.run_panels,
)
STEERING = Kind(
    "steering",
    "Steering and ablation",
    "Does a direction move what it should, and what does it cost elsewhere?",
    ("steering",),
    steering_view.PAGE,
    steering_view.selection_of,
    steering_view.run_panels,
)
HEADS = Kind(
    "heads",
    "Heads",
    "Which attention heads carry the difference between the two models?",
    ("heads", "head_map"),
    heads_view.PAGE,
    heads_view.selection_of,
    heads_view.run_panels,
    heads_view.nothing,
)
BEHAVIOUR = Kind(
    "behaviour",
    "Behaviour",
    "Do the models refuse, choose, agree and answer differently, and does a patch change that?",
    ("behaviour",),
    behaviour_view.PAGE,
    behaviour_view.selection_of,
    behaviour_view.run_panels,
)
ARD = Kind(
    "ard",
    "ARD-MMD",
    "Which dimensions carry what two languages share about a problem?",
    ("ard",),
    ard_view.PAGE,
    ard_view.selection_of,
    ard_view.run_panels,
)
WEIGHT_STEERING = Kind(
    "weight_steering",
    "Weight steering α",
    "What does a fine-tune's weight difference do when there is more of it, less, or its opposite?",
    ("weight_steering",),
    weight_steering_view.PAGE,
    weight_steering_view.selection_of,
    weight_steering_view.run_panels,
)
SUBSPACES = Kind(
    "subspaces",
    "Subspace scores",
    "Which named subspace of the stream does a weight change write into, and is that more than chance?",
    (subspaces_view.JOB,),
    subspaces_view.PAGE,
    subspaces_view.selection_of,
    subspaces_view.run_panels,
)
Z_PATCHING = Kind(
    "z_patching",
    "Z-patching",
    "Does a subspace carry the answer or the language from one language to another?",
    ("z_patching",),
    z_patching_view.PAGE,
    z_patching_view.selection_of,
    z_patching_view.run_panels,
)
Z_TOKENS = Kind(
    "z_tokens",
    "Z-patching, one problem",
    "What did the model nearly say at every step of one problem's patched answers?",
    ("z_tokens",),
    z_patching_tokens.PAGE,
    z_patching_tokens.run_selection,
    z_patching_tokens.run_panels,
)
KINDS = (
    MAPPED,
    PATCHES,
    RANK,
    STEERING,
    HEADS,
    BEHAVIOUR,
    ARD,
    WEIGHT_STEERING,
    SUBSPACES,
    Z_PATCHING,
    Z_TOKENS,
)


def kind_of(condition: Mapping[str, Any]) -> Kind:
    """The kind of a stored condition; PatchError for one that this version doesn't know."""
    job = condition.get("job", "patch")
    for kind in KINDS:
        if job in kind.jobs:
            return kind
    raise PatchError(
        "This run is of a kind that has no page here.",
        expected=", ".join(job for kind in KINDS for job in kind.jobs),
        given=repr(job),
        next_step="open the store with the version that ran it.",
    )
