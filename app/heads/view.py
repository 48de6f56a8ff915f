"""Heads as a page needs them: experiments from the selection, and stored results as words and panels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, pair_changes, pair_of, where_changes, where_of
from app.frame.snippets import read_run
from app.heads import panels as heads_panels
from app.heads.fields import HeadFields
from app.heads.panels import VECTORS
from app.live.jobs import JobResult, JobStatus
from app.patching import categories
from engine.heads.map_spec import HeadMap
from engine.heads.spec import HeadSubsets

__all__ = [
    "HELP",
    "PAGE",
    "SUBSTITUTES",
    "VECTORS",
    "WHY_EMPTY",
    "experiment_of",
    "growing",
    "map_of",
    "not_run",
    "nothing",
    "run_panels",
    "selection_of",
    "settings",
    "show",
]

PAGE = "heads"
SUBSTITUTES = {
    "head_z": "values (head_z): through the target's own W_O",
    "head_out": "contribution (head_out): with the source's W_O",
}
HELP = (
    "head_z puts the source's value mix of a head into the target, which projects it by its own W_O. "
    "head_out puts in what the source's head adds to the stream, its own W_O included; it needs a family "
    "without a norm behind the attention. moment-matched: each dimension brought to the target's mean and "
    "spread on train."
)
WHY_EMPTY = (
    "Heads need a one-token position",
    "This store was captured at averaged positions only. Add `last_content` or `decision` to the study's "
    "positions and run precompute.py again.",
)


def settings(opened: Opened) -> None:
    """Direction, what is put in and where; behind "More" how vectors are made and what is read."""
    controls.across(
        controls.direction,
        lambda: controls.choose("substitute", "Substitute", None, SUBSTITUTES.__getitem__, HELP),
        lambda: controls.choose("position", "Patched token", only=opened.facts.tokens),
        lambda: controls.slide("layer", "Block ℓ"),
    )
    with controls.row():
        controls.filter_controls(None)
        with controls.more():
            controls.switch("vectors", "Vectors", VECTORS)
            controls.read_at()


def show(opened: Opened, selection: Selection) -> None:
    """One block in depth and the map of every block: what runs them, and their stored results."""
    block, every = experiment_of(selection), map_of(selection)
    found, mapped = live_view.stored(opened, block), live_view.stored(opened, every)
    controls.across(
        lambda: live_view.run_button(opened, [block], "Run this block", done=found is not None),
        lambda: live_view.run_button(
            opened, [every], "Run every block's map", done=mapped is not None, key="run-map"
        ),
    )
    live_view.watch()
    live_view.watch_partial(HeadMap, _so_far, 2.0, selection.layer)
    if found is None and not live_view.active():
        components.empty(*not_run(selection))
    if found is not None:
        why = nothing(found)
        if why is not None:
            components.empty(*why)
        components.show_all(opened, run_panels(opened, found, selection))
        live_view.notes(found)
    if mapped is not None:
        components.show_all(opened, run_panels(opened, mapped, selection))


def experiment_of(selection: Selection, layer: int | None = None) -> HeadSubsets:
    """The heads of the selected block, or of another one.

    Raises:
        PatchError: the selection's position is not one token.
    """
    return HeadSubsets(layer=selection.layer if layer is None else layer, **_asked(selection))


def map_of(selection: Selection) -> HeadMap:
    """Every block's heads, under the same settings; raises as `experiment_of` does."""
    return HeadMap(**_asked(selection))


def _asked(selection: Selection) -> dict[str, Any]:
    own = HeadFields.of(selection)
    target, source = pair_of(selection)
    return {
        "target": target,
        "source": source,
        "component": own.substitute,
        "vectors": own.vectors,
        "position": selection.position,
        "read_at": selection.read_at,
        "where": where_of(selection),
    }


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` (or `map_of`) gives this stored condition again."""
    return {
        **pair_changes(condition, selection),
        "layer": condition.get("layer", selection.layer),
        "substitute": condition["component"],
        "vectors": condition["vectors"],
        "position": condition["position"],
        "read_at": condition["read_at"],
        **where_changes(condition),
    }


def nothing(result: JobResult) -> tuple[str, str] | None:
    """Why a block has no coverages, as a title and a text; None where it has."""
    effect = result.summary.get("effect")
    if effect is None or effect["shown"]:
        return None
    condition, reason = result.condition, str(effect["reason"])
    title = f"There is no effect of block {condition['layer']}'s heads to divide up"
    return title, f"{reason[0].upper()}{reason[1:]}. {heads_panels.prompts(result)}"


def not_run(selection: Selection) -> tuple[str, str]:
    """Empty state: what a click will do."""
    return (
        f"The heads of block {selection.layer} have not been run under these settings",
        "**Run this block** substitutes its heads alone, in ranked, greedy and random sets, in pairs and all "
        "but one. **Run every block's map** substitutes each head of each block alone.",
    )


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored result, of one block or of every block."""
    code = _code(opened, result)
    if result.condition["job"] == "head_map":
        parts = (heads_panels.map_panel, heads_panels.cells_panel, heads_panels.kl_panel)
        return [panel(result, selection, code) for panel in parts]
    if nothing(result) is not None:
        return []
    what = f"KL of all heads of block {result.condition['layer']}"
    split = categories.categories_panel(
        opened,
        result,
        "prompts",
        {"split": "validation"},
        "kl_all",
        what,
        f"{heads_panels.prompts(result)} ",
    )
    block = (
        heads_panels.singles_panel,
        heads_panels.curve_panel,
        heads_panels.without_panel,
        heads_panels.pairs_panel,
        heads_panels.interaction_panel,
        heads_panels.predictors_panel,
    )
    return [*(panel(result, code) for panel in block), *([] if split is None else [split])]


def growing(jobs: Sequence[JobStatus]) -> pl.DataFrame | None:
    """Cells so far of a map that is being run (layer, head, kl, coverage), or None."""
    for job in jobs:
        if isinstance(job.condition, HeadMap) and job.partial and job.partial.get("cells"):
            return pl.DataFrame(job.partial["cells"], infer_schema_length=None)
    return None


def _so_far(layer: int) -> None:
    cells = growing(live_view.active())
    if cells is None:
        return
    with st.container(border=True, key="heads-so-far"):
        screen.markdown(f"#### {cells['layer'].n_unique()} blocks so far")
        chart = heads_panels.cells_chart(cells, "kl", "KL alone, nats", layer, components.colors())
        st.vega_lite_chart(spec=chart.spec(), width="stretch", key="chart-heads-so-far")


def _code(opened: Opened, result: JobResult) -> Callable[[str], str]:
    """Notebook lines that read a table of this result from the store again."""
    return lambda name: read_run(opened, result, f"table = run.tables[{name!r}]")
