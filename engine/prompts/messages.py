"""The messages of a prompt: roles, texts, and what templates print of tool calls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from engine.errors import PromptsError
from engine.reading import parse_json

__all__ = ["FIELDS", "last_user_text", "read_messages", "with_fields"]

Message = dict[str, Any]
SPEAKERS = ("system", "user", "assistant", "tool")
LAST = ("user", "assistant", "tool")
FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content")
"""What else of a message is handed to the template."""


def read_messages(value: Any, where: str) -> dict[str, Any]:
    """`messages`, a list of {role, content} or None, and `message_fields` where one has some of `FIELDS`.

    The latter is JSON text: a list of one table for each message.

    Raises:
        PromptsError: unreadable, unknown roles, no user message that has text, or a last message that no
            model answers or continues; the message names `where`.
    """
    if value is None or value in ("", []):
        return {"messages": None}
    try:
        found = parse_json(value) if isinstance(value, str) else value
        out = [{"role": str(m["role"]), "content": _content(m)} for m in found]
        more = [{key: m[key] for key in FIELDS if m.get(key) is not None} for m in found]
        fields = json.dumps(more, ensure_ascii=False, allow_nan=False)
        if not out:
            raise ValueError("no message")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise PromptsError(
            f"{where} has messages that cannot be read.",
            expected='a list of {"role": …, "content": …} with text as content',
            given=repr(value)[:120],
            next_step="correct the row, or give its text as 'text'.",
        ) from None
    problem = _problem(out)
    if problem:
        raise PromptsError(
            f"{where} has messages that cannot be used.",
            expected="roles "
            + ", ".join(SPEAKERS)
            + "; a user message that isn't empty; the last one of the user, of a tool, or of the assistant "
            "with text that the model continues",
            given=problem,
            next_step="correct the row's messages.",
        )
    return {"messages": out} | ({"message_fields": fields} if any(more) else {})


def _content(message: Message) -> str:
    content = message.get("content") or "" if message.get("tool_calls") else message["content"]
    if not isinstance(content, (str, int, float, bool)):
        raise ValueError("content that is no text")
    return str(content)


def _problem(messages: Sequence[Message]) -> str | None:
    wrong = [m["role"] for m in messages if m["role"] not in SPEAKERS]
    if wrong:
        return f"role {wrong[0]!r}"
    last = messages[-1]
    if last["role"] not in LAST:
        return f"a last message of the {last['role']}"
    if last["role"] == "assistant" and not last["content"].strip():
        return "an empty text in the last message, of the assistant"
    user = [m for m in messages if m["role"] == "user"]
    if not user:
        return "no message of the user"
    return None if user[-1]["content"].strip() else "an empty text in the last user message"


def last_user_text(messages: Sequence[Message]) -> str:
    """The user's own text: the last message of the user."""
    found: str = [m["content"] for m in messages if m["role"] == "user"][-1]
    return found


def with_fields(messages: Sequence[Message], fields: str | None) -> list[Message]:
    """Messages with their `message_fields` put back."""
    if fields is None:
        return [dict(message) for message in messages]
    return [message | more for message, more in zip(messages, json.loads(fields), strict=True)]
