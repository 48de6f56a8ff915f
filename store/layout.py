"""What a store holds: array names, axes, dtypes, chunks and codecs, in one place.

A store is a Zarr v3 group. For every model and token position

    activations/<model>/<position>/sites    (site, state, row, feature)
    activations/<model>/<position>/head_z   (layer, row, head, head_feature)

A *site* is resid, attn_out or mlp_out. The residual stream is kept once: state s is what enters
block s and what leaves block s - 1, so a model with L blocks has states 0..L. attn_out and mlp_out
of block l lie at state l; where they have none (state L) the chunk is absent and reads as NaN.
One shard file holds all sites and states of one unit of prompts; an inner chunk is one site, one
state, the unit's rows (at most 64 where a prompt has many), all features. Units are whole shards,
so writers of different units never touch the same file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.storage import MemoryStore, StorePath

from engine.errors import StoreError
from store.files import canonical
from store.shards import CODEC
from store.strict import REPAIR, parse_object

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

FORMAT = "patchbay-store"
VERSION = 2
"""Of the schema: 1 had ledgers without content hashes (`store.migrate` adds them)."""
SITES = ("resid", "attn_out", "mlp_out")
COMPONENTS = (*SITES, "head_z")
ROWS_PER_CHUNK = 64
CHUNK_BYTES = 4 << 20  # of a static array: large enough to decode at full speed, small enough to page
BF16_NAN = 0x7FC0
MOST_ENTRIES = 1 << 40
MANIFEST = "manifest.json"
METADATA = "zarr.json"
DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("uint16"), "float32": np.dtype("float32")}
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
STATIC_FOLDERS = ("grams", "weights", "subspaces", "shared")
"""Of arrays that are written once."""
STATIC_DTYPES = INTEGERS | {"bool", "float16", "float32", "float64"}


def slug(name: str) -> str:
    """`name` as a folder name: letters, digits, '_', '.', '-' stay, anything else becomes '-'."""
    text = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")
    if not text:
        raise StoreError(
            f"The name {name!r} cannot be a folder name.",
            expected="at least one letter or digit",
            given=repr(name),
            next_step="Rename the model or position in the study file.",
        )
    return text


def activation_name(model: str, position: str, leaf: str) -> str:
    """Path of an activation array inside the store; leaf is "sites" or "head_z"."""
    return f"activations/{slug(model)}/{slug(position)}/{leaf}"


def gram_name(model: str, position: str, component: str) -> str:
    """Path of the Gram matrices of one component inside the store."""
    return f"grams/{slug(model)}/{slug(position)}/{component}"


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array: shape, chunks and codecs. `shard` is a whole multiple of `chunk`."""

    name: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    dims: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    compress: bool = True

    @property
    def is_bfloat16(self) -> bool:
        return self.dtype == np.uint16 and self.attrs.get("dtype") == "bfloat16"

    @property
    def fill(self) -> Any:
        """What an absent chunk reads as: NaN where the dtype has one, else 0."""
        if self.is_bfloat16:
            return BF16_NAN
        return math.nan if self.dtype.kind == "f" else self.dtype.type(0).item()

    @cached_property
    def grid(self) -> tuple[int, ...]:
        """Inner chunks per shard along each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    @property
    def chunks_per_shard(self) -> int:
        return math.prod(self.grid)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk before compression."""
        return math.prod(self.chunk) * self.dtype.itemsize

    def shard_path(self, shard: tuple[int, ...]) -> str:
        return f"{self.name}/c.{'.'.join(map(str, shard))}"

    def locate(self, chunk: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """(shard coordinates, number inside the shard in C order) of an inner chunk of the array."""
        number = 0
        for c, g in zip(chunk, self.grid, strict=True):
            number = number * g + c % g
        return tuple(c // g for c, g in zip(chunk, self.grid, strict=True)), number

    def describe_chunk(self, chunk: tuple[int, ...]) -> str:
        """An inner chunk in words, with the sites' and layers' own names."""
        words = []
        labels = {"site": self.attrs.get("sites"), "state": self.attrs.get("layers")}
        labels["layer"] = self.attrs.get("layers")
        for dim, index, width, size in zip(self.dims, chunk, self.chunk, self.shape, strict=True):
            names = labels.get(dim)
            if width == 1 and names is not None and index < len(names):
                words.append(f"{dim}={names[index]}")
            elif width == 1:
                words.append(f"{dim}={index}")
            else:
                words.append(f"{dim}={index * width}:{min((index + 1) * width, size)}")
        return f"chunk ({', '.join(words)})"

    def document(self) -> dict[str, Any]:
        """What the array's zarr.json says."""
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        if self.dtype.itemsize == 1:
            little = {"name": "bytes"}
        packed = {**CODEC, "typesize": self.dtype.itemsize, "blocksize": 0}
        inner = [little, {"name": "blosc", "configuration": packed}, {"name": "crc32c"}]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": list(self.chunk),
            "codecs": inner if self.compress else [inner[0], inner[2]],
            "index_codecs": index,
            "index_location": "end",
        }
        fill = "NaN" if isinstance(self.fill, float) else self.fill
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": fill,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": list(self.dims),
            "attributes": dict(self.attrs),
            "storage_transformers": [],
        }

    def metadata(self) -> bytes:
        """Contents of the array's zarr.json."""
        return canonical(self.document())

    def create(self) -> bytes:
        """Contents of the zarr.json of a new array, as zarr makes them.

        Raises:
            StoreError: they are not what a store keeps; another version of zarr may say more or less.
        """
        array = zarr.create_array(
            MemoryStore(),
            shape=self.shape,
            shards=self.shard,
            chunks=self.chunk,
            dtype=self.dtype,
            filters=(),
            compressors=self.document()["codecs"][0]["configuration"]["codecs"][1:],
            fill_value=self.fill,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=self.dims,
            attributes=dict(self.attrs),
        )
        data, wanted = canonical(array.metadata.to_dict()), self.document()
        if data != self.metadata():
            found = parse_object(data, METADATA)
            differ = sorted(key for key in found | wanted if found.get(key) != wanted.get(key))
            raise StoreError(
                f"zarr {zarr.__version__} describes the array {self.name} otherwise than a store does.",
                expected={key: wanted.get(key) for key in differ},
                given={key: found.get(key) for key in differ},
                next_step="Install the version of zarr that constraints.txt names.",
            )
        return data

    def open(self, store: ZarrStore) -> zarr.Array[Any]:
        """The array in a store of zarr's, by what its metadata must say rather than what lies there."""
        return zarr.Array.from_dict(StorePath(store, self.name), self.document())

    @classmethod
    def from_metadata(cls, name: str, data: bytes) -> ArraySpec:
        """The inverse of `metadata`.

        Raises:
            StoreError: this is not what `metadata` writes of any array that a store keeps.
        """
        value = parse_object(data, f"{name}/{METADATA}")
        try:
            sharding = value["codecs"][0]["configuration"]
            found = cls(
                name=name,
                shape=_sizes(value["shape"], 0),
                shard=_sizes(value["chunk_grid"]["configuration"]["chunk_shape"], 0),
                chunk=_sizes(sharding["chunk_shape"], 1),
                dtype=np.dtype(_kept(value["data_type"])),
                dims=tuple(value["dimension_names"]),
                attrs=value["attributes"],
                compress=any(codec["name"] == "blosc" for codec in sharding["codecs"]),
            )
            same = len(found.shape) == len(found.shard) == len(found.chunk) == len(found.dims)
            whole = same and all(s % c == 0 for s, c in zip(found.shard, found.chunk, strict=True))
            intact = whole and all(isinstance(dim, str) for dim in found.dims) and found.metadata() == data
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise _not_metadata(name, f"{type(error).__name__}: {error}") from error
        if not intact:
            raise _not_metadata(name, "axes that do not agree, or other codecs, keys or spelling")
        return found


