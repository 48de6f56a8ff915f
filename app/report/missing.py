"""What has not been run, and the commands that run it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from app import (
    ard_view,
    behaviour_view,
    geometry,
    heads_view,
    patch_table,
    patch_view,
    rank_view,
    steering_view,
    subspaces_view,
    transport_table,
    weight_steering_view,
    z_patching_view,
)
from app import transport_queries as tq
from app.report.blocks import Attached, Block, Section, Text
from app.report.runs import compact, missing_of
from app.report.summary import strongest
from app.resources import Opened
from app.selection import Selection
from engine.errors import PatchbayError
from engine.experiment import Experiment


@dataclass(frozen=True)
class Wanted:
    """Experiments that a full study of a pair has."""

    name: str
    title: str
    experiments: Sequence[Experiment]


def wanted(opened: Opened, selection: Selection) -> list[Wanted]:
    """Everything the pages would run at the place where the map saves most, and the whole patch table."""
    at = strongest(opened, selection)
    lead = behaviour_view.lead_of(opened)
    asked: list[tuple[str, str, Callable[[Opened, Selection], Sequence[Experiment]]]] = [
        ("mapped", "Patching through the map at every site, block and direction", patch_table.experiments),
        ("rank", "Rank k × α", lambda o, _s: [rank_view.experiment_of(at)]),
        ("steering", "Steering and ablation", lambda o, _s: [steering_view.experiment_of(at)]),
        ("head-map", "Every head of every block", lambda o, s: [heads_view.map_of(s)]),
        ("heads", "Heads of one block in depth", lambda o, _s: [heads_view.experiment_of(at)]),
        ("behaviour", "Behaviour", lambda o, s: behaviour_view.wanted(s, [], lead)),
    ]
    if weight_steering_view.can_steer(opened):
        asked.append(("weight-steering", "Weight steering α", steered_by_the_other))
    if geometry.available(opened) and geometry.comparable(opened):
        asked.append(("z-patching", "Z-patching", lambda o, s: [z_patching_view.experiment_of(o, s)]))
    if ard_view.available(opened):
        asked.append(("ard", "ARD-MMD", lambda o, s: ard_view.grid(o, ard_view.effective(o, s))))
    if subspaces_view.can_score(opened):
        asked.append(("subspaces", "Subspace scores", lambda o, s: [subspaces_view.experiment_of(o, s)]))
    found = []
    for name, title, make in asked:
        try:
            found.append(Wanted(name, title, make(opened, selection)))
        except PatchbayError:  # a place that this experiment does not know, or nothing to measure
            continue
    return found


def steered_by_the_other(opened: Opened, selection: Selection) -> Sequence[Experiment]:
    """The first model steered by the other one's difference; none for a pair without one."""
    first = opened.facts.models[0]
    others = [name for name in (selection.a, selection.b) if name != first]
    if len(others) != 1 or first not in (selection.a, selection.b):
        return []
    at = dataclasses.replace(selection, a=first, b=others[0])
    return [weight_steering_view.experiment_of(at, weight_steering_view.lead(opened))]


def not_run(opened: Opened, selection: Selection) -> Section:
    """What is missing, each with its command."""
    title, store = "Not run yet", shlex.quote(opened.path)
    intro = "Each command keeps its results in the store; the next report has them."
    if not patch_view.patch_positions(opened.facts.positions):
        return Section("missing", title, intro, missing=" ".join(patch_view.WHY_EMPTY).replace("`", ""))
    if selection.a == selection.b:
        return Section("missing", title, intro, missing="Live experiments put one model into another.")
    blocks: list[Block] = []
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    if transport_table.known(opened, place, spec) is None:
        code = f"python precompute.py report {store} --fit"
        blocks.append(Text(f"{spec.describe()}, at every site and block.", "Transport maps", code))
    for one in wanted(opened, selection):
        missing = missing_of(opened, one.experiments)
        if not missing:
            continue
        data = [compact(experiment) for experiment in missing]
        said = f"{len(missing)} of {len(one.experiments)}, such as: {missing[0].describe()}"
        if len(data) == 1:
            said = missing[0].describe()
            text = shlex.quote(json.dumps(data[0], ensure_ascii=False))
            blocks.append(Text(said, one.title, f"python precompute.py run {store} --condition {text}"))
            continue
        file = f"not-run-{one.name}.json"
        blocks.append(Text(said, one.title, f"python precompute.py run {store} --condition {file}"))
        blocks.append(Attached(file, json.dumps(data, ensure_ascii=False, indent=1).encode()))
    done = "" if blocks else "Everything that the pages run under these settings is stored."
    return Section("missing", title, intro, tuple(blocks), done)
