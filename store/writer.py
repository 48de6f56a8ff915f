"""Writes a store unit by unit; a killed run goes on where it stopped and ends with the same bytes."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.errors import StoreError
from store.bfloat16 import bits_of
from store.encode import Values, check_array, static_chunks, unit_chunks
from store.files import Bytes, plain, sha256
from store.folder import check_room, make_folder
from store.layout import (
    MANIFEST,
    METADATA,
    ArraySpec,
    gram_name,
    group_metadata,
    groups_above,
    static_spec,
)
from store.ledger import (
    LAYOUT_ENTRY,
    FileRecord,
    array_entry,
    entries_of,
    ledger_digests,
    read_entry,
    table_entry,
    unit_entry,
    write_entry,
)
from store.leftovers import Progress, broken, lost_and_known, own_files, strays, sweep
from store.places.client import UnreachableError
from store.plan import ModelPlan, PositionPlan, StorePlan, layout_files
from store.provenance import (
    BUILDING,
    COMPLETE,
    Describe,
    check_same_study,
    new_manifest,
    read_manifest,
    unchecked_manifest,
    write_manifest,
)
from store.rows import check_table_name, row_table, rows_table_name, table_path
from store.shards import ShardEncoder
from store.sources import Lock, as_place, open_source
from store.strict import parse_object

__all__ = ["ModelPlan", "PositionPlan", "StorePlan", "StoreWriter"]

Array = np.ndarray[Any, Any]


class StoreWriter:
    """Writes the store at `root`. Made by `create_or_resume`; close it, or use it in a `with`.

    Several writers, in threads or processes, may commit different units at the same time.

    Attributes:
        forgotten: ledger entries of a finished store, or with damaged files, that have to be written again.
    """

    def __init__(self, root: str | Path, plan: StorePlan, manifest: dict[str, Any], durable: bool) -> None:
        self.root, self.plan, self.manifest, self.durable = root, plan, manifest, durable
        self._source = open_source(root)
        self._lock: Lock | None = None
        self._committed: set[str] | None = None
        self.forgotten: list[str] = []
        self._specs = {model: list(plan.specs(model)) for model in plan.models}

    @classmethod
    def create_or_resume(
        cls,
        path: str | Path,
        plan: StorePlan,
        study_json: Mapping[str, Any],
        fingerprint: str,
        *,
        describe: Describe | None = None,
        durable: bool = True,
        progress: Progress | None = None,
    ) -> StoreWriter:
        """Lays out a new store, or opens one of the same study to go on with it.

        Going on removes what a killed run left behind. Where no other writer is at work it reads every file
        that was committed and forgets what is not as it was written, so that it is computed again; a
        damaged or missing manifest is made anew if the ledger is of this study.

        Args:
            path: a folder, or a URL of an object store; new, empty, or a store.
            plan: the arrays.
            study_json, fingerprint: the study, for the manifest; another fingerprint is refused.
            describe: (stored study, this study) -> what differs in words.
            durable: flush every file to the disk before it counts.
            progress: called as (ledger entries read, entries in all).

        Raises:
            StoreError: another study, not a store, read-only, disk full, nowhere to write; at a URL, another
                writer.
        """
        root = as_place(path)
        wanted = new_manifest(fingerprint, study_json, plan.to_json())
        writer = cls(root, plan, wanted, durable)
        source = writer._source
        created = make_folder(source, writer._is_ours)
        try:
            writer._lock = source.lock()
            if source.stamp(MANIFEST) is not None or writer._is_ours():
                writer._take_manifest(wanted, describe)
            else:
                check_room(source, plan)
                write_manifest(source, wanted, durable=durable)
            if writer._lock.alone:
                writer.forgotten = writer._remove_leftovers(progress)
            if source.local is None:  # nobody else writes, so that what is there need not be asked for
                writer._committed = set(entries_of(source))
            writer._lay_out()
            writer._lock.share()
        except BaseException:
            writer.close()
            if created:
                shutil.rmtree(root, ignore_errors=True)
            raise
        return writer

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the store; what was committed stays."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def sweep(self) -> None:
        """Removes what other writers were at when they were killed, once none is at work any more."""
        sweep(self._source, self._lock)

    def _has(self, entry: str) -> bool:
        """Whether an entry (its path) is in the ledger."""
        return self._source.stamp(entry) is not None if self._committed is None else entry in self._committed

    def pending(self, model: str) -> list[int]:
        """Units of a model that are not committed yet."""
        return [u for u in range(self.plan.n_units) if not self._has(unit_entry(model, u))]

    def commit(self, model: str, unit: int, values: Mapping[str, Values]) -> bool:
        """Writes one unit of one model: all of it or nothing.

        Args:
            model, unit: which; `plan.prompts_of(unit)` are its prompts.
            values: position -> either {(component, block or state): (rows, width)}, or {"sites":
                (site, state, rows, feature), "head_z": (layer, rows, width)}. Rows are the unit's prompts in
                order (all their rows in order where a prompt has many). float32, or bfloat16 bits as
                uint16. Entries without meaning (attn_out at the last state) are ignored.

        Returns:
            False when the unit was committed before; nothing is written then.

        Raises:
            StoreError: values that do not fit the plan, disk full, read-only.
        """
        if self._has(unit_entry(model, unit)):
            return False
        files: list[tuple[str, Iterable[Bytes]]] = []
        for position, leaf, spec in self._specs[model]:
            chunks = unit_chunks(self.plan, model, unit, position, leaf, spec, values.get(position, {}))
            shard = tuple(unit if dim == "row" else 0 for dim in spec.dims)
            files.append((spec.shard_path(shard), ShardEncoder(chunks)))
        self._commit_files(unit_entry(model, unit), files)
        return True

    def has_array(self, name: str) -> bool:
        """Whether an array written once is there, whole, with all the parts that it is made of."""
        if not self._has(array_entry(name)):
            return False
        parts = (self.group_attrs(name) or {}).get("parts", ())
        return all(self._has(array_entry(f"shared/{key}")) for key in parts)

    def group_attrs(self, name: str) -> dict[str, Any] | None:
        """Attributes of a group that was written; None where there is none."""
        path = f"{name}/{METADATA}"
        if not self._has(array_entry(name)):
            return None
        record = (read_entry(self._source, array_entry(name), self.fingerprint) or {}).get(path)
        data = None if record is None else self._source.read(path)
        found = {} if data is None else parse_object(data, f"{self._source.name}/{path}")
        return found["attributes"] if found.get("node_type") == "group" else None

    def write_group(self, name: str, attrs: Mapping[str, Any]) -> None:
        """Writes a group with attributes, replacing one of the same name."""
        files: list[tuple[str, Iterable[Bytes]]] = [
            (f"{group}/{METADATA}".lstrip("/"), [group_metadata()]) for group in groups_above(name)
        ]
        files.append((f"{name}/{METADATA}", [group_metadata(plain(dict(attrs)))]))
        self._replace_files(array_entry(name), files)

    def has_table(self, name: str) -> bool:
        """Whether a table is there, whole."""
        return self._has(table_entry(name))

    def write_array(
        self,
        name: str,
        array: Array,
        dims: Sequence[str],
        attrs: Mapping[str, Any] | None = None,
        *,
        bfloat16: bool = False,
        compress: bool | None = None,
    ) -> None:
        """Writes a whole array, replacing one of the same name.

        Args:
            name: path inside the store, below grams/, weights/, subspaces/ or shared/.
            array: one axis or more; any numeric dtype.
            dims: a name per axis.
            attrs: kept in the array's metadata.
            bfloat16: keep float32 values as bfloat16 bits.
            compress: default: everything but the Grams, which hardly compress and are read most.

        Raises:
            StoreError: not a name, dtype or shape the store keeps; disk full, read-only.
        """
        values = np.asarray(array)
        attributes = dict(plain(dict(attrs or {})))
        if bfloat16:
            values, attributes = bits_of(values), attributes | {"dtype": "bfloat16"}
        check_array(name, values, dims)
        pack_it = not name.startswith("grams/") if compress is None else compress
        spec = static_spec(name, values.shape, values.dtype, tuple(dims), attributes, compress=pack_it)
        files: list[tuple[str, Iterable[Bytes]]] = [
            (f"{group}/{METADATA}".lstrip("/"), [group_metadata()]) for group in groups_above(name)
        ]
        if values.size:
            shard = ShardEncoder(static_chunks(values, spec), compress=pack_it)
            files.append((spec.shard_path((0,) * values.ndim), shard))
        files.append((f"{name}/{METADATA}", [spec.create()]))
        self._replace_files(array_entry(name), files)

    def write_grams(self, model: str, position: str, component: str, grams: Array) -> None:
        """Writes (layer, prompt, prompt) Gram matrices of one component: residual states for "resid",
        captured blocks for the others."""
        layers = self.plan.states(model) if component == "resid" else self.plan.blocks(model)
        attrs = {"model": model, "position": position, "component": component, "layers": list(layers)}
        dims = ("state" if component == "resid" else "layer", "prompt", "other_prompt")
        self.write_array(gram_name(model, position, component), np.asarray(grams, np.float32), dims, attrs)

    def write_table(self, name: str, table: pl.DataFrame) -> None:
        """Writes a table as Parquet, replacing one of the same name; the same rows give the same bytes."""
        check_table_name(name)
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd", compression_level=3)
        self._replace_files(table_entry(name), [(table_path(name), [buffer.getvalue()])])

    def set_state(self, state: str) -> None:
        """Writes the state into the manifest."""
        write_manifest(self._source, read_manifest(self._source) | {"state": state})
        self.manifest["state"] = state

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Declares the store complete and adds provenance and self-checks to its manifest.

        Raises:
            StoreError: units are missing.
        """
        missing = {model: units for model in self.plan.models if (units := self.pending(model))}
        if missing:
            raise StoreError(
                f"The store at {self.root} is not finished.",
                expected=f"{self.plan.n_units} units of every model",
                given="; ".join(f"{model} lacks {len(units)}" for model, units in missing.items()),
                next_step="Run precompute.py again on the same study: it goes on where it stopped.",
            )
        kept = {"state": COMPLETE, "ledger": ledger_digests(self._source)}
        fixed = {key: self.manifest[key] for key in ("format", "version", "fingerprint", "study", "plan")}
        self.manifest = dict(plain(dict(manifest))) | fixed | kept
        write_manifest(self._source, self.manifest, durable=self.durable)

    def _replace_files(self, entry: str, files: Sequence[tuple[str, Iterable[Bytes]]]) -> None:
        """Commits files that are written once; the same files again change nothing."""
        made = [(path, parts, list(parts)) for path, parts in files]
        checksums = {path: p.checksums for path, p, _ in made if isinstance(p, ShardEncoder)}
        wanted = {
            path: FileRecord(path, sum(map(len, pieces)), sha256(*pieces), checksums.get(path))
            for path, _, pieces in made
        }
        if self._has(entry):
            whole = not broken(self._source, entry, self.fingerprint)
            if whole and read_entry(self._source, entry, self.fingerprint) == wanted:
                return
        self._reopen()
        self._forget(entry)
        self._commit_files(entry, [(path, pieces) for path, _, pieces in made], checksums)

    def _commit_files(
        self,
        entry: str,
        files: Sequence[tuple[str, Iterable[Bytes]]],
        checksums: Mapping[str, str] | None = None,
    ) -> None:
        """Puts files in place, then lists them in the ledger; takes them away again when that fails.

        Args:
            checksums: of the chunks of shards that are encoded already.
        """
        records: list[FileRecord] = []
        try:
            for path, parts in files:
                size, digest = self._source.write(path, parts, durable=self.durable)
                chunks = parts.checksums if isinstance(parts, ShardEncoder) else (checksums or {}).get(path)
                records.append(FileRecord(path, size, digest, chunks))
            write_entry(self._source, entry, records, self.fingerprint, durable=self.durable)
            if self._committed is not None:
                self._committed.add(entry)
        except BaseException:
            for record in records if self._source.local is not None else ():
                if not record.path.endswith(METADATA):
                    with contextlib.suppress(StoreError):
                        self._source.remove(record.path)
            raise

    def _forget(self, entry: str) -> None:
        """Takes an entry out of the ledger; its files in an object store too, where none is written over."""
        if not self._has(entry):
            return
        old = [] if self._source.local is not None else own_files(self._source, entry, self.fingerprint)
        self._source.remove(entry)
        if self._committed is not None:
            self._committed.discard(entry)
        for path in old:
            self._source.remove(path)

    @property
    def fingerprint(self) -> str:
        """The study's fingerprint."""
        return str(self.manifest["fingerprint"])

    def _is_ours(self) -> bool:
        """Whether the ledger is of this study, with the arrays of this plan."""
        try:
            listed = read_entry(self._source, LAYOUT_ENTRY, self.fingerprint)
        except UnreachableError:
            raise
        except StoreError:
            return False
        files = layout_files(self._specs)
        return listed == {path: FileRecord.of(path, [data]) for path, data in files.items()}

    def _take_manifest(self, wanted: dict[str, Any], describe: Describe | None) -> None:
        """The manifest that is there, of the same study; a new one in the place of a damaged one."""
        try:
            unchecked_manifest(self._source)
        except UnreachableError:
            raise
        except StoreError:
            if not self._is_ours():
                raise
            write_manifest(self._source, wanted, durable=self.durable)
        self.manifest = read_manifest(self._source)
        check_same_study(self._source.name, self.manifest, wanted, describe)

    def _reopen(self) -> None:
        """Marks a finished store as unfinished before something in it is replaced."""
        if self.manifest["state"] == COMPLETE:
            self.set_state(BUILDING)

    def _lay_out(self) -> None:
        """Allocates every activation array in full: metadata for each group and array, row tables."""
        files = layout_files(self._specs, ArraySpec.create)
        self._replace_files(LAYOUT_ENTRY, [(path, [data]) for path, data in files.items()])
        for model in self.plan.models:
            for position, place in self.plan.positions.items():
                if place.kind == "many":
                    self.write_table(rows_table_name(model, position), row_table(self.plan, model, position))

    def _remove_leftovers(self, progress: Progress | None) -> list[str]:
        """Removes files that were never committed, and entries with files that are not as they were written
        or that are not what the manifest lists; returns those entries and the ones that are missing."""
        lost, known = lost_and_known(self._source, self.manifest, progress)
        if lost:
            self._reopen()
        for entry in lost:
            self._source.remove(entry)
        for path in list(strays(self._source, known)):
            self._source.remove(path)
        return lost
