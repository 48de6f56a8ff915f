"""What the ledger of an open store lists, and arrays whose metadata is what ledger and plan say."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from store.arrays import ArrayReader, check_spec, damaged, read_metadata, read_spec
from store.layout import METADATA, ArraySpec, activation_name, group_metadata, groups_above
from store.ledger import LAYOUT_ENTRY, LEDGER, FileRecord, array_entry, read_entry, unit_entry
from store.provenance import COMPLETE
from store.schema import Plan, check
from store.sources import Source

Entry = Mapping[str, FileRecord]


class Committed:
    """The ledger of a store. Of a complete one it is what the manifest lists, each entry by its hash; of
    another it is what is there so far, and what is missing is looked for again next time."""

    def __init__(self, source: Source, manifest: Mapping[str, Any]) -> None:
        self.source, self.complete = source, manifest["state"] == COMPLETE
        self._store = str(manifest["fingerprint"])
        self._plan = check(Plan, manifest["plan"], f"the plan of {source.name}")
        self._listed: Mapping[str, str] = manifest.get("ledger", {}) if self.complete else {}
        self._entries: dict[str, Entry] = {}
        self._arrays: dict[str, ArrayReader] = {}
        self._sound: set[str] = set()
        self._lock = threading.Lock()
        if self.complete:
            source.settled()

    def names(self, folder: str) -> list[str]:
        """Names of entries below a folder of the ledger ("", "arrays/", "tables/"), without it, sorted."""
        if self.complete:
            return sorted(e.removeprefix(folder) for e in self._listed if e.startswith(folder))
        found = self.source.walk(f"{LEDGER}/{folder}".rstrip("/"))
        return [name for name in found if name.endswith(".json")]

    def entry(self, entry: str) -> Entry | None:
        """The files of an entry (its path) by path; None where there is none.

        Raises:
            StoreError: it is damaged, another one, or missing although the manifest lists it.
        """
        if entry not in self._entries:
            digest = self._listed.get(entry.removeprefix(f"{LEDGER}/"))
            if self.complete and digest is None:
                return None
            found = read_entry(self.source, entry, self._store, digest)
            if found is None:
                return None
            self._entries[entry] = found
        return self._entries[entry]

    def everything(self) -> list[Entry]:
        """Every entry of the ledger."""
        names = [f"{LEDGER}/{name}" for name in self.names("")]
        return [found for found in self.source.map(self.entry, names) if found is not None]

    def activations(self, model: str, position: str, leaf: str) -> ArrayReader:
        """An array of activations, which must be the one that the plan says."""
        with self._lock:
            name = activation_name(model, position, leaf)
            if name not in self._arrays:
                spec, wanted = self._spec(name, LAYOUT_ENTRY), self._plan.spec(model, position, leaf)
                if spec != wanted:
                    raise damaged(
                        f"{name} of {self.source.name}",
                        f"its metadata ({METADATA})",
                        f"shape {spec.shape}",
                        f"shape {wanted.shape} with the plan's names, dtype and chunks",
                    )
                axis = spec.dims.index("row")
                self._arrays[name] = ArrayReader(
                    self.source, spec, lambda shard: self.entry(unit_entry(model, shard[axis]))
                )
            return self._arrays[name]

    def array(self, name: str) -> ArrayReader:
        """An array that was written once, whose one shard must be able to hold it."""
        with self._lock:
            if name not in self._arrays:
                entry = array_entry(name)
                spec = self._spec(name, entry)
                shard = (self.entry(entry) or {}).get(spec.shard_path((0,) * len(spec.shape)))
                check_spec(self.source, spec, 0 if shard is None else shard.size)
                self._arrays[name] = ArrayReader(self.source, spec, lambda shard: self.entry(entry))
            return self._arrays[name]

    def _spec(self, name: str, entry: str) -> ArraySpec:
        """The metadata of an array; that of the groups above it, which other readers go by, is read too."""
        committed = self.entry(entry) or {}
        spec = read_spec(self.source, name, committed.get(f"{name}/{METADATA}"))
        for group in groups_above(name):
            record = committed.get(f"{group}/{METADATA}".lstrip("/"))
            if record is None or group in self._sound:
                continue
            if read_metadata(self.source, group, record) != group_metadata():
                raise damaged(
                    f"{group or 'all'} of {self.source.name}",
                    f"its metadata ({METADATA})",
                    "more than a group's",
                )
            self._sound.add(group)
        return spec


def check_gram(
    source: Source, spec: ArraySpec, place: tuple[str, str, str], layers: Sequence[int], n_prompts: int
) -> None:
    """Refuses Gram matrices of other layers or prompts, or of another place.

    Args:
        place: model, position and component that they are asked for by.
        layers: states or blocks that the model has.
    """
    own = [spec.attrs.get(key) for key in ("model", "position", "component")]
    along = spec.attrs.get("layers", list(range(spec.shape[0])))
    shape = (len(layers), *(spec.shape[1:2] * 2))
    if spec.shape != shape or list(along) != list(layers) or own != list(place) or shape[-1] > n_prompts:
        raise damaged(
            f"{spec.name} of {source.name}",
            f"its metadata ({METADATA})",
            f"shape {spec.shape}, layers {str(along)[:100]} of {own}",
            f"Grams of at most {n_prompts} prompts at {list(layers)} of {list(place)}",
        )
