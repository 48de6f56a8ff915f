"""A store whose files are changed so that every checksum still fits: what refuses it is what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from store.files import canonical, seal, sha256

Edit = Callable[[Any], Any]


class Forge:
    """A store at `root` whose files can be changed so that every checksum still fits."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, path: str) -> Any:
        return json.loads((self.root / path).read_bytes())

    def put(self, path: str, value: Any, *, sealed: bool = True) -> None:
        """Replaces a file; `value` as its bytes, or as JSON. Entries above it follow."""
        plain = value if isinstance(value, bytes) else seal(value) if sealed else canonical(value)
        (self.root / path).unlink(missing_ok=True)
        (self.root / path).write_bytes(plain)
        if path.startswith("ledger/"):
            manifest = self.load("manifest.json")
            manifest["ledger"][path.removeprefix("ledger/")] = sha256(plain)
            self.put("manifest.json", manifest)
        elif path.startswith(("activations", "grams", "weights", "shared", "tables")) or path == "zarr.json":
            for entry in sorted((self.root / "ledger").rglob("*.json")):
                found = json.loads(entry.read_bytes())
                listed = [file for file in found["files"] if file["path"] == path]
                for file in listed:
                    file |= {"size": len(plain), "sha256": sha256(plain)}
                if listed:
                    self.put(entry.relative_to(self.root).as_posix(), found)

    def edit(self, path: str, change: Edit, *, sealed: bool = True) -> None:
        value = self.load(path)
        changed = change(value)
        self.put(path, value if changed is None else changed, sealed=sealed)


def at(path: str, value: Any) -> Edit:
    """An edit that puts a value at a place such as "plan.models.base.d"; `Ellipsis` removes it."""
    *folders, last = path.split(".")

    def change(found: Any) -> None:
        for key in folders:
            found = found[int(key) if isinstance(found, list) else key]
        key: Any = int(last) if isinstance(found, list) else last
        if value is ...:
            del found[key]
        else:
            found[key] = value

    return change
