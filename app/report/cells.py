"""One way to write a value of a table, in every format."""

from __future__ import annotations

import math
import re
from typing import Any

import polars as pl

NOTHING = "–"


def cell(value: Any) -> str:
    """Four significant digits, "yes" and "no", lists joined by commas, – where there is no value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple | pl.Series):
        return ", ".join(cell(v) for v in value)
    return readable(str(value))


def number(value: float) -> str:
    """Four significant digits, without an exponent where that is short: 0.5124, 12, 1.2e-8."""
    if value == 0:
        return "0"
    text = f"{value:.4g}"
    return re.sub(r"e([+-])0+", r"e\1", text).replace("e+", "e") if "e" in text else text


def readable(text: str) -> str:
    """Text without control characters, which no document may hold; tabs and line breaks stay."""
    return "".join(c if c in "\t\n" or (c >= " " and c != "\x7f" and not _odd(c)) else "\ufffd" for c in text)


def _odd(character: str) -> bool:
    code = ord(character)
    return 0x80 <= code < 0xA0 or 0xD800 <= code < 0xE000 or code & 0xFFFE == 0xFFFE


def numeric(frame: pl.DataFrame) -> list[bool]:
    """Which columns hold numbers."""
    return [dtype.is_numeric() for dtype in frame.dtypes]
