"""A store of a live study, trusted and opened as pages open it, and a selection of its pair."""

from __future__ import annotations

from pathlib import Path

from planted_store import CHECKS

from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, changed, defaults
from store.files import seal, unseal
from store.reader import Store


def trusted(store: Path) -> Path:
    """The store, with self-checks that hold."""
    manifest = unseal((store / "manifest.json").read_bytes(), "manifest")
    (store / "manifest.json").write_bytes(seal(manifest | {"self_checks": CHECKS}))
    return store


def opened_at(path: Path) -> Opened:
    """As a page has it."""
    found = Store(path)
    return Opened(str(path), found, read_facts(found))


def chosen(opened: Opened, **changes: object) -> Selection:
    """What a page shows first of base and tuned, with changes."""
    return changed(defaults(opened.facts), **({"a": "base", "b": "tuned"} | changes))
