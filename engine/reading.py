"""Reading files of strangers: bounded, as UTF-8, and JSON without what no reader agrees on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["parse_json", "read_bounded", "read_json"]


def read_bounded(path: Path, most: int) -> bytes:
    """A plain file's bytes; ValueError for anything else and for more than `most` bytes."""
    if not path.is_file():
        raise ValueError("no plain file")
    if path.stat().st_size > most:
        raise ValueError(f"more than {most:,} bytes")
    with open(path, "rb") as file:
        return file.read(most)


def parse_json(text: str) -> Any:
    """JSON as plain values.

    Raises:
        ValueError: no JSON, a key given twice, NaN or infinity, numbers of thousands of digits, half
            characters, or brackets in brackets without end.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_float)
        if "\\ud" in text.lower():  # the only way to half a character
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("brackets in brackets without end") from None
    except UnicodeEncodeError:
        raise ValueError("half a character (a lone surrogate)") from None
    return found


def read_json(path: Path, most: int) -> Any:
    """The JSON in a file as `parse_json` reads it; ValueError also for a file too large or not UTF-8."""
    return parse_json(read_bounded(path, most).decode("utf-8-sig"))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)[:80]!r} twice in one object")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name}, which is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]}, which is too large")
    return value
