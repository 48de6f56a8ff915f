"""The subspaces that a bridge is fitted in: Z of a block's heads, or the dimensions that a stored "
"fit names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from app.ard.fields import ArdFields
from app.ard.tables import opened_fit
from app.bridge.fields import BridgeFields
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.selection import Selection
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
    pair = set(geometry_queries.languages(opened) or ())
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


def dimensions(opened: Opened, selection: Selection, layer: int) -> np.ndarray:
    """Dimensions of the stream by lengthscale at a block, the smallest first, (d,).

    Raises:
        AnalysisError: no fit of that block is stored, or it collapsed.
    """
    run_id = fits(opened, selection).get(layer)
    if run_id is None:
        raise AnalysisError(
            f"No fit of lengthscales at block {layer} is stored.",
            expected=f"one of {geometry.model_of(selection)}, {selection.site}, "
            f"λ = {ArdFields.of(selection).penalty}, not collapsed",
            given=f"blocks {', '.join(map(str, fits(opened, selection))) or 'none'}",
            next_step="fit it on the page of ARD-MMD, or choose Z of the heads.",
        )
    return np.argsort(opened_fit(opened.path, run_id).log_lengthscales, kind="stable")


def relevant(opened: Opened, selection: Selection) -> tuple[Any, ...]:
    """What a bridge depends on besides the selection: which runs gave its dimensions."""
    if BridgeFields.of(selection).space == "heads":
        return ()
    return "ard", *sorted(fits(opened, selection).items())


def coordinates(
    opened: Opened, selection: Selection, layer: int, both: list[np.ndarray]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """k → the two languages' coordinates (n, k), from their activations (n, d)."""
    if BridgeFields.of(selection).space == "ard":
        order = dimensions(opened, selection, layer)
        return {k: (both[0][:, order[:k]], both[1][:, order[:k]]) for k in geometry_queries.ranks(opened)}
    bases = geometry_queries.bases(opened, geometry.model_of(selection), selection.joined, layer)
    return {k: (both[0] @ basis, both[1] @ basis) for k, basis in bases.items()}


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
