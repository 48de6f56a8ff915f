"""Sentences of a patch map. A cell is named only where it exceeds every cell of every unrelated prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.frame.words import nats
from app.tokenwise.words import token
from engine.patch_map.spec import FEWEST_NULLS

__all__ = ["HALF", "beyond", "change", "handed", "kl_title", "percent", "profile_title", "recovery_title"]

HALF = 0.5
"""A last token that brings over half of the change is told with the block from which on it does."""


def beyond(value: float | None, nulls: Sequence[float | None], floor: float) -> bool:
    """Whether a largest cell is told: it exceeds the largest one of every unrelated prompt, and rounding.

    Rule: of `FEWEST_NULLS` or more unrelated prompts, none gives as much in any of the same cells; where
    the donor is as they are, one map in 20 is told.
    """
    known = [one for one in nulls if one is not None]
    return value is not None and value > floor and len(known) >= FEWEST_NULLS and value > max(known)


def change(summary: Mapping[str, Any]) -> str:
    """ "; the change is from “5” to “7”": what stands behind "of the change", where there is room."""
    own, other = (token(text) for text in summary["answers"])
    return f"; the change is from {own} to {other}"


def recovery_title(
    site: str,
    cells: pl.DataFrame,
    nulls: pl.DataFrame,
    summary: Mapping[str, Any],
    earlier: bool,
    taken: tuple[int, float] | None = None,
) -> str:
    """Which token brings how much of the change of the logit difference, and at which block.

    Rule: the largest cell, by `beyond`.

    Args:
        cells: layer, token, text, value; undefined values are null. nulls: column value, the largest of the
            same cells of each unrelated prompt.
        earlier: whether the cells are those before the last token. At the last token of the stream the
            donor's whole answer is put in, so the others are told apart.
        taken: of the last token, by `handed`.
    """
    top = _largest(cells)
    if top is None:
        return _no_cells(site, summary)
    if _quiet(cells, summary, "recovery_floor"):
        last = "" if taken is None else f"{_last(taken)} of the change; "
        return f"{site}: {last}{_nothing(earlier)}"
    if not beyond(top["value"], nulls["value"].to_list(), _floor(summary, "recovery_floor")):
        which = "no token before the last" if earlier else "no token"
        told = f"{which} brings more of the change than unrelated prompts do"
        if taken is not None:
            told = f"{_last(taken)} of the change; earlier ones no more than unrelated prompts do"
        return _beside(site, nulls, told) + change(summary)
    where = f"token {top['token']}, {token(top['text'])}"
    brings = f"brings {percent(top['value'])} of the change at block {top['layer']}"
    later = "" if taken is None else f"; {_last(taken)}"
    return f"{site}: {where}, {brings}{later}{change(summary)}"


def kl_title(
    site: str, cells: pl.DataFrame, nulls: pl.DataFrame, summary: Mapping[str, Any], earlier: bool
) -> str:
    """Which token moves the next-token distribution most, and at which block; rule as `recovery_title`."""
    top = _largest(cells)
    if top is None:
        return _no_cells(site, summary)
    if _quiet(cells, summary, "floor"):
        return f"{site}: {_nothing(earlier)}"
    if not beyond(top["value"], nulls["value"].to_list(), _floor(summary, "floor")):
        which = "no token before the last" if earlier else "no token"
        return _beside(site, nulls, f"{which} moves the output more than unrelated prompts do")
    where = f"token {top['token']}, {token(top['text'])}, block {top['layer']}"
    which = " of those before the last" if earlier else ""
    return f"{site}: {where}, moves the output most{which}: KL {nats(top['value'])} nats"


def handed(last: pl.DataFrame, nulls: Sequence[float | None], floor: float) -> tuple[int, float] | None:
    """The block from which on the last token brings more than half, than any unrelated prompt, and rounding.

    Args:
        last: layer, value of the last token. nulls: the largest that each unrelated prompt gives there.

    Returns:
        the block, and the share that every later one exceeds; None where the last block does not.
    """
    known = [one for one in nulls if one is not None]
    least = max([HALF, floor, *known])
    found = None
    for layer, value in last.sort("layer", descending=True).select("layer", "value").rows():
        if value is None or value <= least:
            break
        found = int(layer)
    return None if found is None or len(known) < FEWEST_NULLS else (found, least)


def profile_title(
    site: str, taken: tuple[int, float] | None, nulls: pl.DataFrame, summary: Mapping[str, Any]
) -> str:
    """From which block on the last token holds what is said; see `handed`."""
    if taken is not None:
        told = f"{_last(taken)} of the change"
    elif max(nulls["value"].drop_nulls().to_list(), default=0.0) > HALF:
        told = "the last token brings no more of the change than unrelated prompts do"
    elif _floor(summary, "recovery_floor") > HALF:
        told = "what the last token brings is not told from rounding noise"
    else:
        told = "the last token brings less than half of the change at the last block"
    return _beside(site, nulls, told) + change(summary)


def _last(taken: tuple[int, float]) -> str:
    """ "from block 4 on the last token brings more than 50 %"."""
    layer, least = taken
    on = f"from block {layer} on" if layer else "from the first block on"
    return f"{on} the last token brings more than {percent(least)}"


def _largest(cells: pl.DataFrame) -> dict[str, Any] | None:
    known = cells.drop_nulls("value")
    if known.is_empty():
        return None
    return known.row(int(known["value"].arg_max() or 0), named=True)


def _floor(summary: Mapping[str, Any], name: str) -> float:
    return float(summary.get(name) or 0.0)


def _no_cells(site: str, summary: Mapping[str, Any]) -> str:
    """Why there is nothing to tell: no earlier token was patched, or none that unrelated prompts have."""
    alone = "only the last token was patched"
    return f"{site}: {alone if summary['patched'] == 1 else 'unrelated prompts lack the earlier tokens'}"


def _quiet(cells: pl.DataFrame, summary: Mapping[str, Any], floor: str) -> bool:
    """Whether no cell moves anything beyond rounding."""
    most = cells["value"].abs().max()
    return isinstance(most, float) and most <= max(_floor(summary, floor), 1e-9)


def _nothing(earlier: bool) -> str:
    which = "no token before the last" if earlier else "no patch"
    return f"{which} changes what is said by more than rounding noise"


def _beside(site: str, nulls: pl.DataFrame, told: str) -> str:
    """What is told beside unrelated prompts, or that they are too few."""
    count = nulls["value"].drop_nulls().len()
    if count >= FEWEST_NULLS:
        return f"{site}: {told}"
    few = "1 unrelated prompt is" if count == 1 else f"{count} unrelated prompts are"
    return f"{site}: {few} too few to tell what the donor brings"


def percent(share: float) -> str:
    """A share in per cent, of more digits where it is small."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.1 else f"{100 * share:.2g} %"
