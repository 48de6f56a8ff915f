"""The filter chosen on the prompts page as lines of a study file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl
from pydantic import ValidationError

from app.frame.opened import Opened
from app.frame.selection import Selection
from app.prompts.fields import PromptFields
from engine.errors import PromptsError
from engine.prompts.spec import PromptFilter
from engine.prompts.table import matches


def search_filter(text: str) -> PromptFilter | None:
    """A search as a filter on the text; None for an empty one.

    Raises:
        PromptsError: it is not a regular expression.
    """
    if not text:
        return None
    try:
        return PromptFilter(text=text)
    except ValidationError as error:
        raise PromptsError(
            "This search cannot be read.",
            expected=str(error.errors()[0]["msg"]).removeprefix("Value error, "),
            given=repr(text),
            next_step="put a backslash before signs that are meant as themselves: ( ) [ ] { } . * + ? ^ $ |",
        ) from None


def found(table: pl.DataFrame, text: str) -> pl.DataFrame:
    """The prompts whose text the search finds; PromptsError as in `search_filter`."""
    wanted = search_filter(text)
    return table if wanted is None else table.filter(matches(table, wanted))


def study_lines(opened: Opened, selection: Selection, text: str = "") -> str:
    """Lines for `[prompts]` of the study file that keep the prompts shown, whatever their split.

    What the study filters already stays: its `exclude`, the names it includes where nothing narrower is
    chosen, and the higher of the two thresholds.
    """
    study = opened.store.manifest.get("study", {}).get("prompts", {})
    own = {key: value for key, value in (study.get("include") or {}).items() if value}
    chosen = {c: [getattr(selection, c)] for c in ("category", "language") if getattr(selection, c) != "all"}
    lines = ["[prompts]"]
    if text and own.get("text"):
        lines.append(
            f"# the study includes text = {_toml(own['text'])} already: join the two patterns by hand"
        )
    include = own | chosen | ({"text": text} if text else {})
    lines += [f"include = {_toml(include)}"] if include else []
    exclude = {key: value for key, value in (study.get("exclude") or {}).items() if value}
    lines += [f"exclude = {_toml(exclude)}"] if exclude else []
    least = max(PromptFields.of(selection).threshold, study.get("min_shared_ratio") or 0.0)
    lines += [f"min_shared_ratio = {least:g}"] if least > 0 else []
    if len(lines) == 1:
        lines.append("# every prompt is kept: choose a language, a category, a search or a threshold above")
    return "\n".join(lines)


def _toml(value: Any) -> str:
    """A value in TOML syntax: strings as in JSON, whose escapes TOML reads alike."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
