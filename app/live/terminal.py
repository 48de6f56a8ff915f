"""Progress for whoever waits at a terminal, or reads a log later."""

from __future__ import annotations

import logging
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

__all__ = ["Lines", "Share", "bar", "clock", "say"]

log = logging.getLogger("patchbay.said")
QUIET_SECONDS = 30.0
"""At least so long between two lines of progress in a log that is no terminal."""
FORMAT = "{desc}: {percentage:3.0f} %|{bar}| {elapsed}{postfix}"


LINE_SECONDS = 10.0
"""The same for a stage of a precompute, which says so even where no step of it ended meanwhile."""


def bar(what: str, total: int, unit: str, done: int = 0) -> Any:
    """A stage's progress on stderr: a tqdm bar on a terminal, a line now and then in a log."""
    if sys.stderr.isatty():
        return tqdm(desc=what, total=total, initial=done, unit=unit, smoothing=0.1)
    return Lines(what, total, unit, done)


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss"""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Lines:
    """What of a tqdm bar is used here, as lines of a log: one at the start, one at the end, and between.

    Args:
        total, done: steps in all, and those of an earlier run.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0) -> None:
        self.what, self.total, self.unit, self.n = what, total, unit, done
        self._initial, self._begun, self._note = done, time.monotonic(), ""
        self._lock = threading.Lock()
        self._print("")
        self._told = self._begun

    def update(self, steps: int = 1) -> None:
        """Some steps more are done."""
        self.n += steps
        self.refresh()

    def set_postfix_str(self, text: str) -> None:
        """What stands behind the numbers from now on."""
        self._note = text

    def refresh(self) -> None:
        """A line, if the last one is some time ago."""
        with self._lock:
            now = time.monotonic()
            if now - self._told >= LINE_SECONDS and self.n < self.total:
                self._told = now
                self._print(f", {clock(now - self._begun)} gone, {self._left(now)}")

    def close(self) -> None:
        """The last line."""
        self._print(f" in {clock(time.monotonic() - self._begun)}")

    def _left(self, now: float) -> str:
        done = self.n - self._initial
        if done <= 0:
            return "time left not known yet"
        return f"about {clock((now - self._begun) / done * (self.total - self.n))} left"

    def _print(self, told: str) -> None:
        note = f" ({self._note})" if self._note else ""
        text = f"{self.what}: {self.n}/{self.total} {self.unit}s{told}{note}"
        log.info(text)
        print(text, file=sys.stderr, flush=True)


def say(text: str, quiet: bool) -> None:
    """A line on stdout, above whatever bar is drawn, and in the log file where there is one."""
    log.info(text)
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
        self.close()

    def close(self) -> None:
        """Takes the bar away."""
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
