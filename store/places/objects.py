"""A store under a prefix of an object store: s3://, gs://, az://, through obstore.

Objects are created where there are none, which the service decides (If-None-Match), and never written over:
what two writers disagree about is refused. Only the manifest and saved maps are replaced, the manifest in the
place of the very one that was read. What is read of a finished store is kept in memory
(`store.places.cache`) by the manifest that was read: another manifest, other pieces.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.files import Bytes, sha256
from store.places.cache import PIECES, ROOM
from store.places.client import object_errors, open_client, version_of
from store.places.lease import Lease
from store.places.protocol import Array, R, Span, Stamp, T, visible
from store.strict import MOST_BYTES, REPAIR

AT_ONCE = 24
"""Requests that wait at the same time."""
LARGEST = 5 << 30
"""Bytes of an object that is put at once, as services allow."""
BRIEFLY = 0.25
"""Seconds that a listing of what changes (runs, maps, the manifest) is believed."""
CHANGING = ("manifest.json", "runs", "maps")
MANIFEST = "manifest.json"


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, thread_name_prefix="patchbay-object")


class _Shared:
    """What all sources of one URL in this process have in common."""

    def __init__(self, url: str) -> None:
        self.client = open_client(url)
        self.lock = threading.RLock()
        self.settled: dict[str, dict[str, dict[str, Stamp]]] = {}  # manifest's tag -> folder -> path -> stamp
        self.brief: dict[str, tuple[float, dict[str, Stamp]]] = {}


@cache
def _shared(url: str) -> _Shared:
    return _Shared(url)


class ObjectSource:
    """The files of a store at a URL (`store.places.protocol.Source`).

    Args:
        fresh: keep nothing of what is read, and take nothing that was kept.
    """

    def __init__(self, url: str, *, fresh: bool = False) -> None:
        self.name = url.rstrip("/")
        self.local: Path | None = None
        self._all, self._fresh = _shared(self.name), fresh
        self._client = self._all.client
        self._listed: dict[str, dict[str, Stamp]] = {}
        self._tag, self._generation = "", ""
        self._version: dict[str, str] = {}  # of the manifest that was read
        self._made: dict[str, str] = {}
        self._lease: Lease | None = None

    def read(self, path: str) -> bytes | None:
        key = self._key(path)
        found = None if key is None else PIECES.get(key)
        if found is not None:
            return bytes(found)
        data = self._read(path)
        if data is not None and key is not None:
            PIECES.put(key, data)
        return data

    def _read(self, path: str) -> bytes | None:
        with object_errors(self.name, f"read {path}"):
            try:
                found = self._client.get(path)
                if path.endswith(".json") and found.meta["size"] > MOST_BYTES:
                    raise StoreError(
                        f"{path} at {self.name} is too large for what it should be.",
                        expected=f"at most {MOST_BYTES} bytes",
                        given=found.meta["size"],
                        next_step=REPAIR,
                    )
                tag, version, data = _tag_of(found.meta), version_of(found.meta), bytes(found.bytes())
            except FileNotFoundError:
                tag, version, data = "", {}, None
        if path == MANIFEST:
            self._tag, self._version = tag, version
        return data

    def settled(self) -> None:
        """What belongs to the manifest that was read last stays: it is listed and read once."""
        if not self._fresh and self._tag:
            with self._all.lock:
                self._generation = self._tag
                for old in [tag for tag in self._all.settled if tag != self._tag]:
                    del self._all.settled[old]
                self._listed = self._all.settled.setdefault(self._tag, {})

    def _key(self, path: str, start: int = 0, length: int = -1) -> tuple[str, str, str, int, int] | None:
        """What a piece is kept under; None where it isn't."""
        if not self._generation or path.split("/", 1)[0] in CHANGING:
            return None
        return self.name, self._generation, path, start, length

    def stamp(self, path: str) -> Stamp | None:
        folder = path.split("/", 1)[0]
        if folder not in CHANGING and "/" in path:
            if folder not in self._listed:
                with self._all.lock:
                    if folder not in self._listed:
                        self._listed[folder] = self._list(folder)
            found = self._listed[folder].get(path)
            if found is not None:
                return found
        elif path == MANIFEST:
            return self._brief(path, lambda: self._heads(path)).get(path)
        return self._heads(path).get(path)

    def _heads(self, path: str) -> dict[str, Stamp]:
        """The stamp of one object, by its path; nothing where there is none."""
        with object_errors(self.name, f"look for {path}"):
            try:
                return {path: _stamp_of(self._client.head(path))}
            except FileNotFoundError:
                return {}

    def spans(self, spans: Sequence[Span]) -> Iterator[Array]:
        keys = [self._key(*span) for span in spans]
        found: list[Any] = [None if key is None else PIECES.get(key) for key in keys]
        wanted: dict[str, list[int]] = {}
        for number, (span, piece) in enumerate(zip(spans, found, strict=True)):
            if piece is None:
                wanted.setdefault(span[0], []).append(number)
        groups = list(wanted.items())
        for (_, numbers), pieces in zip(
            groups,
            self.map(lambda group: self._ranges(group[0], [spans[i] for i in group[1]]), groups),
            strict=True,
        ):
            for number, piece in zip(numbers, pieces, strict=True):
                found[number], key = piece, keys[number]
                if key is not None and len(piece) == key[-1]:
                    PIECES.put(key, piece)
        yield from (np.frombuffer(piece, np.uint8) for piece in found)

    def _ranges(self, path: str, spans: Sequence[Span]) -> list[bytes]:
        starts, lengths = [start for _, start, _ in spans], [length for _, _, length in spans]
        with object_errors(self.name, f"read a part of {path}"):
            try:
                return [
                    bytes(piece) for piece in self._client.get_ranges(path, starts=starts, lengths=lengths)
                ]
            except FileNotFoundError:
                return [b""] * len(spans)

    def walk(self, path: str) -> list[str]:
        return visible(name[len(path) + 1 :] if path else name for name in self.stamps(path))

    def stamps(self, path: str) -> Mapping[str, Stamp]:
        """Every object below a folder by its path, with its stamp."""
        if path.split("/", 1)[0] in CHANGING:
            return self._brief(path, lambda: self._list(path))
        return self._list(path)

    def _brief(self, path: str, look: Callable[[], dict[str, Stamp]]) -> dict[str, Stamp]:
        """What was seen less than `BRIEFLY` ago by any source of this URL, or is seen now."""
        kept = self._all.brief.get(path)
        if kept is None or self._fresh or time.monotonic() - kept[0] > BRIEFLY:
            kept = self._all.brief[path] = time.monotonic(), look()
        return kept[1]

    def _list(self, path: str) -> dict[str, Stamp]:
        return {str(meta["path"]): _stamp_of(meta) for meta in self._metas(path)}

    def written(self, path: str) -> dict[str, float]:
        return {str(meta["path"]): meta["last_modified"].timestamp() for meta in self._metas(path)}

    def _metas(self, path: str) -> list[Mapping[str, Any]]:
        """What the service says of every object below a folder."""
        with object_errors(self.name, f"list {path or 'everything'}"):
            batches = self._client.list(path or None, chunk_size=1000)
            return [meta for batch in batches for meta in batch]

    def everything(self) -> list[str]:
        return sorted(self._list(""))

    def names(self) -> list[str]:
        with object_errors(self.name, "list what is there"):
            found = self._client.list_with_delimiter(None)
        folders = [str(prefix).strip("/") for prefix in found["common_prefixes"]]
        return sorted({*folders, *(str(meta["path"]) for meta in found["objects"])})

    def write(self, path: str, parts: Iterable[Bytes], *, durable: bool = True) -> tuple[int, str]:
        data = b"".join(bytes(part) for part in parts)
        digest = sha256(data)
        if self._made.get(path) != digest:
            self._create(path, data)
            if len(data) < 4096:  # metadata of groups, which many arrays share
                self._made[path] = digest
        return len(data), digest

    def _create(self, path: str, data: bytes) -> None:
        from obstore.exceptions import AlreadyExistsError

        try:
            with object_errors(self.name, f"write {path}"):
                try:
                    self._put(path, data, "create")
                    return
                except AlreadyExistsError:
                    pass
            if self._read(path) == data:  # by an answer that got lost, or for another array
                return
        finally:
            self._forget(path)
        raise StoreError(
            f"{path} at {self.name} was written by somebody else meanwhile.",
            expected="no such object, or the same bytes",
            given=f"other bytes than these {len(data)}",
            next_step="Let one writer go on; when none is left, run the same command again.",
        )

    def replace(self, path: str, data: bytes, *, durable: bool = True) -> None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = "overwrite"
        if path == MANIFEST:
            if not self._tag:
                self._read(path)
            mode = self._version or "create"
        try:
            with object_errors(self.name, f"write {path}"):
                try:
                    made = self._put(path, data, mode)
                except (AlreadyExistsError, PreconditionError):
                    made = {}
            if not made and self._read(path) != data:
                raise StoreError(
                    f"{path} at {self.name} was replaced by somebody else meanwhile.",
                    expected="the one that was read before",
                    given="another one",
                    next_step="Let one writer go on; when none is left, run the same command again.",
                )
            if path == MANIFEST and made:
                self._tag, self._version = _tag_of(made), made
        finally:
            self._forget(path)

    def _put(self, path: str, data: bytes, mode: Any) -> dict[str, str]:
        if len(data) > LARGEST:
            raise StoreError(
                f"{path} is too large for an object that is put at once.",
                expected=f"at most {LARGEST} bytes",
                given=len(data),
                next_step="Take fewer prompts to a unit (capture.unit_prompts), or write to a local folder.",
            )
        if self._lease is not None:
            self._lease.check()
        return version_of(self._client.put(path, data, mode=mode, use_multipart=False))

    def remove(self, path: str) -> None:
        if self._lease is not None:
            self._lease.check()
        with object_errors(self.name, f"delete {path}"):
            try:
                self._client.delete(path)
            except FileNotFoundError:
                pass
            finally:
                self._forget(path)

    def _forget(self, path: str) -> None:
        """What was known of an object before it was written or deleted."""
        self._made.pop(path, None)
        self._listed.get(path.split("/", 1)[0], {}).pop(path, None)
        for seen in [seen for seen in self._all.brief if path.startswith(seen)]:
            self._all.brief.pop(seen, None)

    def forget(self, paths: Iterable[str]) -> None:
        gone = set(paths)
        PIECES.drop(lambda key: key[0] == self.name and key[2] in gone)
        for path in gone:
            self._forget(path)

    def lock(self) -> Lease:
        self._lease = Lease(self._client, self.name, open_client(self.name, brief=True))
        return self._lease

    def room(self, size: int) -> AbstractContextManager[None]:
        return ROOM.of(size)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        if len(items) < 2 or threading.current_thread().name.startswith("patchbay-object"):
            return map(function, items)
        return _pool().map(function, items)


def _tag_of(meta: Mapping[str, Any]) -> str:
    return str(meta.get("e_tag") or meta.get("version") or "")


def _stamp_of(meta: Mapping[str, Any]) -> Stamp:
    """Size, and 52 bits of a hash of the tag: a float holds them."""
    told = f"{_tag_of(meta)} {meta.get('last_modified')}"
    return int(meta["size"]), int(hashlib.sha256(told.encode()).hexdigest()[:13], 16)
