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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from engine.errors import StoreError
from store.files import canonical
from store.shards import CODEC

FORMAT = "patchbay-store-1"
SITES = ("resid", "attn_out", "mlp_out")
COMPONENTS = (*SITES, "head_z")
ROWS_PER_CHUNK = 64
CHUNK_BYTES = 4 << 20  # of a static array: large enough to decode at full speed, small enough to page
BF16_NAN = 0x7FC0
MANIFEST = "manifest.json"
METADATA = "zarr.json"
DTYPES: dict[str, np.dtype[Any]] = {"bfloat16": np.dtype("uint16"), "float32": np.dtype("float32")}
INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
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

    def metadata(self) -> bytes:
        """Contents of the array's zarr.json."""
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
        return canonical(
            {
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
        )

    @classmethod
    def from_metadata(cls, name: str, value: Mapping[str, Any]) -> ArraySpec:
        """The inverse of `metadata`, from the parsed JSON."""
        sharding = value["codecs"][0]["configuration"]
        return cls(
            name=name,
            shape=tuple(value["shape"]),
            shard=tuple(value["chunk_grid"]["configuration"]["chunk_shape"]),
            chunk=tuple(sharding["chunk_shape"]),
            dtype=np.dtype(value["data_type"]),
            dims=tuple(value["dimension_names"]),
            attrs=value["attributes"],
            compress=any(codec["name"] == "blosc" for codec in sharding["codecs"]),
        )


def group_metadata() -> bytes:
    """Contents of a group's zarr.json."""
    return canonical({"zarr_format": 3, "node_type": "group", "attributes": {}})


def groups_above(name: str) -> list[str]:
    """Every group on the way from the root ("") to an array."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:end]) for end in range(len(parts) + 1)]


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
