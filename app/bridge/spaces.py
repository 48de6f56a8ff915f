"""What a selection asks of the bridge: settings, and subspaces: Z of a block's heads, or the dimensions that
a stored fit names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from app.ard.fields import ArdFields
from app.bridge import tables
from app.bridge.fields import BridgeFields
from app.frame import running as live_view
from app.frame.call import Progress
from app.frame.opened import Opened
from app.frame.selection import Selection, changed
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from engine.ard.spec import Ard
from engine.errors import AnalysisError


def _found(opened: Opened, selection: Selection) -> dict[int, tuple[str, dict[str, Any]]]:
    """(run, condition) of the newest usable fit of every block that has one."""
    wanted = {
        "model": geometry.model_of(selection),
        "component": selection.site,
        "penalty": float(ArdFields.of(selection).penalty),
    }
    pair = set(geometry_queries.languages(opened.store) or ())
    found: dict[int, tuple[str, dict[str, Any]]] = {}
    for condition, summary in live_view.runs_of(opened, "ard"):
        mine = all(condition.get(key) == value for key, value in wanted.items())
        usable = condition.get("start") != "random" and not summary["fits"][0]["collapsed"]
        if mine and usable and set(condition["languages"]) == pair:
            found.setdefault(int(condition["layer"]), (str(summary["run_id"]), condition))
    return found


def fits(opened: Opened, selection: Selection) -> dict[int, str]:
    """Run of the newest fit of lengthscales of every block that has one, about the selected model, site,
    languages and λ, from a start that is not random, not collapsed."""
    return {block: run_id for block, (run_id, _) in _found(opened, selection).items()}


def settings(opened: Opened, selection: Selection, layers: Sequence[int]) -> str:
    """How the fits at these blocks were made, whatever the page of ARD-MMD would fit now."""
    found, told = _found(opened, selection), dict[str, list[int]]()
    for layer in layers:
        fit = Ard.from_json(found[layer][1])
        on = f"{fit.fitted} problems of {fit.category or 'all categories'}"
        text = f"{fit.objective}, λ = {fit.penalty:g}, {fit.start_text()}, fitted on {on}"
        told.setdefault(text, []).append(layer)
    if len(told) == 1:
        return f"Lengthscales: {next(iter(told))}."
    parts = (f"block {', '.join(map(str, blocks))}: {text}" for text, blocks in told.items())
    return f"Lengthscales: {'; '.join(parts)}."


def blocks(opened: Opened, selection: Selection) -> list[int]:
    """Blocks that a bridge can be fitted at."""
    every = opened.store.layers(geometry.model_of(selection))
    if BridgeFields.of(selection).space == "heads":
        return list(every)
    known = fits(opened, selection)
    return [block for block in every if block in known]


def space_of(opened: Opened, selection: Selection, layer: int) -> str:
    """What `tables` calls the subspace at a block.

    Raises:
        AnalysisError: no fit of that block is stored, or it collapsed.
    """
    if BridgeFields.of(selection).space == "heads":
        return selection.joined
    run_id = fits(opened, selection).get(layer)
    if run_id is None:
        raise AnalysisError(
            f"No fit of lengthscales at block {layer} is stored.",
            expected=f"one of {geometry.model_of(selection)}, {selection.site}, "
            f"λ = {ArdFields.of(selection).penalty}, not collapsed",
            given=f"blocks {', '.join(map(str, fits(opened, selection))) or 'none'}",
            next_step="fit it on the page of ARD-MMD, or choose Z of the heads.",
        )
    return run_id


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a site, a position, a k, a block and a null that this page can show."""
    ks, sites = geometry_queries.ranks(opened.store), geometry.sites(opened)
    positions = opened.facts.positions
    layers = blocks(opened, selection) or opened.store.layers(geometry.model_of(selection))
    return changed(
        selection,
        site=selection.site if selection.site in sites else sites[0],
        position=selection.position if selection.position in positions else positions[0],
        k=min(ks, key=lambda k: abs(k - selection.k)),
        layer=min(layers, key=lambda block: abs(block - selection.layer)),
    )


def spoken(opened: Opened, selection: Selection) -> tuple[str, str]:
    """(language the map starts from, language it leads to)."""
    return tables.spoken(opened.store, BridgeFields.of(selection).way)


def within(opened: Opened, selection: Selection) -> bool:
    """Whether the null exchanges problems of one category only."""
    many = tables.several(opened.store, selection.category)
    return many and BridgeFields.of(selection).pairing != "across"


def across(opened: Opened, selection: Selection) -> bool:
    """Whether it exchanges problems of several categories with each other."""
    return tables.several(opened.store, selection.category) and not within(opened, selection)


def place(selection: Selection) -> dict[str, Any]:
    """Where coordinates are read, but for block and space."""
    names = ("site", "position", "split", "category")
    return {"model": geometry.model_of(selection)} | {name: getattr(selection, name) for name in names}


def asked(opened: Opened, selection: Selection) -> dict[str, Any]:
    """What a bridge is asked by, but for the block."""
    own = BridgeFields.of(selection)
    how = {"way": own.way, "method": own.fit, "intercept": own.intercept == "yes"}
    return place(selection) | {"k": selection.k} | how | {"within": within(opened, selection)}


def at_block(opened: Opened, selection: Selection) -> dict[str, Any]:
    """What the bridge at the selected block is asked by."""
    where = {"layer": selection.layer, "space": space_of(opened, selection, selection.layer)}
    return asked(opened, selection) | where


def over_blocks(opened: Opened, selection: Selection) -> dict[str, Any]:
    """What the profile over blocks is asked by."""
    each = tuple((block, space_of(opened, selection, block)) for block in blocks(opened, selection))
    return asked(opened, selection) | {"spaces": each}


def prepare(opened: Opened, selection: Selection, progress: Progress) -> None:
    """Read and project what the selection needs and is not kept yet, behind a progress bar."""
    every = blocks(opened, selection)
    wanted = every if selection.parts == "shown" else [selection.layer]
    bar: list[Callable[[int, int], None]] = []

    def begin() -> None:
        if not bar:
            bar.append(progress("Projecting activations onto Z…"))

    for done, block in enumerate(wanted):
        space = space_of(opened, selection, block)
        tables.coordinates(opened.store, **place(selection), layer=block, space=space, making=begin)
        if bar:
            bar[0](done + 1, len(wanted))


def hint(opened: Opened, selection: Selection) -> str | None:
    """What should be known before a bridge is read: nothing says yet that this subspace matters."""
    model, block = geometry.model_of(selection), selection.layer
    patched = any(
        c.get("model") == model and block in c.get("layers", ())
        for c, _ in live_view.runs_of(opened, "z_patching")
    )
    fitted = any(
        c.get("model") == model and c.get("layer") == block for c, _ in live_view.runs_of(opened, "ard")
    )
    if patched or fitted:
        return None
    return (
        f"Neither Z-patching nor ARD-MMD has a stored result at block {block} of {model}. A bridge "
        "tells how two "
        "languages' coordinates relate, not whether this subspace carries anything: run one of them first."
    )
