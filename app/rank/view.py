"""Rank k × α as a page needs it: an experiment from the selection, a stored result as panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app import screen
from app.frame import controls
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import (
    Selection,
    pair_of,
    place_changes,
    place_of,
    where_changes,
    where_of,
    whole,
)
from app.live.jobs import JobResult
from app.patching import amplitudes
from app.rank import panels as rank_panels
from app.rank.fields import RankFields
from app.rank.panels import BASES
from app.transport import rare as map_rare
from app.transport.fields import MapFields, map_changes
from app.transport.panels import METHOD_NAMES
from app.transport.tables import spec_of
from engine.errors import PatchError
from engine.lab import grids
from engine.rank.spec import ALPHAS, RankSweep

PAGE = "rank"
ALPHA_HELP = (
    "A sweep runs " + ", ".join(f"{a:g}" for a in ALPHAS) + ", or what is asked; the nearest is shown."
)
RANKS_HELP = (
    "Numbers with commas between; those above the full rank are left out. Empty: 1 to 8, then doubling."
)


def bases(selection: Selection) -> tuple[str, ...]:
    """Bases that the selected map has."""
    own = MapFields.of(selection)
    ranked = own.method == "ScaledProcrustes" and own.clusters == 1
    return ("map", "difference") if ranked else ("difference",)


def ranks_of(text: str) -> tuple[int, ...]:
    """ "1, 2, 8" as ranks; none for an empty text. PatchError for no whole numbers, or too many."""
    found = [whole(part) for part in text.split(",")] if text.strip() else []
    if None in found or 0 in found:
        raise PatchError(
            "The ranks cannot be read.",
            expected="whole numbers from 1 with commas between, e.g. 1, 2, 4, 8",
            given=repr(text[:60]),
            next_step="write them again.",
        )
    ks = tuple(sorted({k for k in found if k}))
    grids.check((), ks)
    return ks


def experiment_of(selection: Selection) -> RankSweep:
    """The sweep a selection describes; the differences' basis where the map has none of its own.

    Raises:
        PatchError: the selection's position is not one token, or its amplitudes or ranks can't be read.
    """
    own = RankFields.of(selection)
    offered = bases(selection)
    return RankSweep(
        **place_of(selection),
        map=spec_of(selection),
        alphas=amplitudes.read(own.tried) or ALPHAS,
        ks=ranks_of(own.ranks),
        scale=selection.amplitude,  # type: ignore[arg-type]
        raw_alpha=selection.raw_alpha,  # type: ignore[arg-type]
        basis=own.basis if own.basis in offered else offered[0],  # type: ignore[arg-type]
        where=where_of(selection),
    )


def experiments(selection: Selection) -> list[RankSweep]:
    """What one click runs."""
    return [experiment_of(selection)]


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    return {
        **place_changes(condition, selection),
        "part": "rank",
        **map_changes(condition["map"]),
        "amplitude": condition["scale"],
        "raw_alpha": condition["raw_alpha"],
        "basis": condition["basis"],
        "tried": amplitudes.written(condition["alphas"], ALPHAS),
        "ranks": ",".join(map(str, condition["ks"])),
        **where_changes(condition),
    }


def not_run(selection: Selection) -> tuple[str, str]:
    """Empty state: what a click will do."""
    target, source = pair_of(selection)
    return (
        "This sweep has not been run",
        f"**Run** puts {source}'s activation at {selection.site} of block {selection.layer} into {target}, "
        f"carried over by {spec_of(selection).describe()}: at every rank, at every amplitude, and only "
        "inside k directions, with random directions beside them. One sweep does all of it.",
    )


def rank_controls() -> None:
    """Map, basis, and what α does."""
    controls.across(
        lambda: controls.choose("method", "Transport map", names=METHOD_NAMES.__getitem__),
        lambda: controls.slide("alpha", "Amplitude α shown", step=0.25, help=ALPHA_HELP),
    )
    with controls.row():
        controls.filter_controls(None)
        map_rare.popover()
        with screen.popover("Amplitudes, ranks", icon=":material/tune:", key="rank-grid"):
            controls.write("tried", "Amplitudes α that are run", ", ".join(f"{a:g}" for a in ALPHAS))
            controls.write("ranks", "Ranks k that are run", "1, 2, … 8, 16, …, full", RANKS_HELP)
        with controls.more():
            controls.switch("basis", "Directions swapped", BASES, bases(controls.current()))
            controls.switch("amplitude", "α scales", {"vector": "the vector", "deviation": "deviation"})
            raw = {"fixed": "at α = 1", "scaled": "at the same α"}
            controls.switch("raw_alpha", "Moment-matched patch", raw)
            controls.read_at()


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored sweep, at the amplitude that was run nearest to the selected one."""
    alpha = min(result.condition["alphas"], key=lambda a: (abs(a - selection.alpha), a))
    return rank_panels.all_panels(opened, result, alpha)
