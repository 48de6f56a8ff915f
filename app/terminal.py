"""Progress for whoever waits at a terminal, or reads a log later."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

__all__ = ["Share", "bar", "say"]

QUIET_SECONDS = 30.0
"""At least so long between two lines of progress in a log that is no terminal."""
FORMAT = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}{postfix}"


def bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """A tqdm bar that draws itself often on a terminal, and seldom in a log, where each is a line."""
    return tqdm(items, **({} if sys.stderr.isatty() else {"mininterval": QUIET_SECONDS}), **options)


def say(text: str, quiet: bool) -> None:
    """A line on stdout, above whatever bar is drawn."""
    if not quiet:
        tqdm.write(text, file=sys.stdout)


class Share:
    """The share of a job that is done, which never goes back; a job's report is called with what changed.

    On a terminal it is a bar with the message behind it, in a log a line each half minute at most.
    """

    def __init__(self, name: str, quiet: bool) -> None:
        self._name, self._quiet = name, quiet
        self._share, self._total, self._message = 0.0, 0, ""
        self._begun = self._told = time.monotonic()
        drawn = not quiet and sys.stderr.isatty()
        self._bar = tqdm(desc=name, total=100, bar_format=FORMAT, leave=False, disable=not drawn)

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def __call__(self, **changes: Any) -> None:
        self._total = changes.get("total") or self._total
        self._message = changes.get("message") or self._message
        if changes.get("done") is not None and self._total:
            self._share = max(self._share, min(changes["done"] / self._total, 1.0))
        if self._bar.disable:
            self._log()
        else:
            self._bar.n = 100 * self._share
            self._bar.set_postfix_str(self._message)

    def _log(self) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._told >= QUIET_SECONDS:
            self._told = now
            text = f"{self._name}: {self._share:.0%} after {now - self._begun:.0f} s. {self._message}"
            print(text.rstrip(), file=sys.stderr, flush=True)
