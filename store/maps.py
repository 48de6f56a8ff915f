"""Fitted maps kept in the store they belong to, one safetensors file each, and files that travel.

    maps/<name>.safetensors           arrays; its metadata holds what the map is and where it comes from
    maps/<name>.json                  size, content hash, name and store, sealed
    maps/.kept/<name>.…               what pages keep between processes (decompositions, tables)

The text in the metadata (key "patchbay") is sealed JSON that lists every array with its checksum, so any
changed byte is found. Nothing is pickled; any safetensors library reads the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from engine.errors import StoreError
from store.files import crc32c, seal, sha256, unseal
from store.places.client import UnreachableError
from store.provenance import fingerprint_at
from store.schema import MapEntry, MapFacts, check
from store.sources import Source, open_source
from store.strict import parse_object

MAPS = "maps"
KEPT = "maps/.kept"
SUFFIX = ".safetensors"
FORMAT = "patchbay-map-1"
RECORD = ".json"
METADATA_KEY = "patchbay"
NEXT = "Take another copy, or fit and save the map again."
NAME = re.compile(r"[^\W_][\w.-]{0,79}", re.ASCII)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class SavedMap:
    """A map as it is kept.

    Attributes:
        description: what the map is, as JSON; with `arrays` enough to build it again.
        provenance: where it comes from and how it scored, as JSON. created: ISO time.
    """

    name: str
    created: str
    description: dict[str, Any]
    provenance: dict[str, Any]
    arrays: dict[str, Array] = field(repr=False, default_factory=dict)


def to_bytes(
    name: str, description: Mapping[str, Any], arrays: Mapping[str, Array], provenance: Mapping[str, Any]
) -> bytes:
    """A map as one safetensors file."""
    whole = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
    record = {
        "format": FORMAT,
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "map": description,
        "provenance": provenance,
        "arrays": {
            key: {"dtype": value.dtype.name, "shape": list(value.shape), "crc32c": _crc(value)}
            for key, value in whole.items()
        },
    }
    return bytes(save(whole, metadata={METADATA_KEY: seal(record).decode()}))


def from_bytes(data: bytes, name: str = "The file") -> SavedMap:
    """The map in a file, every array checked.

    Raises:
        StoreError: not a file that `to_bytes` wrote, or a damaged one.
    """
    record = _record(_header(data, name), name)
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise _damaged(name, f"{type(error).__name__}: {error}") from error
    listed = record["arrays"]
    if set(arrays) != set(listed):
        raise _damaged(name, f"arrays {sorted(arrays)}")
    for key, entry in listed.items():
        value = arrays[key]
        same = value.dtype.name == entry["dtype"] and list(value.shape) == entry["shape"]
        if not same or _crc(value) != entry["crc32c"]:
            raise _damaged(name, f"other bytes in array {key}")
    return _saved(record, arrays)


class MapLog:
    """The maps of the store at `path` (a folder or a URL).

    Args:
        kept: look after what pages keep for themselves instead; the same files in a hidden folder.
    """

    def __init__(self, path: str | Path, *, kept: bool = False) -> None:
        self.source: Source = open_source(path)
        self.folder = KEPT if kept else MAPS

    def save(
        self,
        name: str,
        description: Mapping[str, Any],
        arrays: Mapping[str, Array],
        provenance: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        """Keeps a map under a name, whole or not at all.

        Raises:
            StoreError: the name can't be a file's or is taken, the disk is full or read-only, or an object
                store does not answer.
        """
        path = self._path(name)
        if not overwrite and name in self.names():
            raise StoreError(
                f"There is a map named {name!r} already.",
                expected="a new name",
                given=repr(name),
                next_step="Choose another name, or delete the old map first.",
            )
        data = to_bytes(name, description, arrays, provenance)
        entry = {
            "name": name,
            "store": fingerprint_at(self.source),
            "size": len(data),
            "sha256": sha256(data),
            "head": sha256(data[: 8 + int.from_bytes(data[:8], "little")]),
        }
        self.source.replace(path, data)
        self.source.replace(self._path(name, RECORD), seal(entry))

    def names(self) -> list[str]:
        """Names of all maps, sorted."""
        found = [path for path in self.source.walk(self.folder) if "/" not in path]
        return sorted({p.removesuffix(s) for p in found for s in (SUFFIX, RECORD) if p.endswith(s)})

    def list(self) -> tuple[list[SavedMap], dict[str, str]]:
        """Maps without their arrays, newest first; and what is wrong with unreadable ones, by name."""
        maps, problems = [], {}
        for name in self.names():
            try:
                maps.append(self._named(name, _saved(_record(self._head(name), name), {})))
            except UnreachableError:
                raise
            except StoreError as error:
                problems[name] = str(error)
        return sorted(maps, key=lambda m: m.created, reverse=True), problems

    def open(self, name: str) -> SavedMap:
        """A map with its arrays.

        Raises:
            StoreError: there is no such map, or it is damaged.
        """
        return self._named(name, from_bytes(self.data(name), f"Map {name!r}"))

    def data(self, name: str) -> bytes:
        """The file of a map, as it is downloaded.

        Raises:
            StoreError: there is no such map, or it is damaged.
        """
        found, entry = self.source.read(self._path(name)), self._entry(name)
        if found is None or len(found) != entry.size or sha256(found) != entry.sha256:
            raise _damaged(f"Map {name!r}", "no file" if found is None else f"{len(found)} other bytes")
        return found

    def delete(self, name: str) -> None:
        """Removes a map; fine when it is already gone."""
        for suffix in (SUFFIX, RECORD):
            self.source.remove(self._path(name, suffix))

    def strays(self) -> Iterator[str]:
        """Files in the folder that belong to no map, by path inside it."""
        for path in self.source.walk(self.folder):
            if "/" in path or not path.endswith((SUFFIX, RECORD)):
                yield path

    def _entry(self, name: str) -> MapEntry:
        """What was recorded when the map was saved."""
        path = self._path(name, RECORD)
        data = self.source.read(path)
        if data is None and self.source.stamp(self._path(name)) is None:
            raise StoreError(
                f"There is no map named {name!r} in {self.source.name}.",
                expected=", ".join(self.names()) or "none is saved yet",
                given=repr(name),
                next_step="Choose one from the list, or save one first.",
            )
        again = f"Delete {self.source.name}/{self._path(name)} and save the map again, or load it as a file."
        if data is None:
            raise StoreError(
                f"Map {name!r} is damaged: nothing records that it was saved here.",
                expected=f"{path} beside it",
                given="no such file",
                next_step=again,
            )
        entry = check(MapEntry, unseal(data, f"{self.source.name}/{path}", again), path, again)
        here = fingerprint_at(self.source)
        if (entry.name, entry.store) != (name, here):
            raise StoreError(
                f"{self.source.name}/{path} is of another map.",
                expected=f"map {name!r} of the store {here[:12]}",
                given=f"map {entry.name!r} of the store {entry.store[:12]}",
                next_step=again,
            )
        return entry

    def _named(self, name: str, saved: SavedMap) -> SavedMap:
        if saved.name != name:
            raise _damaged(f"Map {name!r}", f"the map {saved.name!r}")
        return saved

    def _head(self, name: str) -> Mapping[str, Any]:
        """The header of a map's file; the arrays aren't read."""
        path, entry = self._path(name), self._entry(name)
        stamp = self.source.stamp(path)
        size = 0 if stamp is None else stamp[0]
        first = next(iter(self.source.spans([(path, 0, 8)]))).tobytes() if size >= 8 else b""
        length = int.from_bytes(first, "little") if first else 0
        if not 0 < length <= size - 8 or size != entry.size:
            raise _damaged(f"Map {name!r}", f"{size} bytes")
        head = next(iter(self.source.spans([(path, 0, 8 + length)]))).tobytes()
        if sha256(head) != entry.head:
            raise _damaged(f"Map {name!r}", "another header")
        return _header(head, f"Map {name!r}")

    def _path(self, name: str, suffix: str = SUFFIX) -> str:
        if not NAME.fullmatch(name):
            raise StoreError(
                "This cannot be the name of a map.",
                expected="up to 80 letters, digits, '_', '.' and '-', starting with a letter or digit",
                given=repr(name),
                next_step="Choose another name.",
            )
        return f"{self.folder}/{name}{suffix}"


def _crc(value: Array) -> str:
    return f"{crc32c(value.tobytes()):08x}"


def _header(data: bytes, name: str) -> Mapping[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= len(data) - 8:
        raise _damaged(name, f"{len(data)} other bytes")
    try:
        return parse_object(data[8 : 8 + length], name)
    except StoreError as error:
        raise _damaged(name, error.given) from error


def _record(header: Mapping[str, Any], name: str) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise _damaged(name, "a safetensors file without this metadata")
    record = unseal(text.encode(), name, NEXT)
    if record.get("format") != FORMAT:
        raise StoreError(
            f"{name} was saved in another format.",
            expected=FORMAT,
            given=str(record.get("format"))[:40],
            next_step="Fit and save the map again with this version.",
        )
    return check(MapFacts, record, name, NEXT).model_dump()


def _saved(record: Mapping[str, Any], arrays: dict[str, Array]) -> SavedMap:
    return SavedMap(record["name"], record["created"], record["map"], record["provenance"], arrays)


def _damaged(name: str, given: object) -> StoreError:
    return StoreError(
        f"{name} is not a saved map, or it is damaged.",
        expected="a .safetensors file as it was saved or downloaded here",
        given=given,
        next_step=NEXT,
    )
