"""Rendering one prompt through a chat template, and finding the user's own text in the result.

What the assistant has said already stands at the end, and the model continues it: the template's text is cut
behind it, as `apply_chat_template(continue_final_message=True)` of transformers cuts it.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import PromptsError
from engine.prompts.chat import TemplateFault, render_chat
from engine.prompts.chat_process import NO_DATE
from engine.prompts.messages import with_fields
from engine.prompts.spec import PromptsSpec

__all__ = ["Rendered", "Span", "is_plain", "render"]

Message = dict[str, Any]
Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """A rendered prompt; `text[start:end]` is the user's own text without white space around it.

    Attributes:
        add_special: whether the tokenizer still has to add its special tokens (a chat template has written
            its own).
        answer: [start, end) of what the assistant says in its last turn, without white space around it;
            None where it says nothing.
        header: [start, end) of what opens the assistant's last turn, from the end of the turn before it;
            None where it was not asked for.
        tokens: token ids and their offsets, where the prompt gives them; None: of the tokenizer.
    """

    text: str
    start: int
    end: int
    add_special: bool
    answer: Span | None = None
    header: Span | None = None
    tokens: tuple[Sequence[int], Sequence[Span]] | None = None


_DATE_CALL = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)"|[^()]*)\s*\)""")


def render(
    prompt: dict[str, Any],
    tokenizer: Any,
    spec: PromptsSpec,
    known: dict[str, str] | None = None,
    *,
    header: bool = False,
) -> Rendered:
    """Renders one prompt (keys id, text, messages, and columns that the study uses).

    With a chat template, the study's system message is put in front unless the prompt has its own. The
    user's text is found by rendering the same messages with a placeholder in its place: what stands
    between the placeholder's surroundings is the text as the template left it (trimmed or not), even when
    the same words occur elsewhere in the prompt.

    Args:
        known: renderings with a placeholder, kept from prompt to prompt of one tokenizer and study: most
            prompts differ in nothing but the text that it stands for.
        header: whether to find what opens the assistant's turn.

    Raises:
        PromptsError: see `engine.prompts.tokens.encode`.
    """
    if is_plain(prompt, spec):
        return _plain(prompt, spec, header)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptsError(
            "The tokenizer has no chat template.",
            expected='a tokenizer with a chat template, because the study says template = "chat"',
            given=f"{type(tokenizer).__name__} without one",
            next_step='set template = "plain", or name a tokenizer that has a chat template.',
        )
    messages, template = _messages(prompt, spec), _Template(tokenizer, spec, prompt["id"])
    text, said = template.prompt(messages)
    start, end = _find(prompt, messages, text, template, {} if known is None else known)
    answer = _answer(text, _said(prompt, spec)[1])
    opened = template.header(messages, text, len(text) - len(said)) if header else None
    return Rendered(text, *_stripped(text, start, end), False, answer, opened)


def is_plain(prompt: dict[str, Any], spec: PromptsSpec) -> bool:
    """Whether a prompt's text is used as it is."""
    own = prompt.get("template")
    return spec.template == "plain" if own is None else not own


def _said(prompt: dict[str, Any], spec: PromptsSpec) -> tuple[str, str]:
    """What the assistant has said already, in two parts of which the second is its answer; "" for nothing.

    A prompt's own prefill stands in the place of the study's, and its last message of the assistant in that
    of both. Without an answer, all of it is the answer.
    """
    messages = prompt["messages"]
    if messages and messages[-1]["role"] == "assistant":
        return "", str(messages[-1]["content"])
    own = prompt.get("prefill")
    prefill = str(own if own is not None else spec.prefill or "")
    column = spec.answer_column
    return ("", prefill) if column is None else (prefill, str(prompt[column]))


def _answer(text: str, answer: str) -> Span | None:
    """The characters of the answer at the end of a text, without white space around it; None for none."""
    visible, end = answer.strip(), len(text.rstrip())
    return (end - len(visible), end) if visible else None


def _plain(prompt: dict[str, Any], spec: PromptsSpec, header: bool) -> Rendered:
    if prompt["messages"] is not None and len(prompt["messages"]) > 1:
        raise PromptsError(
            f'Prompt {prompt["id"]!r} has several messages, but it is to be "plain".',
            expected="one user message",
            given=f"{len(prompt['messages'])} messages",
            next_step='set template = "chat".',
        )
    if header:
        raise _no_header(prompt["id"], "its text is plain")
    before, answer = _said(prompt, spec)
    own = prompt["text"]
    text = own + before + answer
    return Rendered(text, *_stripped(text, 0, len(own)), True, _answer(text, answer))


