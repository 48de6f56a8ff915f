"""Tags of runs: words such as #figure2 in the notes on a run; a later #-figure2 takes one away.

A tag is kept, dated and signed as the note is; the tag `ARCHIVED` takes a run out of lists and reports.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from store.journal.notes import Note

__all__ = ["ARCHIVED", "tags_of"]

ARCHIVED = "archived"
_TAG = re.compile(r"(?<![^\s(,;])#(-?)([^\W_][\w-]*)")


def tags_of(notes: Iterable[Note]) -> dict[str, tuple[str, ...]]:
    """The tags of every run that has any, in the order in which they were given.

    Args:
        notes: oldest first. Those about no run tag nothing.
    """
    found: dict[str, dict[str, None]] = {}
    for note in notes:
        for away, tag in _TAG.findall(note.text) if note.run else ():
            tags = found.setdefault(note.run, {})
            if away:
                tags.pop(tag.lower(), None)
            else:
                tags.setdefault(tag.lower())
    return {run: tuple(tags) for run, tags in found.items() if tags}
