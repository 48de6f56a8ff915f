"""Bytes on a local disk: atomic writes, checksums, sealed JSON, and errors that say what to do.

A file of a store appears under its name only when it is whole: it is written beside its place,
flushed to the disk, and renamed. A *sealed* JSON file carries the CRC-32C of its own canonical
text, so that any changed byte in it is found.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from engine.errors import StoreError
from store.strict import REPAIR, parse_object

TEMPORARY = ".tmp-"
SEAL = "crc32c"
_COUNTER = itertools.count()
_WHOLE: set[bytes] = set()
"""SHA-256 of texts whose seals were found to hold; a manifest is read hundreds of times in a process."""

Bytes = bytes | np.ndarray[Any, Any]


def crc32c(*parts: Bytes, start: int = 0) -> int:
    """CRC-32C (Castagnoli) of the parts joined together, going on from `start`."""
    value = start
    for part in parts:
        # The C extension takes bytes and arrays, not memoryviews.
        value = google_crc32c.extend(value, np.frombuffer(part, np.uint8) if len(part) else b"")
    return value


def plain(value: Any) -> Any:
    """`value` as JSON keeps it: numpy scalars, paths and tuples unwrapped, NaN and inf as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return [plain(item) for item in sorted(value)]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    exact = value is None or isinstance(value, bool | int | str)
    return value if exact or (isinstance(value, float) and math.isfinite(value)) else str(value)


def canonical(value: Mapping[str, Any]) -> bytes:
    """The one text of a JSON object: sorted keys, one-space indent, UTF-8, newline at the end."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def seal(value: Mapping[str, Any]) -> bytes:
    """Canonical text of `value` with its own CRC-32C under the key "crc32c"."""
    body = {key: item for key, item in plain(value).items() if key != SEAL}
    return canonical(body | {SEAL: f"{crc32c(canonical(body)):08x}"})


def unseal(data: bytes, name: str, next_step: str = REPAIR) -> dict[str, Any]:
    """The object in a sealed file, without its seal.

    Raises:
        StoreError: the text is not exactly what `seal` wrote.
    """
    digest = hashlib.sha256(data).digest()
    try:
        value = parse_object(data, name)
        intact = digest in _WHOLE or seal(value) == data
    except (StoreError, ValueError, RecursionError):
        value, intact = {}, False
    if not intact:
        raise StoreError(
            f"{name} is damaged: its text does not match its own checksum.",
            expected="the bytes that were written",
            given=f"{len(data)} bytes that differ from them",
            next_step=next_step,
        )
    _WHOLE.add(digest)
    return {key: item for key, item in value.items() if key != SEAL}


@contextlib.contextmanager
def storage_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turns the system's disk errors into a `StoreError` that names the file and the next step."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what, expected = f"The disk is full: could not {doing} {path}.", "room for one more unit"
            step = "Free some space (or move the folder to a larger disk) and run the same command again: "
            step += "it goes on after the last whole unit."
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            what, expected = (
                f"The folder is read-only: could not {doing} {path}.",
                "a folder you may write to",
            )
            step = "Choose another folder with --store, or change the folder's permissions."
        else:
            what, expected = f"Could not {doing} {path}.", "a local folder"
            step = "Check that the path is a folder on a working disk."
        raise StoreError(what, expected=expected, given=reason, next_step=step) from error


def entries_below(folder: Path) -> list[Path]:
    """Everything below a folder, folders too, sorted; while others write and remove there.

    `Path.rglob` fails when a folder goes while it is being walked.

    Raises:
        StoreError: a folder that is there cannot be read.
    """

    def failed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    with storage_errors(folder, "read"):
        walked = os.walk(folder, onerror=failed)
        return sorted(Path(inside, name) for inside, folders, files in walked for name in folders + files)


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries to the disk, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _view(data: Bytes) -> memoryview:
    return np.frombuffer(data, np.uint8).data if len(data) else memoryview(b"")


def write_all(handle: int, data: Bytes) -> None:
    """Writes every byte to an open file."""
    view = _view(data)
    while len(view):
        view = view[os.write(handle, view) :]


def sha256(*parts: Bytes) -> str:
    """Hex SHA-256 of the parts joined together."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_view(part))
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a local file, read in pieces."""
    with storage_errors(path, "read"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, parts: Iterable[Bytes], *, durable: bool = True) -> tuple[int, str]:
    """Writes a whole file or nothing: temporary name, flush, rename.

    Args:
        path: the file; its folder is created when missing.
        parts: the contents, in order; each is written before the next is asked for.
        durable: flush the file and its folder to the disk before returning.

    Returns:
        (size in bytes, hex SHA-256) of the file.

    Raises:
        StoreError: disk full, read-only, or not a local folder. The old file, if any, is untouched.
    """
    temporary = path.with_name(
        f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{next(_COUNTER)}-{path.name}"
    )
    size, digest = 0, hashlib.sha256()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            try:
                for part in parts:
                    write_all(handle, part)
                    digest.update(_view(part))
                    size += len(part)
                if durable:
                    os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            sync_folder(path.parent)
    return size, digest.hexdigest()


def remove_file(path: Path) -> None:
    """Deletes a file; fine when it is already gone."""
    with storage_errors(path, "delete"), contextlib.suppress(FileNotFoundError):
        path.unlink()
