"""Text that somebody else wrote, shown as it is: nothing in it becomes a link, an image or an icon.

What Streamlit's Markdown does after parsing (bare addresses, emoji) no backslash stops; there an invisible
word joiner keeps the characters apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["apart", "csv_cell", "given", "inert", "plain", "shown_cell"]

JOINER = "\u2060"
_MARKS = re.compile(r"[\\`*_\[\]$<>~#|&]")
_STARTS = re.compile(r"^([-+=]|\d+(?=[.)]))")
_ADDRESSES = (
    (re.compile(r"(?<=:)(?=/)"), JOINER),  # http://…
    (re.compile(r"(?i)\b(www)(?=\.)"), rf"\1{JOINER}"),
    (re.compile(r"@(?=[-\w]+\.[-\w])"), f"@{JOINER}"),
)
_NAMED = re.compile(r":(?=[A-Za-z_+\-:/]|(?:100|1234):)")
_CODE = re.compile(r"(?<![`\\])(`+)(?!`)[^\n]*?[^`\n](?<!`)\1(?!`)")
_LIVE = (
    (re.compile(r"\](?=[(\[:])"), f"]{JOINER}"),  # links, images, definitions
    (re.compile(r"<(?=[A-Za-z/!?])"), f"<{JOINER}"),  # tags and addresses in <>
    (re.compile(r":(?!material/)(?!\d+:\d)(?=[\w+-]+[:\[{])"), f":{JOINER}"),  # emoji, colours
    (re.compile(r"(?<!\\)((?:\\\\)*)\$"), r"\1\\$"),  # mathematics
    *_ADDRESSES,
)
_EMPHATIC = re.compile(r"[\\`*~#|&]|(?<!\w)_|_(?!\w)")
_GIVEN: set[str] = set()
_PRIVATE = 0xF0000
_NUMERAL = re.compile(r"[+-]?[0-9.,]+(e[+-]?[0-9]+)?")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the start of a formula, in ASCII and in full width."""
FORMULAS = "^ *[" + "".join(FORMULA).replace("-", r"\-") + "]"
"""The same as a pattern of polars, for whole columns."""


def plain(text: str) -> str:
    """Text as Markdown that shows exactly this text, on one line."""
    line = " ".join(text.split())
    line = _STARTS.sub(_escaped_start, _MARKS.sub(r"\\\g<0>", line))
    return apart(_NAMED.sub(f":{JOINER}", line))


def apart(text: str) -> str:
    """Text in which no reader finds an address or an e-mail address to make a link of."""
    for pattern, written in _ADDRESSES:
        text = pattern.sub(written, text)
    return text


def given(labels: Iterable[str]) -> None:
    """Makes labels that a study gives (languages, categories, …) known to `inert`, for the whole process."""
    _GIVEN.update(label for label in labels if _EMPHATIC.search(label) and re.search(r"\w", label))
    inert.cache_clear()


@lru_cache(maxsize=4096)
def inert(text: str) -> str:
    """Markdown of Patchbay's own, with whatever is in it: emphasis, code, lists and headings stay.

    Links, images, tags, mathematics, colours and emoji, which Patchbay never writes, show as they are, and so
    do whole labels that `given` was told of.
    """
    labels = sorted((label for label in _GIVEN if label in text), key=len, reverse=True)
    for number, label in enumerate(labels):
        text = text.replace(label, chr(_PRIVATE + number))
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_dead(text[end : code.start()]), code[0]]
        end = code.end()
    text = "".join([*parts, _dead(text[end:])])
    for number, label in enumerate(labels):
        text = text.replace(chr(_PRIVATE + number), plain(label))
    return text


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before what would begin one."""
    return f"'{text}" if text.lstrip(" ").startswith(FORMULA) else text


def shown_cell(text: str) -> str:
    """A cell of a table on a page, whose menu writes it to a file: as `csv_cell`, with an invisible mark."""
    begins = text.lstrip(" ").startswith(FORMULA) and not _NUMERAL.fullmatch(text)
    return f"{JOINER}{text}" if begins else text


def _dead(text: str) -> str:
    for pattern, written in _LIVE:
        text = pattern.sub(written, text)
    return text


def _escaped_start(found: re.Match[str]) -> str:
    mark = found[0]
    return f"\\{mark}" if not mark[0].isdigit() else f"{mark}\\"
