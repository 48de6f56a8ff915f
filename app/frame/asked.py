"""From a selection to what experiments share, and back: the prompts that they are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.frame.selection import Selection
from engine.lab.experiment import Where


def where_of(selection: Selection) -> Where:
    """The selected language and category."""
    chosen = {name: getattr(selection, name) for name in Where.model_fields}
    return Where(**{name: None if value == "all" else value for name, value in chosen.items()})


def where_changes(condition: Mapping[str, Any]) -> dict[str, str]:
    """Changes to a selection under which `where_of` gives a stored condition's prompts again."""
    where = condition.get("where") or {}
    return {name: where.get(name) or "all" for name in Where.model_fields}
