"""Writes a store unit by unit; a killed run goes on where it stopped and ends with the same bytes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.errors import StoreError
from store.bfloat16 import bits_of
from store.encode import Values, static_chunks, unit_chunks
from store.files import TEMPORARY, Bytes, atomic_write, plain, remove_file, storage_errors
from store.layout import (
    MANIFEST,
    METADATA,
    STATIC_DTYPES,
    gram_name,
    group_metadata,
    groups_above,
    static_spec,
)
from store.ledger import (
    LAYOUT_ENTRY,
    LEDGER,
    FileRecord,
    array_entry,
    local_entries,
    read_entry,
    table_entry,
    unit_entry,
    write_entry,
)
from store.plan import ModelPlan, PositionPlan, StorePlan
from store.provenance import (
    BUILDING,
    COMPLETE,
    Describe,
    check_same_study,
    new_manifest,
    read_manifest,
    set_state,
    write_manifest,
)
from store.rows import check_table_name, row_table, rows_table_name, table_path
from store.shards import encode_shard
from store.sources import LocalSource

__all__ = ["ModelPlan", "PositionPlan", "StorePlan", "StoreWriter"]

Array = np.ndarray[Any, Any]
STATIC_FOLDERS = ("grams", "weights", "subspaces")
DATA_FOLDERS = ("activations", *STATIC_FOLDERS, "tables")
LOCK = ".writer.lock"
TYPICAL_RATIO = 0.6  # what activations have compressed to at best; only to refuse a hopeless start


class StoreWriter:
    """Writes the store at `root`. Made by `create_or_resume`; close it, or use it in a `with`.

    Several writers, in threads or processes, may commit different units at the same time.
    """

    def __init__(self, root: Path, plan: StorePlan, manifest: dict[str, Any], durable: bool) -> None:
        self.root, self.plan, self.manifest, self.durable = root, plan, manifest, durable
        self._source = LocalSource(root)
        self._lock = -1
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
    ) -> StoreWriter:
        """Lays out a new store, or opens one of the same study to go on with it.

        Going on removes what a killed run left behind, and forgets units whose files are missing or
        short, so that they are computed again.

        Args:
            path: a local folder; new, empty, or a store.
            plan: the arrays.
            study_json, fingerprint: the study, for the manifest; another fingerprint is refused.
            describe: (stored study, this study) -> what differs in words.
            durable: flush every file to the disk before it counts.

        Raises:
            StoreError: another study, not a store, read-only, disk full, not a local folder.
        """
        if "://" in str(path):
            raise StoreError(
                "A store is written to a local folder.",
                expected="a path",
                given=str(path),
                next_step="Write it to a local folder, then copy the folder to the object store.",
            )
        root = Path(path)
        wanted = new_manifest(fingerprint, study_json, plan.to_json())
        created = _make_folder(root)
        writer = cls(root, plan, wanted, durable)
        try:
            alone = writer._take_lock()
            if (root / MANIFEST).exists():
                writer.manifest = read_manifest(writer._source)
                check_same_study(str(root), writer.manifest, wanted, describe)
            else:
                _check_room(root, plan)
                write_manifest(root, wanted, durable=durable)
            if alone:
                writer._remove_leftovers()
            writer._lay_out()
            writer._share_lock()
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
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def pending(self, model: str) -> list[int]:
        """Units of a model that are not committed yet."""
        return [u for u in range(self.plan.n_units) if not (self.root / unit_entry(model, u)).exists()]

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
        if (self.root / unit_entry(model, unit)).exists():
            return False
        files: list[tuple[str, Iterable[Bytes]]] = []
        for position, leaf, spec in self._specs[model]:
            chunks = unit_chunks(self.plan, model, unit, position, leaf, spec, values.get(position, {}))
            shard = tuple(unit if dim == "row" else 0 for dim in spec.dims)
            files.append((spec.shard_path(shard), encode_shard(chunks)))
        self._commit_files(unit_entry(model, unit), files)
        return True

    def has_array(self, name: str) -> bool:
        """Whether an array written once is there, whole."""
        return (self.root / array_entry(name)).exists()

    def has_table(self, name: str) -> bool:
        """Whether a table is there, whole."""
        return (self.root / table_entry(name)).exists()

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
            name: path inside the store, below grams/, weights/ or subspaces/.
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
        parts = name.split("/")
        if (
            parts[0] not in STATIC_FOLDERS
            or len(parts) < 2
            or any(not part or part.startswith(".") for part in parts)
            or values.dtype.name not in STATIC_DTYPES
            or values.ndim != len(dims)
            or values.ndim < 1
        ):
            raise StoreError(
                f"The array {name!r} cannot be kept.",
                expected="a name below grams/, weights/ or subspaces/, a numeric dtype, named axes",
                given=f"{values.dtype} of shape {values.shape}, axes {list(dims)}",
                next_step="Correct the call to write_array.",
            )
        pack_it = parts[0] != "grams" if compress is None else compress
        spec = static_spec(name, values.shape, values.dtype, tuple(dims), attributes, compress=pack_it)
        files: list[tuple[str, list[Bytes]]] = [
            (f"{group}/{METADATA}".lstrip("/"), [group_metadata()]) for group in groups_above(name)
        ]
        if values.size:
            shard = encode_shard(static_chunks(values, spec), compress=pack_it)
            files.append((spec.shard_path((0,) * values.ndim), list(shard)))
        files.append((f"{name}/{METADATA}", [spec.metadata()]))
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
        set_state(self.root, state)
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
        entries = list(local_entries(self.root))
        kept = {"state": COMPLETE, "ledger": [entry.removeprefix(f"{LEDGER}/") for entry in entries]}
        fixed = {key: self.manifest[key] for key in ("format", "fingerprint", "study", "plan")}
        self.manifest = dict(plain(dict(manifest))) | fixed | kept
        write_manifest(self.root, self.manifest, durable=self.durable)

    def _replace_files(self, entry: str, files: Sequence[tuple[str, list[Bytes]]]) -> None:
        """Commits files that are written once; the same files again change nothing."""
        wanted = {path: FileRecord.of(path, parts) for path, parts in files}
        if not self._broken(entry) and read_entry(self._source, entry) == wanted:
            return
        self._reopen()
        remove_file(self.root / entry)
        self._commit_files(entry, files)

    def _commit_files(self, entry: str, files: Sequence[tuple[str, Iterable[Bytes]]]) -> None:
        """Puts files in place, then lists them in the ledger; takes them away again when that fails."""
        records: list[FileRecord] = []
        try:
            for path, parts in files:
                records.append(FileRecord(path, *atomic_write(self.root / path, parts, durable=self.durable)))
            write_entry(self.root, entry, records, durable=self.durable)
        except BaseException:
            for record in records:
                if not record.path.endswith(METADATA):
                    with contextlib.suppress(StoreError):
                        remove_file(self.root / record.path)
            raise

    def _reopen(self) -> None:
        """Marks a finished store as unfinished before something in it is replaced."""
        if self.manifest["state"] == COMPLETE:
            self.set_state(BUILDING)

    def _lay_out(self) -> None:
        """Allocates every activation array in full: metadata for each group and array, row tables."""
        files: dict[str, bytes] = {}
        for specs in self._specs.values():
            for _, _, spec in specs:
                for group in groups_above(spec.name):
                    files[f"{group}/{METADATA}".lstrip("/")] = group_metadata()
                files[f"{spec.name}/{METADATA}"] = spec.metadata()
        pieces: list[tuple[str, list[Bytes]]] = [(path, [data]) for path, data in files.items()]
        self._replace_files(LAYOUT_ENTRY, pieces)
        for model in self.plan.models:
            for position, place in self.plan.positions.items():
                if place.kind == "many":
                    self.write_table(rows_table_name(model, position), row_table(self.plan, model, position))

    def _remove_leftovers(self) -> None:
        """Removes files that were never committed, and entries whose files are missing or short."""
        known: set[str] = set()
        for entry in list(local_entries(self.root)):
            if self._broken(entry):
                self._reopen()
                remove_file(self.root / entry)
            else:
                known |= (read_entry(self._source, entry) or {}).keys()
        for path in list(self.root.rglob("*")):
            inside = path.relative_to(self.root)
            stray = inside.parts[0] in DATA_FOLDERS and inside.as_posix() not in known
            temporary = path.name.startswith(TEMPORARY) and inside.parts[0] != "runs"
            if path.is_file() and (temporary or stray):
                remove_file(path)

    def _broken(self, entry: str) -> bool:
        """Whether files of a ledger entry are missing or have another size."""
        try:
            records = read_entry(self._source, entry) or {}
        except StoreError:
            return True
        stamps = ((record, self._source.stamp(record.path)) for record in records.values())
        return any(stamp is None or stamp[0] != record.size for record, stamp in stamps)

    def _take_lock(self) -> bool:
        """Locks the store; True when no other writer is at work, so that leftovers may be removed."""
        with storage_errors(self.root / LOCK):
            self._lock = os.open(self.root / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._lock, fcntl.LOCK_SH)
                return False
        return True

    def _share_lock(self) -> None:
        with storage_errors(self.root / LOCK):
            fcntl.flock(self._lock, fcntl.LOCK_SH)


def _make_folder(root: Path) -> bool:
    """Makes the folder; True when it was not there. One with other things in it is not written into."""
    with storage_errors(root):
        try:
            root.mkdir(parents=True)
            return True
        except FileExistsError:
            found = sorted(path.name for path in root.iterdir())
    if MANIFEST in found:
        return False
    other = [name for name in found if name != LOCK and not name.startswith(TEMPORARY)]
    if other:
        raise StoreError(
            f"{root} is not a store and not empty.",
            expected="a new folder, an empty one, or a store",
            given=", ".join(other[:5]),
            next_step="Choose another folder with --store.",
        )
    return False


def _check_room(root: Path, plan: StorePlan) -> None:
    """Refuses to begin what the disk cannot hold."""
    needed, free = int(plan.raw_bytes() * TYPICAL_RATIO), shutil.disk_usage(root).free
    if needed > free:
        raise StoreError(
            f"The disk of {root} is too small for this study.",
            expected=f"about {needed / 1e9:.1f} GB free",
            given=f"{free / 1e9:.1f} GB",
            next_step="Free some space, choose another folder with --store, or capture fewer layers.",
        )
