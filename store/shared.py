"""Arrays made of parts that are kept once, whoever refers to them: weights that models have in common.

A part is an ordinary array `shared/<key>`, its key a hash of its dtype, shape and bytes. Where one is wanted,

    weights/<model>/<piece>/zarr.json       a group with the attributes parts, dims, shape (and whole)

names the parts: one for each entry of the first axis (a block), or one for all of it (`whole`). A part with
the attribute `keys` = K is a factor: head i's matrix is (part K)[group of i]ᵀ @ part[i]. That keeps key-side
singular vectors of a head kernel, which lie in the span of its keys, in d_h² instead of d·d_h numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import StoreError
from store.arrays import read_metadata
from store.bfloat16 import bits_of
from store.layout import METADATA
from store.ledger import FileRecord
from store.schema import PartsAttrs, check
from store.sources import Source
from store.strict import REPAIR, parse_object

if TYPE_CHECKING:
    from store.writer import StoreWriter

__all__ = ["ENTRY_BYTES", "SHARED", "Part", "parts_of", "read_parts", "times_keys", "write_parts"]

SHARED = "shared"
ENTRY_BYTES = 1 << 16
"""Entries smaller than this are not worth files of their own."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Part:
    """Values to keep once.

    Attributes:
        values: one entry. bfloat16: keep it as bfloat16 bits, exactly.
        keys: key of the part that it is a factor of.
    """

    values: Array
    bfloat16: bool = False
    keys: str | None = None

    @property
    def key(self) -> str:
        """What it is found under: 160 bits of a SHA-256."""
        values = np.ascontiguousarray(bits_of(self.values) if self.bfloat16 else self.values)
        found = hashlib.sha256(f"{values.dtype.str} {values.shape} {self.bfloat16} {self.keys}\0".encode())
        found.update(values.data)
        return found.hexdigest()[:40]


def write_parts(
    writer: StoreWriter,
    name: str,
    parts: Iterable[Part | str],
    shape: Sequence[int],
    dims: Sequence[str],
    attrs: Mapping[str, Any],
    *,
    whole: bool = False,
) -> list[str]:
    """Writes an array as parts, each only where the store doesn't have it yet; returns their keys.

    Args:
        parts: values, or keys of parts that are there. shape, dims: of the array as it reads.
    """
    keys = []
    for part in parts:
        key = part if isinstance(part, str) else part.key
        if isinstance(part, Part) and not writer.has_array(f"{SHARED}/{key}"):
            own = {} if part.keys is None else {"keys": part.keys}
            inside = tuple(dims) if whole else tuple(dims[1:])
            writer.write_array(f"{SHARED}/{key}", part.values, inside, own, bfloat16=part.bfloat16)
        keys.append(key)
    facts = {"parts": keys, "dims": list(dims), "shape": list(shape)} | ({"whole": True} if whole else {})
    writer.write_group(name, {**attrs, **facts})
    return keys


def parts_of(source: Source, name: str, record: FileRecord | None) -> dict[str, Any] | None:
    """Attributes of an array that is made of parts; None for another.

    Args:
        record: of its metadata in the ledger.

    Raises:
        StoreError: they are not as they were written.
    """
    if record is None:
        return None  # whoever reads it as a plain array is told
    found = parse_object(read_metadata(source, name, record), f"{source.name}/{name}/{METADATA}")
    attrs = found.get("attributes")
    if found.get("node_type") != "group" or not isinstance(attrs, dict):
        return None
    check(PartsAttrs, attrs, f"{source.name}/{name}/{METADATA}")
    return attrs


def read_parts(
    read: Callable[[str], Array],
    attrs_of: Callable[[str], Mapping[str, Any]],
    attrs: Mapping[str, Any],
    first: int | None,
    name: str,
) -> Array:
    """The whole array, or one entry of its first axis.

    Args:
        read, attrs_of: values and attributes of a part by its name in the store.
        name: the array, for messages.

    Raises:
        StoreError: parts that do not make the array's shape.
    """
    shape, whole = list(attrs["shape"]), bool(attrs.get("whole"))

    def part(key: str) -> Array:
        values, keys = read(f"{SHARED}/{key}"), attrs_of(f"{SHARED}/{key}").get("keys")
        if keys is not None:
            values = _of_keys(read(f"{SHARED}/{keys}") if isinstance(keys, str) else values, values, name)
        if list(values.shape) != (shape if whole else shape[1:]):
            raise _misfit(name, shape, f"part {key} of shape {values.shape}")
        return values

    if whole:
        values = part(attrs["parts"][0])
        return values if first is None else values[first]
    return np.stack([part(key) for key in attrs["parts"]]) if first is None else part(attrs["parts"][first])


def _of_keys(keys: Array, factor: Array, name: str) -> Array:
    """`times_keys` of arrays that fit each other."""
    fits = keys.ndim == factor.ndim == 3 and len(keys) and len(factor) % len(keys) == 0
    if not fits or len(factor) < len(keys) or keys.shape[1] != factor.shape[1]:
        raise _misfit(name, "a factor of its keys", f"factors {factor.shape} of keys {keys.shape}")
    return times_keys(keys, factor)


def _misfit(name: str, expected: object, given: str) -> StoreError:
    return StoreError(
        f"The parts of array {name} do not make it up.",
        expected=expected,
        given=given,
        next_step=REPAIR,
    )


def times_keys(keys: Array, factor: Array) -> Array:
    """keys (g, m, d) and factors (h, m, r) -> (h, d, r): keys[group]ᵀ factor of every head."""
    group = np.arange(len(factor)) // (len(factor) // len(keys))
    return np.matmul(factor.transpose(0, 2, 1), keys[group]).transpose(0, 2, 1)
