"""Columns of a prompt file that say how a prompt becomes tokens (`engine.prompts.spec.ROLES`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.prompts.spec import Role
from engine.reading import parse_json

__all__ = ["DTYPES", "read_roles"]

DTYPES: dict[Role, Any] = {
    "system": pl.String,
    "prefill": pl.String,
    "template": pl.Boolean,
    "token_ids": pl.List(pl.Int64),
}
TEMPLATED = {"true": True, "chat": True, "1": True, "false": False, "plain": False, "raw": False, "0": False}
MOST_TOKENS = 10_000_000


def read_roles(row: Mapping[str, Any], roles: Collection[Role], where: str) -> dict[str, Any]:
    """The values of the columns that a study uses, None where the row has none.

    Raises:
        PromptsError: a value that can't be used, or one that contradicts another; it names `where`.
    """
    found: dict[str, Any] = {role: row.get(role) or None for role in roles}
    if found.get("template") is not None:
        found["template"] = _templated(found["template"], where)
    if found.get("token_ids") is not None:
        found["token_ids"] = _token_ids(found["token_ids"], where)
        others = [name for name in ("system", "prefill", "template") if found.get(name) is not None]
        others += ["messages"] if row["messages"] is not None else []
        if others:
            raise _contradiction(
                f"token ids and {' and '.join(others)}", "token ids are used as they are", where
            )
    messages = row["messages"] or [{"role": "user"}]
    if found.get("system") is not None and messages[0]["role"] == "system":
        raise _contradiction("a system message and a column of them", "one system message", where)
    if found.get("prefill") is not None and messages[-1]["role"] == "assistant":
        raise _contradiction("a prefill and a last message of the assistant", "one of them", where)
    if found.get("template") is False and found.get("system") is not None:
        raise _contradiction("a system message, and no template", "plain text has no system message", where)
    return found


def _contradiction(given: str, why: str, where: str) -> PromptsError:
    return PromptsError(
        f"{where} says two things.", expected=why, given=given, next_step="leave one of them out of the row."
    )


def _templated(value: Any, where: str) -> bool:
    found = TEMPLATED.get(str(value).strip().lower())
    if found is None:
        raise PromptsError(
            f"{where} has a template that is neither yes nor no.",
            expected='true or "chat", false or "plain"',
            given=repr(value)[:80],
            next_step="correct the column that prompts.columns names for template.",
        )
    return found


def _token_ids(value: Any, where: str) -> list[int]:
    try:
        ids = parse_json(value) if isinstance(value, str) else value
    except ValueError:
        ids = None
    usable = isinstance(ids, list) and all(type(token) is int and 0 <= token < 1 << 31 for token in ids)
    if not usable or not 0 < len(ids) <= MOST_TOKENS:
        raise PromptsError(
            f"{where} has token ids that cannot be read.",
            expected="a list of whole numbers from 0",
            given=repr(value)[:80],
            next_step="correct the column that prompts.columns names for token_ids.",
        )
    return list(ids)
