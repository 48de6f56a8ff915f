"""Names of the stored tables of weight differences, for pages, which load no torch for them."""

from __future__ import annotations

from store.layout import slug

NORMS = "weight-norms"
"""Table of the first model's tensors: name, layer, shape, norm."""


def delta_table(model: str) -> str:
    """Name of the table with a model's weight differences."""
    return f"weight-delta-{slug(model)}"


def heads_table(model: str) -> str:
    """Name of the table with the heads' shares of them."""
    return f"weight-delta-heads-{slug(model)}"
