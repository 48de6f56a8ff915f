"""What the terminal shows of a precompute: one stage after another, each with its steps and the time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.live import terminal

__all__ = ["Progress", "Stage"]

BEAT_SECONDS = 1.0
"""So often a running stage is drawn again, whether or not a step of it ended."""
READING_SECONDS = 5.0


@dataclass
class Stage:
    """A running stage; call it after each step."""

    bar: Any = None

    def __call__(self, steps: int = 1) -> None:
        if self.bar is not None:
            self.bar.update(steps)

    def note(self, text: str) -> None:
        """What it is at."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)


@dataclass
class Progress:
    """Bars on a terminal, lines in a log, nothing where it is quiet."""

    quiet: bool = False

    def say(self, text: str) -> None:
        """A line of its own."""
        terminal.say(text, self.quiet)

    def again(self, entries: Sequence[str]) -> None:
        """Says which ledger entries are damaged, and so computed again."""
        if entries:
            shown = ", ".join(entry.removeprefix("ledger/").removesuffix(".json") for entry in entries[:8])
            more = f" and {len(entries) - 8} more" if len(entries) > 8 else ""
            self.say(f"damaged or missing, so computed again: {shown}{more}")

    def reading(self) -> Callable[[int, int], None]:
        """Shows how far the files of a store that is there have been read, where that takes a while."""
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > READING_SECONDS:
                self.say(f"reading what is there: {done} of {total} parts")
                last = time.monotonic()

        return show

    @contextmanager
    def stage(self, what: str, total: int, unit: str = "step", done: int = 0) -> Iterator[Stage]:
        """A stage of `total` steps, `done` of them by an earlier run; silent without any left to do."""
        if self.quiet or done >= total:
            yield Stage()
            return
        bar, over = terminal.bar(what, total, unit, done), threading.Event()
        beat = threading.Thread(target=_beat, args=(bar, over), daemon=True)
        beat.start()
        try:
            yield Stage(bar)
        finally:
            over.set()
            beat.join()
            bar.close()


def _beat(bar: Any, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        bar.refresh()
