"""Opens a store and hands out slices. Needs nothing but the folder (or the URL of an object store)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.errors import StoreError
from store.arrays import REPAIR, ArrayReader, read_spec, unknown, whole_chunks
from store.committed import Committed, check_gram
from store.layout import METADATA, ArraySpec, gram_name, slug
from store.ledger import LAYOUT_ENTRY, LEDGER, array_entry, table_entry, unit_entry
from store.provenance import COMPLETE, read_manifest
from store.rows import GRAM_PROMPTS, rows_table_name, table_path
from store.shared import SHARED, parts_of, read_parts
from store.sources import as_place, open_source
from store.tables import check_rows, check_sample, read_table

Array = np.ndarray[Any, Any]
STATES = {"resid": 0, "resid_pre": 0, "resid_post": 1}


class Store:
    """A store, open for reading.

    Args:
        path: a folder, or a URL ("s3://bucket/prefix"; needs the extra s3).

    Attributes:
        manifest: provenance, self-checks, plan.

    Raises:
        StoreError: there is no store, it is damaged, or its format is unknown. Every method raises it too,
            naming array and chunk, when what it reads is missing, short or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_place(path) if str(path).startswith("file://") else path
        self.source = open_source(path)
        self.manifest = read_manifest(self.source)
        self._plan: dict[str, Any] = self.manifest["plan"]
        self._ledger = Committed(self.source, self.manifest)
        self._made: dict[str, dict[str, Any] | None] = {}
        self._tables: dict[str, pl.DataFrame] = {}

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
    def dtype(self) -> str:
        """The dtype that activations are kept in: "bfloat16" or "float32"."""
        return str(self._plan["dtype"])

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
        self._check("model", model, self.models)
        there = self._ledger.names("")
        names = (unit_entry(model, unit).removeprefix(f"{LEDGER}/") for unit in range(self.n_units))
        return [unit for unit, name in enumerate(names) if name in there]

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
                raise unknown("head", head, f"0..{spec.shape[-2] - 1} of head_z")
            tail[0] = slice(head, head + 1)
        widened = spec.is_bfloat16 and not stored
        if rows is None and self.position_kind(position) != "many":
            every = reader.read((*lead, slice(None), *tail), widened=widened)
            return every.reshape(spec.shape[axis], -1)
        wanted, order = np.unique(
            self._array_rows(model, position, spec.shape[axis], rows), return_inverse=True
        )
        parts, found = [], []
        for start, stop in whole_chunks(wanted, spec.chunk[axis], spec.shape[axis]):
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
        reader = self._ledger.activations(model, position, leaf)
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
            raise unknown("row", str(error), f"0..{len(every) - 1}") from error

    def row_index(self, model: str, position: str) -> pl.DataFrame:
        """Rows of each prompt in what `activations` returns: prompt, row_start, row_count (and array_row,
        the first row in the Zarr array)."""
        if self.position_kind(position) == "many":
            self._check("model", model, self.models)
            name = rows_table_name(model, position)
            rows = self._plan["positions"][position]["rows_per_unit"][model] * self.n_units
            return check_rows(self.table(name), name, rows)
        numbers = pl.int_range(self.n_prompts, dtype=pl.Int64, eager=True)
        return pl.DataFrame({"prompt": numbers, "row_start": numbers}).with_columns(
            pl.col("prompt").cast(pl.Int32),
            pl.lit(1, pl.Int32).alias("row_count"),
            pl.col("row_start").alias("array_row"),
        )

    def has_grams(self, model: str, component: str, position: str = "last_content") -> bool:
        """Whether Gram matrices of a component are kept; narrow sites of many prompts have none."""
        name = gram_name(model, position, "resid" if component in STATES else component)
        return self._ledger.entry(array_entry(name)) is not None

    def gram_prompts(self) -> Array | None:
        """(m,) ascending: the prompts that all Grams are of; None where none are kept of a sample, that is
        where Grams are of all prompts or there are none."""
        if self._ledger.entry(table_entry(GRAM_PROMPTS)) is None:
            return None
        name = f"{GRAM_PROMPTS} of {self.source.name}"
        return check_sample(self.table(GRAM_PROMPTS)["prompt"], name, self.n_prompts).to_numpy()

    def gram(self, model: str, component: str, layer: int, position: str = "last_content") -> Array:
        """(n, n) float32 Gram matrix of one component at one layer (block, or state for "resid"); of the
        prompts in `gram_prompts` where that names some."""
        base = "resid" if component in STATES else component
        reader = self._ledger.array(gram_name(model, position, base))
        layers = list(reader.spec.attrs.get("layers", range(reader.spec.shape[0])))
        self._check_gram(reader.spec, (model, position, base))
        wanted = layer + STATES.get(component, 0)
        self._check("layer", wanted, layers)
        index = layers.index(wanted)
        return reader.read((slice(index, index + 1), slice(None), slice(None)))[0]

    def grams(self, model: str, component: str, position: str = "last_content") -> Array:
        """(layers, n, n) float32 Gram matrices: every state for "resid", every captured block otherwise."""
        base = "resid" if component in STATES else component
        spec = self._ledger.array(gram_name(model, position, base)).spec
        self._check_gram(spec, (model, position, base))
        grams = self.array(spec.name)
        if component in STATES and component != "resid":
            states = self.states(model)
            grams = grams[[states.index(block + STATES[component]) for block in self.layers(model)]]
        return grams

    def _check_gram(self, spec: ArraySpec, place: tuple[str, str, str]) -> None:
        self._check("model", place[0], self.models)
        known = self.states(place[0]) if place[2] == "resid" else self.layers(place[0])
        check_gram(self.source, spec, place, known, self.n_prompts)

    def array(self, name: str, *, stored: bool = False, first: int | None = None) -> Array:
        """An array below grams/, weights/ or subspaces/, or entry `first` of its first axis; bfloat16 as
        float32 unless `stored`. What is made of parts (`store.shared`) reads as any other."""
        parts = self._parts(name)
        if parts is not None:
            if first is not None and not 0 <= first < parts["shape"][0]:
                raise unknown("entry", first, f"0..{parts['shape'][0] - 1} of {name}")
            return read_parts(partial(self._part, stored=stored), self._part_attrs, parts, first, name)
        return self._whole(name, stored=stored, first=first)

    def _whole(self, name: str, *, stored: bool = False, first: int | None = None) -> Array:
        """An array that is kept in one piece, or entry `first` of its first axis."""
        reader = self._ledger.array(name)
        shape = reader.spec.shape
        if first is not None and not 0 <= first < shape[0]:
            raise unknown("entry", first, f"0..{shape[0] - 1} of {name}")
        lead = slice(None) if first is None else slice(first, first + 1)
        widened = reader.spec.is_bfloat16 and not stored
        values = reader.read((lead, *(slice(None),) * (len(shape) - 1)), widened=widened)
        return values if first is None else values[0]

    def array_names(self) -> list[str]:
        """Every array: activations, Grams, weights; parts by the names of what they are parts of."""
        layout = self._ledger.entry(LAYOUT_ENTRY) or {}
        names = {path.removesuffix(f"/{METADATA}") for path in layout if path.count("/") == 4}
        entries = self._ledger.names("arrays/")
        own = (name.removesuffix(".json") for name in entries if not name.startswith(f"{SHARED}/"))
        return sorted(names | set(own))

    def attrs(self, name: str) -> dict[str, Any]:
        """Attributes of an array, with its "dims" and "shape"."""
        parts = self._parts(name)
        if parts is not None:
            return dict(parts)
        in_layout = f"{name}/{METADATA}" in (self._ledger.entry(LAYOUT_ENTRY) or {})
        if in_layout:  # not cached: a reader of activations looks its chunks up in the units' entries
            spec = read_spec(
                self.source, name, (self._ledger.entry(LAYOUT_ENTRY) or {})[f"{name}/{METADATA}"]
            )
        else:
            spec = self._ledger.array(name).spec
        return {**spec.attrs, "dims": list(spec.dims), "shape": list(spec.shape)}

    def table(self, name: str) -> pl.DataFrame:
        """A table by name ("prompts", "tokens-base", ...)."""
        if name not in self._tables:
            path = table_path(name)
            record = (self._ledger.entry(table_entry(name)) or {}).get(path)
            if record is None:
                raise unknown("table", name, ", ".join(self.table_names()) or "none yet")
            data = self.source.read(path)
            if data is None or not record.describes(data):
                self.source.forget([path])
                raise StoreError(
                    f"Table {name} of {self.source.name} is damaged.",
                    expected=f"{record.size} bytes, as the ledger says",
                    given="no file" if data is None else f"{len(data)} other bytes",
                    next_step=REPAIR,
                )
            self._tables[name] = read_table(data, name, self.n_prompts)
        return self._tables[name]

    def table_names(self) -> list[str]:
        """Names of all tables."""
        return [name.removesuffix(".json") for name in self._ledger.names("tables/")]

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

    def rounding(self, model: str) -> dict[str, Any] | None:
        """What precompute measured of a model's rounding (`engine.passes.rounding`); None where it didn't."""
        self._check("model", model, self.models)
        found = (self.manifest.get("rounding") or {}).get(model)
        return None if found is None else dict(found)

    def disk_use(self) -> dict[str, int]:
        """Bytes by kind (activations, grams, weights, tables), "total", and "raw": the committed
        activations without compression."""
        records = {path: record.size for entry in self._ledger.everything() for path, record in entry.items()}
        use = dict.fromkeys(("activations", "grams", "weights", "tables"), 0)
        for path, size in records.items():
            kind = path.split("/", 1)[0].replace(SHARED, "weights")
            use[kind] = use.get(kind, 0) + size
        use.pop(METADATA, None)
        return {**use, "total": sum(records.values()), "raw": int(self._plan["raw_bytes"])}

    def _parts(self, name: str) -> dict[str, Any] | None:
        """Attributes of an array that is made of parts, None for another."""
        if name not in self._made:
            entry = self._ledger.entry(array_entry(name))
            if entry is None:
                return None
            self._made[name] = parts_of(self.source, name, entry.get(f"{name}/{METADATA}"))
        return self._made[name]

    def _part(self, name: str, *, stored: bool = False) -> Array:
        return self._whole(name, stored=stored)

    def _part_attrs(self, name: str) -> Mapping[str, Any]:
        return self._ledger.array(name).spec.attrs

    def _check(self, what: str, given: Any, known: list[Any]) -> None:
        if given not in known:
            raise unknown(f"{what} in the store at {self.source.name}", given, ", ".join(map(str, known)))
