"""The header of a GGUF file: its settings and the shapes of its tensors, without a weight or a vocabulary.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from engine.errors import ModelError

__all__ = ["GgufHeader", "read_gguf_header"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LONGEST = 1 << 26
"""Bytes of the longest believable string; a damaged length is far beyond it."""


class GgufHeader(NamedTuple):
    """What a GGUF file says of itself.

    Attributes:
        settings: single values and strings by key; arrays (vocabulary, merges) are left out.
        shapes: of each tensor by name, in the file's order of dimensions.
        kinds: how the tensors are packed, each way once, by ggml's numbers.
    """

    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    kinds: tuple[int, ...] = ()

    @property
    def architecture(self) -> str:
        """The name of the architecture in llama.cpp, "" where the file has none."""
        return str(self.settings.get("general.architecture", ""))

    @property
    def numbers(self) -> int:
        """How many weights the file holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_gguf_header(path: Path) -> GgufHeader:
    """Reads the header (ModelError: no file, another kind of file, another version, or a damaged one)."""
    if not path.is_file():
        raise ModelError(
            f"{path} is not a GGUF file.",
            expected="a file",
            given="a folder" if path.is_dir() else "nothing at that path",
            next_step="name the GGUF file itself; a folder in Hugging Face format is given as 'path'.",
        )
    found = path.stat()
    return _read(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, _size: int, _changed: int) -> GgufHeader:
    """The header of a file of this size and time: it holds the whole vocabulary, which takes a second."""
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
        if start != MAGIC:
            raise ModelError(
                f"{path} is not a GGUF file.",
                expected="a file that starts with the letters GGUF",
                given=f"one that starts with {start!r}",
                next_step="name a GGUF file, or give a folder in Hugging Face format as 'path'.",
            )
        try:
            return _header(file)
        except (ValueError, struct.error) as error:
            raise ModelError(
                f"The header of {path} can't be read.",
                expected=f"GGUF version {' or '.join(map(str, VERSIONS))}, little-endian, complete",
                given=str(error),
                next_step="get the file again.",
            ) from error


def _header(file: BinaryIO) -> GgufHeader:
    version, tensors, keys = _take(file, "IQQ")
    if version not in VERSIONS:
        raise ValueError(f"version {version}")
    settings = {}
    for _ in range(keys):
        key = _string(file).decode()
        value = _value(file, *_take(file, "I"))
        if value is not None:
            settings[key] = value
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: set[int] = set()
    for _ in range(tensors):
        name = _string(file).decode()
        (dimensions,) = _take(file, "I")
        if dimensions > 8:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shapes[name] = _take(file, f"{dimensions}Q")
        kinds.add(_take(file, "IQ")[0])  # and where
    return GgufHeader(settings, shapes, tuple(sorted(kinds)))


def _take(file: BinaryIO, kinds: str) -> tuple[Any, ...]:
    """Numbers of the given kinds (struct's letters); ValueError at the file's end."""
    size = struct.calcsize(f"<{kinds}")
    return struct.unpack(f"<{kinds}", _bytes(file, size))


def _bytes(file: BinaryIO, size: int) -> bytes:
    if size > LONGEST:
        raise ValueError(f"a piece of {size} bytes at byte {file.tell()}")
    found = file.read(size)
    if len(found) < size:
        raise ValueError(f"it ends at byte {file.tell()}")
    return found


def _string(file: BinaryIO) -> bytes:
    return _bytes(file, *_take(file, "Q"))


def _value(file: BinaryIO, kind: int) -> Any:
    """One setting; None for an array, which is passed over."""
    if kind == STRING:
        return _string(file).decode()
    if kind in SCALARS:
        return _take(file, SCALARS[kind])[0]
    if kind != ARRAY:
        raise ValueError(f"a value of the unknown kind {kind}")
    element, count = _take(file, "IQ")
    if element in SCALARS:
        _bytes(file, count * struct.calcsize(SCALARS[element]))
    elif element == STRING:
        for _ in range(count):
            _string(file)
    else:
        raise ValueError(f"an array of the unknown kind {element}")
    return None
