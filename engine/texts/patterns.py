"""Regular expressions of strangers: of bounded length, and given up when they take too long.

The syntax is that of Python's `re`. A pattern that backtracks without end is stopped by the engine of the
package `regex` after a time of the process's own computing, which all texts of one call share.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import regex

from engine.errors import AnalysisError

__all__ = ["LONGEST", "SECONDS", "compiled", "matches", "search", "usable"]

LONGEST = 1000
"""Characters of a pattern; the longest of Patchbay's own has 125."""
SECONDS = 2.0
"""Of computing, for all texts of one call; a thousand texts take milliseconds."""


@lru_cache(maxsize=512)
def compiled(pattern: str, ignore_case: bool = False) -> Any:
    """A pattern ready for use; ValueError says why it can't be one."""
    if len(pattern) > LONGEST:
        raise ValueError(f"{len(pattern):,} characters, more than {LONGEST:,}")
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (regex.error, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(str(error) or type(error).__name__) from None


def usable(pattern: str | None) -> str | None:
    """A pattern as a setting holds it; ValueError says why it is none."""
    try:
        compiled(pattern or "")
    except ValueError as error:
        raise ValueError(f"a regular expression ({error})") from None
    return pattern


def search(pattern: str, texts: Sequence[str], *, ignore_case: bool = False) -> list[tuple[int, int] | None]:
    """[start, end) of the first match in each text, or None.

    Raises:
        AnalysisError: the pattern is none, or takes longer than `SECONDS` on these texts.
    """
    found: list[tuple[int, int] | None] = []
    for left, text in _timed(pattern, texts):
        match = _guarded(pattern, lambda p, t=text, s=left: p.search(t, timeout=s), ignore_case)
        found.append(None if match is None else match.span())
    return found


def matches(pattern: str, text: str, *, ignore_case: bool = False) -> int:
    """How often a pattern matches in a text, matches not overlapping; AnalysisError as `search`."""
    return int(_guarded(pattern, lambda p: sum(1 for _ in p.finditer(text, timeout=SECONDS)), ignore_case))


def _timed(pattern: str, texts: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Every text with the seconds that are left for it."""
    until = time.process_time() + SECONDS
    for text in texts:
        left = until - time.process_time()
        if left <= 0:
            raise _slow(pattern)
        yield left, text


def _guarded(pattern: str, use: Any, ignore_case: bool) -> Any:
    try:
        return use(compiled(pattern, ignore_case))
    except TimeoutError:
        raise _slow(pattern) from None
    except ValueError as error:
        raise AnalysisError(
            "A pattern is not a regular expression.",
            expected=f"Python's syntax, at most {LONGEST:,} characters ({error})",
            given=repr(pattern[:200]),
            next_step="correct the pattern.",
        ) from None


def _slow(pattern: str) -> AnalysisError:
    return AnalysisError(
        "A pattern takes too long.",
        expected=f"at most {SECONDS:g} seconds of computing on all texts",
        given=repr(pattern[:200]),
        next_step="write it without repetitions inside repetitions, such as (a+)+.",
    )
