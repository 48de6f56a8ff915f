"""Opens a store and hands out slices. Needs nothing but the folder (or a URL that fsspec knows)."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.errors import StoreError
from store.arrays import REPAIR, ArrayReader, read_spec
from store.bfloat16 import widen
from store.files import crc32c
from store.layout import METADATA, activation_name, gram_name, slug
from store.ledger import LAYOUT_ENTRY, LEDGER, FileRecord, array_entry, read_entry, table_entry, unit_entry
from store.provenance import COMPLETE, read_manifest
from store.rows import rows_table_name, table_path
from store.sources import open_source

Array = np.ndarray[Any, Any]
Entry = Mapping[str, FileRecord]
STATES = {"resid": 0, "resid_pre": 0, "resid_post": 1}


class Store:
    """A store, open for reading.

    Args:
        path: a folder, or a URL ("s3://bucket/prefix"; needs fsspec).

    Attributes:
        manifest: provenance, self-checks, plan.

    Raises:
        StoreError: there is no store, it is damaged, or its format is unknown. Every method raises it too,
            naming array and chunk, when what it reads is missing, short or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.source = open_source(path)
        self.manifest = read_manifest(self.source)
        self._plan: dict[str, Any] = self.manifest["plan"]
        self._entries: dict[str, Entry] = {}
        self._arrays: dict[str, ArrayReader] = {}
        self._tables: dict[str, pl.DataFrame] = {}
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        """The study's fingerprint."""
        return str(self.manifest["fingerprint"])

    @property
    def complete(self) -> bool:
        """Whether every unit, array and table was written. What an unfinished store has can be read."""
        return bool(self.manifest["state"] == COMPLETE)

    @property
    def state(self) -> str:
        """ "complete", "building", or what else the writer said."""
        return str(self.manifest["state"])

    @property
    def models(self) -> list[str]:
        """Model names, in the study's order."""
        return list(self._plan["model_order"])

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return int(self._plan["n_prompts"])

    def model_info(self, model: str) -> dict[str, Any]:
        """Sizes of a model (d, n_layers, n_heads, head_dim) and what the manifest says about it."""
        self._check("model", model, self.models)
        extra = self.manifest.get("models") or {}
        found = extra.get(model) if isinstance(extra, dict) else None
        return {**(found or {}), **self._plan["models"][model]}

    def positions(self, model: str | None = None) -> list[str]:
        """Captured token positions."""
        del model
        return list(self._plan["position_order"])

    def position_kind(self, position: str) -> str:
        """ "one", "mean" or "many" rows per prompt."""
        self._check("position", position, self.positions())
        return str(self._plan["positions"][position]["kind"])

    def components(self, model: str | None = None) -> list[str]:
        """Captured components, of resid, attn_out, mlp_out, head_z."""
        del model
        return list(self._plan["components"])

    def layers(self, model: str) -> list[int]:
        """Captured blocks of a model."""
        self._check("model", model, self.models)
        return list(self._plan["models"][model]["layers"])

    def states(self, model: str) -> list[int]:
        """Captured residual states: s enters block s and leaves block s - 1."""
        self._check("model", model, self.models)
        return list(self._plan["models"][model]["states"])

    def committed(self, model: str) -> list[int]:
        """Units of a model that can be read."""
        return [u for u in range(self.n_units) if self._entry(unit_entry(model, u)) is not None]

    @property
    def n_units(self) -> int:
        """Units of commit per model."""
        return -(-self.n_prompts // int(self._plan["unit_prompts"]))

    def activations(
        self,
        model: str,
        component: str,
        layer: int,
        position: str = "last_content",
        *,
        rows: Sequence[int] | Array | slice | None = None,
        head: int | None = None,
        stored: bool = False,
    ) -> Array:
        """Activations of one component at one layer.

        Args:
            model, position: names.
            component: resid (layer is a state, 0..L), resid_pre, resid_post, attn_out, mlp_out, head_z.
            layer: block, or state for "resid".
            rows: only these rows (prompt numbers where a prompt has one row); default all.
            head: for head_z, one head.
            stored: the stored dtype (uint16 bits of bfloat16) instead of float32.

        Returns:
            (n, width) float32; prompts in order. A prompt with many rows has them one after another;
            `row_index` says where.
        """
        reader, lead, axis = self._place(model, component, layer, position)
        spec = reader.spec
        tail = [slice(None)] * (len(spec.shape) - axis - 1)
        if head is not None:
            if component != "head_z" or not 0 <= head < spec.shape[-2]:
                raise _unknown("head", head, f"0..{spec.shape[-2] - 1} of head_z")
            tail[0] = slice(head, head + 1)
        widened = spec.is_bfloat16 and not stored
        if rows is None and self.position_kind(position) != "many":
            every = reader.read((*lead, slice(None), *tail), widened=widened)
            return every.reshape(spec.shape[axis], -1)
        wanted, order = np.unique(
            self._array_rows(model, position, spec.shape[axis], rows), return_inverse=True
        )
        parts, found = [], []
        for start, stop in _whole_chunks(wanted, spec.chunk[axis], spec.shape[axis]):
            part = reader.read((*lead, slice(start, stop), *tail), widened=widened)
            parts.append(part.reshape(stop - start, -1))
            found.append(np.arange(start, stop))
        if not parts:
            width = spec.shape[-1] * (1 if head is not None or len(tail) == 1 else spec.shape[-2])
            return np.empty((0, width), np.float32 if widened else spec.dtype)
        block = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if len(block) == len(order) and bool((order == np.arange(len(order))).all()):
            return block
        return np.asarray(block[np.searchsorted(np.concatenate(found), wanted)[order]])

    def _place(
        self, model: str, component: str, layer: int, position: str
    ) -> tuple[ArrayReader, tuple[slice, ...], int]:
        """(array, slices before the row axis, row axis) of one component at one layer."""
        self._check("model", model, self.models)
        self._check("position", position, self.positions())
        known = self.components() + (["resid_pre", "resid_post"] if "resid" in self.components() else [])
        self._check("component", component, known)
        leaf = "head_z" if component == "head_z" else "sites"
        index = self._layer_index(model, component, layer)
        reader = self._array(activation_name(model, position, leaf), LAYOUT_ENTRY, model)
        if leaf == "head_z":
            return reader, (slice(index, index + 1),), 1
        site = reader.spec.attrs["sites"].index("resid" if component in STATES else component)
        return reader, (slice(site, site + 1), slice(index, index + 1)), 2

    def _layer_index(self, model: str, component: str, layer: int) -> int:
        """Index on the state axis (sites) or the layer axis (head_z)."""
        if component == "head_z":
            self._check("layer", layer, self.layers(model))
            return self.layers(model).index(layer)
        if component != "resid":
            self._check("layer", layer, self.layers(model))
        state = layer + STATES.get(component, 0)
        self._check("state", state, self.states(model))
        return self.states(model).index(state)

    def _array_rows(
        self, model: str, position: str, size: int, rows: Sequence[int] | Array | slice | None
    ) -> Array:
        """Rows of the Zarr array that were asked for."""
        if self.position_kind(position) == "many":
            index = self.row_index(model, position)
            counts = index["row_count"].to_numpy()
            starts = np.repeat(index["array_row"].to_numpy() - index["row_start"].to_numpy(), counts)
            every = starts + np.arange(len(starts))
        else:
            every = np.arange(size)
        if rows is None:
            return every
        picked = rows if isinstance(rows, slice) else np.asarray(rows)
        if isinstance(picked, np.ndarray) and not picked.size:
            picked = picked.astype(np.intp)
        try:
            return np.atleast_1d(every[picked])
        except IndexError as error:
            raise _unknown("row", str(error), f"0..{len(every) - 1}") from error

    def row_index(self, model: str, position: str) -> pl.DataFrame:
        """Rows of each prompt in what `activations` returns: prompt, row_start, row_count (and array_row,
        the first row in the Zarr array)."""
        if self.position_kind(position) == "many":
            return self.table(rows_table_name(model, position))
        numbers = pl.int_range(self.n_prompts, dtype=pl.Int64, eager=True)
        return pl.DataFrame({"prompt": numbers, "row_start": numbers}).with_columns(
            pl.col("prompt").cast(pl.Int32),
            pl.lit(1, pl.Int32).alias("row_count"),
            pl.col("row_start").alias("array_row"),
        )

    def gram(self, model: str, component: str, layer: int, position: str = "last_content") -> Array:
        """(n, n) float32 Gram matrix of one component at one layer (block, or state for "resid")."""
        base = "resid" if component in STATES else component
        reader = self._static(gram_name(model, position, base))
        layers = list(reader.spec.attrs.get("layers", range(reader.spec.shape[0])))
        wanted = layer + STATES.get(component, 0)
        self._check("layer", wanted, layers)
        index = layers.index(wanted)
        return reader.read((slice(index, index + 1), slice(None), slice(None)))[0]

    def grams(self, model: str, component: str, position: str = "last_content") -> Array:
        """(layers, n, n) float32 Gram matrices: every state for "resid", every captured block otherwise."""
        grams = self.array(gram_name(model, position, "resid" if component in STATES else component))
        if component in STATES and component != "resid":
            states = self.states(model)
            grams = grams[[states.index(block + STATES[component]) for block in self.layers(model)]]
        return grams

    def array(self, name: str, *, stored: bool = False, first: int | None = None) -> Array:
        """An array below grams/, weights/ or subspaces/, or entry `first` of its first axis; bfloat16 as
        float32 unless `stored`."""
        reader = self._static(name)
        shape = reader.spec.shape
        if first is not None and not 0 <= first < shape[0]:
            raise _unknown("entry", first, f"0..{shape[0] - 1} of {name}")
        lead = slice(None) if first is None else slice(first, first + 1)
        values = reader.read((lead, *(slice(None),) * (len(shape) - 1)))
        values = values if first is None else values[0]
        return widen(values) if reader.spec.is_bfloat16 and not stored else values

    def array_names(self) -> list[str]:
        """Every array: activations, Grams, weights."""
        layout = self._entry(LAYOUT_ENTRY) or {}
        names = {path.removesuffix(f"/{METADATA}") for path in layout if path.count("/") == 4}
        entries = self.source.walk(f"{LEDGER}/arrays")
        return sorted(names | {name.removesuffix(".json") for name in entries})

    def attrs(self, name: str) -> dict[str, Any]:
        """Attributes of an array, with its "dims" and "shape"."""
        in_layout = f"{name}/{METADATA}" in (self._entry(LAYOUT_ENTRY) or {})
        if in_layout:  # not cached: a reader of activations looks its chunks up in the units' entries
            spec = read_spec(self.source, name, (self._entry(LAYOUT_ENTRY) or {})[f"{name}/{METADATA}"])
        else:
            spec = self._static(name).spec
        return {**spec.attrs, "dims": list(spec.dims), "shape": list(spec.shape)}

    def table(self, name: str) -> pl.DataFrame:
        """A table by name ("prompts", "tokens-base", ...)."""
        if name not in self._tables:
            path = table_path(name)
            record = (self._entry(table_entry(name)) or {}).get(path)
            if record is None:
                raise _unknown("table", name, ", ".join(self.table_names()) or "none yet")
            data = self.source.read(path)
            if data is None or len(data) != record.size or crc32c(data) != record.crc:
                raise StoreError(
                    f"Table {name} of {self.source.name} is damaged.",
                    expected=f"{record.size} bytes, as the ledger says",
                    given="no file" if data is None else f"{len(data)} other bytes",
                    next_step=REPAIR,
                )
            self._tables[name] = pl.read_parquet(io.BytesIO(data))
        return self._tables[name]

    def table_names(self) -> list[str]:
        """Names of all tables."""
        return [name.removesuffix(".json") for name in self.source.walk(f"{LEDGER}/tables")]

    @property
    def prompts(self) -> pl.DataFrame:
        """The prompts table; line i is row i of every array with one row per prompt."""
        return self.table("prompts")

    def tokens(self, model: str) -> pl.DataFrame:
        """Rendered text, token ids and offsets of a model, one line per prompt."""
        return self.table(f"tokens-{slug(model)}")

    def self_checks(self) -> list[dict[str, Any]]:
        """The self-checks of precompute, with their values and limits."""
        return list(self.manifest.get("self_checks", []))

    def disk_use(self) -> dict[str, int]:
        """Bytes by kind (activations, grams, weights, tables), "total", and "raw": the committed
        activations without compression."""
        entries = [path for path in self.source.walk(LEDGER) if path.endswith(".json")]
        records = {
            path: record.size
            for entry in entries
            for path, record in (self._entry(f"{LEDGER}/{entry}") or {}).items()
        }
        use = dict.fromkeys(("activations", "grams", "weights", "tables"), 0)
        for path, size in records.items():
            kind = path.split("/", 1)[0]
            use[kind] = use.get(kind, 0) + size
        use.pop(METADATA, None)
        return {**use, "total": sum(records.values()), "raw": int(self._plan["raw_bytes"])}

    def _entry(self, entry: str) -> Entry | None:
        """A ledger entry; what is not there yet is looked for again next time."""
        if entry not in self._entries:
            found = read_entry(self.source, entry)
            if found is None:
                return None
            self._entries[entry] = found
        return self._entries[entry]

    def _array(self, name: str, entry: str, model: str | None = None) -> ArrayReader:
        """A reader for an array whose metadata is in `entry`; activations are in their units' entries."""
        with self._lock:
            if name not in self._arrays:
                spec = read_spec(self.source, name, (self._entry(entry) or {}).get(f"{name}/{METADATA}"))
                axis = spec.dims.index("row") if model is not None else 0

                def records(shard: tuple[int, ...]) -> Entry | None:
                    return self._entry(entry if model is None else unit_entry(model, shard[axis]))

                self._arrays[name] = ArrayReader(self.source, spec, records)
            return self._arrays[name]

    def _static(self, name: str) -> ArrayReader:
        return self._array(name, array_entry(name))

    def _check(self, what: str, given: Any, known: list[Any]) -> None:
        if given not in known:
            raise _unknown(f"{what} in the store at {self.source.name}", given, ", ".join(map(str, known)))


def _unknown(what: str, given: object, known: str) -> StoreError:
    return StoreError(
        f"There is no such {what}.",
        expected=known,
        given=repr(given),
        next_step="Choose one that was captured, or add it to the study file and compute another store.",
    )


def _whole_chunks(rows: Array, width: int, size: int) -> list[tuple[int, int]]:
    """Ranges of whole chunks of `width` rows (of `size` in all) that hold the ascending `rows`."""
    chunks = np.unique(rows // width)
    breaks = np.flatnonzero(np.diff(chunks) > 1) + 1
    groups = np.split(chunks, breaks) if len(chunks) else []
    return [(int(g[0]) * width, min((int(g[-1]) + 1) * width, size)) for g in groups]