def _messages(prompt: dict[str, Any], spec: PromptsSpec) -> list[Message]:
    messages = with_fields(prompt["messages"] or (), prompt.get("message_fields"))
    messages = messages or [{"role": "user", "content": prompt["text"]}]
    system = spec.system if prompt.get("system") is None else prompt["system"]
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    said = "".join(_said(prompt, spec))
    if said and messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": said})
    return messages


@dataclass(frozen=True)
class _Template:
    """A tokenizer's chat template under a study's arguments; `name` is the prompt's, for messages."""

    tokenizer: Any
    spec: PromptsSpec
    name: str

    def prompt(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text that the model continues, and its end that the assistant has said ("" for nothing)."""
        *before, last = messages
        if last["role"] != "assistant":
            return self.apply(messages, True), ""
        mark = _unused(json.dumps(messages))
        marked = self.apply([*before, last | {"content": f"{last['content']}{mark} "}], False)
        text, _, behind = marked.rpartition(mark)
        if not behind.startswith(" "):  # the template trims, and so is what stands before the mark
            text = text.rstrip()
        content = str(last["content"])
        said = next((s for s in (content, content.lstrip(), content.strip()) if text.endswith(s)), None)
        if said is None or mark not in marked:
            raise PromptsError(
                f"The chat template cannot continue what the assistant says in prompt {self.name!r}.",
                expected="a template that writes the assistant's last message as it is",
                given=f"{content[:80]!r} rendered as {self.apply(messages, False)[-200:]!r}",
                next_step="leave the prefill or the answer out, change its beginning, or use plain text.",
            )
        return text, said

    def header(self, messages: Sequence[Message], text: str, end: int) -> Span:
        """[start, end) of what opens the assistant's turn: behind the turns before it."""
        before = list(messages[:-1] if messages[-1]["role"] == "assistant" else messages)
        turns = self.apply(before, False)
        if not text.startswith(turns):
            raise _no_header(self.name, "its template changes earlier turns when the assistant speaks")
        if len(turns) >= end:
            raise _no_header(self.name, "its template opens the assistant's turn with nothing")
        return len(turns), end

    def apply(self, messages: Sequence[Message], generation: bool) -> str:
        """The template's text, with or without the header of the assistant's turn behind it."""
        date, arguments = self.spec.date, self.spec.arguments()
        dated = {} if date is None else {"date_string": _day(date, "%d %b %Y")}
        asked = {"messages": list(messages), "tools": None, "documents": None} | arguments
        try:
            template = self.tokenizer.get_chat_template(tools=asked["tools"])
            asked["add_generation_prompt"] = generation
            context = {**self.tokenizer.special_tokens_map, **asked, **dated}
            return render_chat(_with_fixed_date(template, date), context)
        except (TemplateFault, ValueError, TypeError, AttributeError) as error:
            if NO_DATE in str(error):
                raise PromptsError(
                    "The chat template prints today's date.",
                    expected="a fixed date in the study, so that it renders the same every day",
                    given="no prompts.date",
                    next_step='add date = "2024-07-26" (or another day) under [prompts].',
                ) from None
            raise PromptsError(
                f"The chat template refuses prompt {self.name!r}.",
                expected="messages and prompts.template_args that the template takes",
                given=f"roles {[m['role'] for m in messages]}; the template says: {error}",
                next_step="leave out prompts.system if the template has no system role.",
            ) from error


def _no_header(name: str, why: str) -> PromptsError:
    return PromptsError(
        f"Prompt {name!r} has no position 'assistant_start': {why}.",
        expected="a chat template that opens the assistant's turn behind all other turns",
        given=why,
        next_step="leave 'assistant_start' out of capture.positions.",
    )


def _with_fixed_date(template: str, date: str | None) -> str:
    """The template with its questions for today's date answered by the study's date.

    Without a date, or for a format that is not a literal, the question becomes an error of the template,
    so that a template which has one but doesn't come to it still renders.
    """

    def answer(call: re.Match[str]) -> str:
        fmt = call[1] if call[1] is not None else call[2]
        if date is None or fmt is None:
            return f"raise_exception({NO_DATE!r})"
        return repr(_day(date, fmt))

    return _DATE_CALL.sub(answer, template)


def _day(date: str, fmt: str) -> str:
    return datetime.date.fromisoformat(date).strftime(fmt)


def _find(
    prompt: dict[str, Any], messages: list[Message], text: str, template: _Template, known: dict[str, str]
) -> Span:
    """[start, end) of the last user message in the rendered text."""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    marker = _unused(text)
    marked = [*messages[:last], messages[last] | {"content": marker}, *messages[last + 1 :]]
    key = json.dumps(marked)
    if key not in known:
        known[key] = template.prompt(marked)[0]
    pieces = known[key].split(marker)
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


def _stripped(text: str, start: int, end: int) -> Span:
    """The span without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - (len(piece) - len(piece.rstrip()))