def _sizes(value: object, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= 16:
        raise ValueError(f"{str(value)[:40]} is no list of sizes")
    if not all(type(size) is int and least <= size <= MOST_ENTRIES for size in value):
        raise ValueError(f"{str(value)[:80]} holds an impossible size")
    return tuple(value)


def _kept(dtype: object) -> str:
    if not isinstance(dtype, str) or dtype not in STATIC_DTYPES:
        raise ValueError(f"dtype {str(dtype)[:40]!r}")
    return dtype


def _not_metadata(name: str, given: str) -> StoreError:
    return StoreError(
        f"The metadata {name}/{METADATA} is of no array that a store keeps.",
        expected="a sharded Zarr v3 array as precompute.py writes it",
        given=given[:300],
        next_step=REPAIR,
    )


def group_metadata(attrs: Mapping[str, Any] | None = None) -> bytes:
    """Contents of a group's zarr.json."""
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": dict(attrs or {})})


def groups_above(name: str) -> list[str]:
    """Every group on the way from the root ("") to an array."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(len(parts) + 1)]


def activation_spec(
    model: str,
    position: str,
    leaf: str,
    *,
    kind: str,
    dtype: str,
    sites: Sequence[str],
    states: Sequence[int],
    blocks: Sequence[int],
    widths: tuple[int, int, int],
    prompts: tuple[int, int],
    unit_rows: int,
) -> ArraySpec:
    """The array "sites" or "head_z" (`leaf`) of one model and position.

    Args:
        sites, states, blocks: captured ones, along the axes.
        widths: of the stream, heads, width of one head.
        prompts: in all, and the number of units.
        unit_rows: rows that every unit reserves.
    """
    d, n_heads, head_dim = widths
    n_prompts, n_units = prompts
    rows = n_units * unit_rows if kind == "many" else n_prompts
    chunk_rows = max(1, min(ROWS_PER_CHUNK, unit_rows) if kind == "many" else unit_rows)
    attrs: dict[str, Any] = {
        "dtype": dtype,
        "model": model,
        "position": position,
        "kind": kind,
        "rows_per_unit": unit_rows,
    }
    if leaf == "sites":
        head: tuple[int, ...] = (len(sites), len(states))
        tail: tuple[int, ...] = (d,)
        dims: tuple[str, ...] = ("site", "state", "row", "feature")
        attrs |= {"sites": list(sites), "layers": list(states), "blocks": list(blocks)}
    else:
        head, tail = (len(blocks),), (n_heads, head_dim)
        dims = ("layer", "row", "head", "head_feature")
        attrs |= {"layers": list(blocks)}
    return ArraySpec(
        name=activation_name(model, position, leaf),
        shape=(*head, rows, *tail),
        shard=(*head, unit_rows, *tail),
        chunk=(*(1,) * len(head), chunk_rows, *tail),
        dtype=DTYPES[dtype],
        dims=dims,
        attrs=attrs,
    )


def static_spec(
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    dims: tuple[str, ...],
    attrs: Mapping[str, Any],
    *,
    compress: bool,
) -> ArraySpec:
    """An array written once: one shard file; inner chunks of up to 4 MiB, one entry of the first axis
    each where there are three axes or more (one layer is read at a time)."""
    chunk = [max(1, size) for size in shape]
    for axis in range(len(shape)):
        rest = math.prod(chunk[axis + 1 :]) * dtype.itemsize
        wanted = 1 if axis == 0 and len(shape) >= 3 else max(1, CHUNK_BYTES // rest)
        chunk[axis] = min(chunk[axis], wanted)
    shard = tuple(-(-max(1, size) // c) * c for size, c in zip(shape, chunk, strict=True))
    return ArraySpec(name, shape, shard, tuple(chunk), dtype, dims, dict(attrs), compress)
