"""JSON as a store's writer makes it, and nothing else: what other JSON could do to a reader is refused.

Python's parser takes several values for one key, NaN, integers of thousands of digits and halves of
surrogate pairs; each of them ends later in another exception or in a number that nobody wrote.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

from engine.errors import StoreError

MOST_BYTES = 1 << 28
MOST_DEPTH = 64
LEAST, MOST = -(2**63), 2**64 - 1
REPAIR = (
    "Restore it from a copy, or run precompute.py again on this store: it computes again what is damaged."
)


class _NotOursError(ValueError):
    """Valid JSON that no writer of stores makes."""


def parse_object(data: bytes, name: str, next_step: str = REPAIR) -> dict[str, Any]:
    """The JSON object in `data`.

    Args:
        name: the file, for the message.

    Raises:
        StoreError: not one object in UTF-8; a key twice; a number that is not finite or has more than 64
            bits; half a surrogate pair; nesting deeper than 64; more than 256 MiB.
    """
    try:
        if len(data) > MOST_BYTES:
            raise _NotOursError(f"{len(data)} bytes")
        value = json.loads(
            data.decode(),
            object_pairs_hook=_once,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
        if not isinstance(value, dict):
            raise _NotOursError(f"a {type(value).__name__} instead of an object")
        _check_tree(value)
    except (ValueError, RecursionError, MemoryError) as error:
        given = "nesting without end" if isinstance(error, RecursionError) else error or "no memory for it"
        raise StoreError(
            f"{name} is not JSON as a store keeps it.",
            expected="one object in UTF-8 with each key once, finite numbers of at most 64 bits, "
            f"at most {MOST_DEPTH} levels deep",
            given=str(given)[:200].encode(errors="replace").decode(),
            next_step=next_step,
        ) from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _NotOursError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} more than once")
    return found


def _integer(text: str) -> int:
    if len(text) > 20 or not LEAST <= int(text) <= MOST:
        raise _NotOursError(f"an integer of {len(text.lstrip('-'))} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text) if len(text) < 400 else math.inf
    if not math.isfinite(value):
        raise _NotOursError(f"the number {text[:30]}")
    return value


def _constant(text: str) -> NoReturn:
    raise _NotOursError(text)


def _check_tree(value: dict[str, Any]) -> None:
    """Depth and text of a parsed object, without recursion."""
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for item in level:
            for text in _texts(item):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    raise _NotOursError(f"half a surrogate pair in {text[:30]!r}") from error
            below += item.values() if isinstance(item, dict) else item
        level = [item for item in below if isinstance(item, dict | list)]
        if not level:
            return
    raise _NotOursError(f"more than {MOST_DEPTH} levels")


def _texts(item: dict[str, Any] | list[Any]) -> Iterator[str]:
    values = [*item, *item.values()] if isinstance(item, dict) else item
    return (text for text in values if isinstance(text, str) and not text.isascii())
