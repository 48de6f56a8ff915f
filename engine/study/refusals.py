"""Turns pydantic's validation errors into messages for the person who wrote the study file."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.errors import StudyError

TAGS = ("span", "given", "generated")
"""What pydantic says of a place where one of several models may stand, beside its keys."""


def to_study_error(error: ValidationError, root: type[BaseModel], source: str) -> StudyError:
    """The first problem in full, and how many more there are.

    Unknown keys come first: a misspelt key usually causes the others (its right name is then missing).
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    what, expected, given, next_step = _explain(dict(problems[0]), root)
    more = f" ({len(problems) - 1} more: {_names(problems[1:])})" if len(problems) > 1 else ""
    return StudyError(f"{source}: {what}{more}", expected=expected, given=given, next_step=next_step)


def _names(problems: list[Any]) -> str:
    return "; ".join(f"{_dotted(problem['loc'])}: {problem['msg']}" for problem in problems[:4])


def _explain(problem: dict[str, Any], root: type[BaseModel]) -> tuple[str, Any, Any, str | None]:
    location, kind = problem["loc"], problem["type"]
    key = _dotted(location)
    known = _keys_at(root, location[:-1])
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "remove it."
        return f"unknown key {key!r}.", "one of " + ", ".join(known), repr(str(location[-1])), hint
    if kind == "missing":
        return f"the key {key!r} is missing.", f"a value for {key!r}", "nothing", f"add {location[-1]!r}."
    message = str(problem["msg"]).removeprefix("Value error, ").rstrip(".")
    if not key:  # of the whole study: what was given is all of it
        return "parts of it don't fit together.", message, "something else", "correct what is named."
    return f"{key!r} has an impossible value.", message, _shown(problem.get("input")), f"correct {key!r}."


def _shown(value: Any) -> str:
    try:
        text = repr({k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value)
    except (ValueError, RecursionError):  # numbers of thousands of digits, brackets without end
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= 200 else text[:200] + "…"


def _dotted(location: tuple[Any, ...]) -> str:
    out = ""
    for part in location:
        if isinstance(part, int):
            out += f"[{part}]"
        elif not part.startswith(("tuple[", "literal[", "constrained", *TAGS)):
            out += f".{part}" if out else part
    return out


def _keys_at(root: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys allowed at a location, following models, optional ones too, dicts and tuples of models."""
    here: Any = root
    for part in location:
        if part in TAGS:
            continue
        if _is_model(here):
            field = here.model_fields.get(str(part))
            here = None if field is None else field.annotation
        elif typing.get_origin(here) in (dict, tuple):
            here = typing.get_args(here)[0 if typing.get_origin(here) is tuple else 1]
        else:
            return []
        here = _bare(here)
        here = next(filter(_is_model, map(_bare, typing.get_args(here))), here) if _is_union(here) else here
    return list(here.model_fields) if _is_model(here) else []


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)
