"""Settings of the page in links."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from app.frame.fields import choice, number, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class TokenwiseFields(Fields):
    """Settings of the page.

    Attributes:
        prompt: id of the prompt; empty is the first one of validation.
        typed: the text of one that isn't the study's, breaks of lines as `broken` says; empty for none.
        system: what stands before it. wrapped: whether a chat template is put around it. reply: tokens
            of a continuation.
    """

    prompt: str = text()
    typed: str = text()
    system: str = text()
    wrapped: str = choice("study", "chat", "plain")
    reply: int = number(0, 0, 512)


def one_line(text: str) -> str:
    """A text in one line, for links, from which `broken` makes it again but for other control marks."""
    text = "".join(mark for mark in text if mark in "\n\t" or unicodedata.category(mark) not in ("Cc", "Cs"))
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def broken(line: str) -> str:
    """The text that `one_line` was given."""
    marks = {"n": "\n", "t": "\t"}
    return re.sub(r"\\(.)", lambda found: marks.get(found[1], found[1]), line)
