"""Rendering one prompt through a chat template, and finding the user's own text in the result."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import PromptsError
from engine.prompts_spec import PromptsSpec

Message = dict[str, str]


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt; `text[start:end]` is the user's own text without white space around it.

    `add_special`: whether the tokenizer still has to add its special tokens (a chat template has written
    its own).
    """

    text: str
    start: int
    end: int
    add_special: bool


_NO_DATE = "the study gives no date"
_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)"|[^()]*)\s*\)""")


def render(prompt: dict[str, Any], tokenizer: Any, spec: PromptsSpec) -> Rendered:
    """Renders one prompt (keys id, text, messages).

    With a chat template, the study's system message is put in front unless the prompt has its own. The
    user's text is found by rendering the same messages with a placeholder in its place: what stands
    between the placeholder's surroundings is the text as the template left it (trimmed or not), even when
    the same words occur elsewhere in the prompt.

    Raises:
        PromptsError: see `engine.prompts.encode`.
    """
    if spec.template == "plain":
        return _plain(prompt)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptsError(
            "The tokenizer has no chat template.",
            expected='a tokenizer with a chat template, because the study says template = "chat"',
            given=f"{type(tokenizer).__name__} without one",
            next_step='set template = "plain", or name a tokenizer that has a chat template.',
        )
    messages = _messages(prompt, spec)
    text = _apply(messages, tokenizer, spec, prompt["id"])
    start, end = _find(prompt, messages, text, tokenizer, spec)
    return Rendered(text, *_stripped(text, start, end), add_special=False)


def _plain(prompt: dict[str, Any]) -> Rendered:
    if prompt["messages"] is not None and len(prompt["messages"]) > 1:
        raise PromptsError(
            f'Prompt {prompt["id"]!r} has several messages, but the study says template = "plain".',
            expected="one user message",
            given=f"{len(prompt['messages'])} messages",
            next_step='set template = "chat".',
        )
    text = prompt["text"]
    return Rendered(text, *_stripped(text, 0, len(text)), add_special=True)


def _messages(prompt: dict[str, Any], spec: PromptsSpec) -> list[Message]:
    messages = [dict(message) for message in prompt["messages"] or ()]
    messages = messages or [{"role": "user", "content": prompt["text"]}]
    if spec.system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": spec.system})
    return messages


def _apply(messages: Sequence[Message], tokenizer: Any, spec: PromptsSpec, name: str) -> str:
    dated = {} if spec.date is None else {"date_string": _day(spec.date, "%d %b %Y")}
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=_with_fixed_date(tokenizer.get_chat_template(), spec.date),
            tokenize=False,
            add_generation_prompt=True,
            **dated,
        )
    except Exception as error:  # a template can raise anything: it is a program of the model's authors
        if _NO_DATE in str(error):
            raise PromptsError(
                "The chat template prints today's date.",
                expected="a fixed date in the study, so that it renders the same every day",
                given="no prompts.date",
                next_step='add date = "2024-07-26" (or another day) under [prompts].',
            ) from None
        raise PromptsError(
            f"The chat template refuses prompt {name!r}.",
            expected="messages that the template takes",
            given=f"roles {[m['role'] for m in messages]}; the template says: {error}",
            next_step="leave out prompts.system if the template has no system role.",
        ) from error


def _with_fixed_date(template: str, date: str | None) -> str:
    """The template with its questions for today's date answered by the study's date.

    Without a date, or for a format that is not a literal, the question becomes an error of the template,
    so that a template which has one but doesn't come to it still renders.
    """

    def answer(call: re.Match[str]) -> str:
        fmt = call[1] if call[1] is not None else call[2]
        if date is None or fmt is None:
            return f"raise_exception({_NO_DATE!r})"
        return repr(_day(date, fmt))

    return _DATE_CALL.sub(answer, template)


def _day(date: str, fmt: str) -> str:
    return datetime.date.fromisoformat(date).strftime(fmt)


def _find(
    prompt: dict[str, Any], messages: list[Message], text: str, tokenizer: Any, spec: PromptsSpec
) -> tuple[int, int]:
    """[start, end) of the last user message in the rendered text."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    marker = _unused(text)
    marked = [*messages[:last], messages[last] | {"content": marker}, *messages[last + 1 :]]
    pieces = _apply(marked, tokenizer, spec, prompt["id"]).split(marker)
    before, after = marker.join(pieces[:-1]), pieces[-1]
    if len(pieces) == 2 and text.startswith(before) and text.endswith(after):
        start, end = len(before), len(text) - len(after)
        if start < end:
            return start, end
    # The template looks at the text itself or writes it more than once: its last literal occurrence.
    content = messages[last]["content"].strip()
    tail = len(after) if len(pieces) > 1 and text.endswith(after) else 0
    start = text.rfind(content, 0, len(text) - tail)
    if start < 0:
        raise PromptsError(
            f"The user's own text of prompt {prompt['id']!r} cannot be found in the rendered prompt.",
            expected="a template that keeps the text in one piece",
            given=f"{content[:80]!r} rendered as {text[:200]!r}",
            next_step='use template = "plain" or another chat template.',
        )
    return start, start + len(content)


def _unused(text: str) -> str:
    """A plain word that doesn't occur in the text."""
    word = "PLACEHOLDER"
    while word in text:
        word += "X"
    return word


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
