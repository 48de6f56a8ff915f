"""Names of the stored tables of weight differences, for pages, which load no torch for them."""

from __future__ import annotations

from collections.abc import Collection

from store.layout import slug

NORMS = "weight-norms"
"""Table of the first model's tensors: name, layer, shape, norm."""


def delta_table(model: str) -> str:
    """Name of the table with a model's weight differences."""
    return f"weight-delta-{slug(model)}"


def heads_table(model: str) -> str:
    """Name of the table with the heads' shares of them; no model's name makes it another's `delta_table`."""
    return f"weight-heads-{slug(model)}"


def kept_heads_table(model: str, tables: Collection[str]) -> str | None:
    """Name of that table among a store's, None where there is none.

    Stores of earlier versions have it under the name that `delta_table` gives a model called heads-<model>.
    """
    before = delta_table(f"heads-{model}")
    return next((name for name in (heads_table(model), before) if name in tables), None)
