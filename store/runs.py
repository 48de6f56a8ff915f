"""Results of live runs, kept in the store they belong to and opened again without a model.

    runs/<run id>/run.json           condition, summary, its store and the tables' hashes, sealed
    runs/<run id>/<table>.parquet    the result

A run is written to a hidden folder and appears by one rename, so a torn write is never seen and two
writers of the same run cannot mix: the first one counts. In an object store a run appears with its record,
which is created last; what a killed writer left is removed after an hour, as in a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from polars.exceptions import PolarsError

from engine.errors import StoreError
from store.files import (
    TEMPORARY,
    atomic_write,
    canonical,
    plain,
    seal,
    sha256,
    storage_errors,
    sync_folder,
    unseal,
)
from store.places.client import UnreachableError
from store.places.objects import ObjectSource
from store.provenance import fingerprint_at
from store.rows import check_table_name
from store.schema import RunRecord, check
from store.sources import Source, Stamp, check_writable, open_source
from store.tables import read_table

RUNS = "runs"
RECORD = "run.json"
MAIN_TABLE = "table"
ID_LENGTH = 16  # hex digits: 64 bits, a chance of 3e-8 for any collision among a million runs
STALE_SECONDS = 3600.0
WAIT_SECONDS, TRIES = 5.0, 10
"""How long what another writer left of a run in an object store is taken for one that is being written."""
_FOLDER = re.compile(rf"{RUNS}/[0-9a-z]{{{ID_LENGTH}}}")
_COUNTER = itertools.count()


@dataclass(frozen=True)
class Run:
    """One live result. `tables` holds every table by name; `table` is the main one."""

    run_id: str
    content_hash: str
    created: str
    condition: dict[str, Any]
    summary: dict[str, Any]
    tables: dict[str, pl.DataFrame] = field(repr=False)

    @property
    def table(self) -> pl.DataFrame:
        return self.tables[MAIN_TABLE]


def condition_hash(condition: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a condition's canonical JSON."""
    return hashlib.sha256(canonical(plain(dict(condition)))).hexdigest()


class RunLog:
    """The live results of the store at `path`, a folder or a URL."""

    def __init__(self, path: str | Path) -> None:
        self.source: Source = open_source(path)

    def append(
        self,
        condition: Mapping[str, Any],
        summary: Mapping[str, Any],
        table: pl.DataFrame,
        extra_tables: Mapping[str, pl.DataFrame] | None = None,
        *,
        content_hash: str | None = None,
        seconds: float | None = None,
    ) -> str:
        """Keeps a result and returns its run id. A run that is there already stays as it is.

        Args:
            condition, summary: JSON objects.
            table, extra_tables: the result; extra ones by name.
            content_hash: what the run is found by; default `condition_hash(condition)`.
            seconds: how long it took.

        Raises:
            StoreError: disk full, read-only, or an object store that does not answer.
        """
        root = self.source.local
        digest = content_hash or condition_hash(condition)
        run_id = digest[:ID_LENGTH]
        if self._intact(run_id):
            return run_id
        tables = {MAIN_TABLE: table, **(extra_tables or {})}
        data: dict[str, bytes] = {}
        for name, frame in tables.items():
            check_table_name(name)
            buffer = io.BytesIO()
            frame.write_parquet(buffer, compression="zstd", compression_level=3)
            data[name] = buffer.getvalue()
        record = {
            "content_hash": digest,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "condition": condition,
            "summary": summary,
            "tables": {n: {"size": len(d), "sha256": sha256(d)} for n, d in data.items()},
            "store": fingerprint_at(self.source),
        } | ({} if seconds is None else {"seconds": round(seconds, 3)})
        files = {f"{n}.parquet": d for n, d in data.items()} | {RECORD: seal(record)}
        if root is None:
            publish(self.source, f"{RUNS}/{run_id}", files, lambda: self._intact(run_id))
            for path in torn(self.source):
                self.source.remove(path)
        else:
            self._publish(root, run_id, files)
        return run_id

    def _publish(self, root: Path, run_id: str, files: Mapping[str, bytes]) -> None:
        """Writes a hidden folder and renames it; the loser of a race throws its copy away."""
        name = f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}-{next(_COUNTER)}-{run_id}"
        hidden, place = root / RUNS / name, root / RUNS / run_id
        try:
            for file, data in files.items():
                atomic_write(hidden / file, [data])
            with storage_errors(place):
                try:
                    os.rename(hidden, place)
                except OSError:
                    if self._intact(run_id):
                        return
                    if not place.exists():
                        raise
                    # What is there is damaged: put it aside and try once more.
                    os.rename(place, hidden.with_name(f"{name}-damaged"))
                    os.rename(hidden, place)
            with storage_errors(place):
                sync_folder(place.parent)
        finally:
            for rest in (hidden, hidden.with_name(f"{name}-damaged")):
                shutil.rmtree(rest, ignore_errors=True)
        self._remove_stale(root)

    def _remove_stale(self, root: Path) -> None:
        """Removes what writers that were killed left behind."""
        for rest in (root / RUNS).glob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - rest.stat().st_mtime > STALE_SECONDS:
                    shutil.rmtree(rest, ignore_errors=True)

    def ids(self) -> list[str]:
        """Run ids, sorted; those of damaged runs too."""
        found = [path.split("/") for path in self.source.walk(RUNS) if "/" in path]
        torn = self.source.local is None  # a run appears in an object store with its record, written last
        return sorted({parts[0] for parts in found if not torn or parts[1:] == [RECORD]})

    def list(self) -> pl.DataFrame:
        """One line per run, newest first: run_id, created, seconds, problem (null when intact), condition and
        summary as JSON text, and each of their plain values as a column of its own.

        Raises:
            UnreachableError: an object store does not answer, which says nothing about a run.
        """
        lines: list[dict[str, Any]] = []
        ids = self.ids()
        for run_id, record in zip(ids, self.source.map(self._record_or_error, ids), strict=True):
            if isinstance(record, StoreError):
                lines.append({"run_id": run_id, "problem": str(record)})
                continue
            line = {key: record[key] for key in ("created", "content_hash")}
            line |= {"run_id": run_id, "problem": None, "seconds": record.get("seconds")}
            for part in ("condition", "summary"):
                line[part] = canonical(record[part]).decode()
                leaves = {k: v for k, v in record[part].items() if not isinstance(v, dict | list)}
                line |= {key: value for key, value in leaves.items() if key not in line}
            lines.append(line)
        first = ["run_id", "created", "problem", "condition", "summary"]
        schema = dict.fromkeys([*first, "content_hash"], pl.String)
        if not lines:
            return pl.DataFrame(schema=schema)
        columns = list(dict.fromkeys([*first, *(key for line in lines for key in line)]))
        table = pl.DataFrame(
            {key: _column(key, [line.get(key) for line in lines], schema) for key in columns}
        )
        return table.sort("created", "run_id", descending=True, nulls_last=True)

    def open(self, run_id: str) -> Run:
        """A run with its tables.

        Raises:
            StoreError: there is no such run, or a file of it is damaged.
        """
        record = self._record(run_id)
        tables: dict[str, pl.DataFrame] = {}
        for name, entry in record["tables"].items():
            path = f"{RUNS}/{run_id}/{name}.parquet"
            data = self.source.read(path)
            if data is None or len(data) != entry["size"] or sha256(data) != entry["sha256"]:
                raise StoreError(
                    f"Table {name} of run {run_id} is damaged.",
                    expected=f"{entry['size']} bytes as they were written",
                    given="no file" if data is None else f"{len(data)} other bytes",
                    next_step=f"Run it again; {self.source.name}/{RUNS}/{run_id} can be deleted.",
                )
            tables[name] = read_table(data, f"{name} of run {run_id}")
        return Run(
            run_id=run_id,
            content_hash=record["content_hash"],
            created=record["created"],
            condition=record["condition"],
            summary=record["summary"],
            tables=tables,
        )

    def find(self, content_hash: str) -> str | None:
        """The id of the intact run with this content hash, or None."""
        run_id = content_hash[:ID_LENGTH]
        if not self._intact(run_id):
            return None
        return run_id if self._record(run_id)["content_hash"] == content_hash else None

    def _record(self, run_id: str) -> dict[str, Any]:
        path = f"{RUNS}/{run_id}/{RECORD}"
        data = self.source.read(path) if run_id.isalnum() else None
        if data is None and run_id in self.ids():
            raise StoreError(
                f"{self.source.name}/{path} is missing: the run is damaged.",
                expected="the record of a run",
                given="no file",
                next_step=f"Run it again; {self.source.name}/{RUNS}/{run_id} can be deleted.",
            )
        if data is None:
            raise StoreError(
                f"There is no run {run_id!r} in {self.source.name}.",
                expected="an id from the list of runs",
                given=repr(run_id),
                next_step="Choose a run from the list, or run the patch again.",
            )
        name = f"{self.source.name}/{path}"
        again = f"Run it again; {self.source.name}/{RUNS}/{run_id} can be deleted."
        record = check(RunRecord, unseal(data, name, again), name, again).model_dump(exclude_none=True)
        here = fingerprint_at(self.source)
        if record["content_hash"][:ID_LENGTH] != run_id or record["store"] != here:
            raise StoreError(
                f"{name} is of another run.",
                expected=f"run {run_id} of the store {here[:12]}",
                given=f"run {record['content_hash'][:ID_LENGTH]} of the store {record['store'][:12]}",
                next_step=again,
            )
        return record

    def _record_or_error(self, run_id: str) -> dict[str, Any] | StoreError:
        try:
            return self._record(run_id)
        except UnreachableError:
            raise
        except StoreError as error:
            return error

    def strays(self) -> Iterator[str]:
        """Files below runs/ that belong to no run, by path inside it; not of one being written."""
        known, ages = set(self.ids()), _unrecorded(self.source)
        for path in self.source.walk(RUNS):
            run_id, _, file = path.partition("/")
            if self.source.local is None and run_id not in known:
                if ages.get(f"{RUNS}/{path}", STALE_SECONDS) >= STALE_SECONDS:
                    yield path
                continue
            try:
                named = {f"{name}.parquet" for name in self._record(run_id)["tables"]} | {RECORD}
            except UnreachableError:
                raise
            except StoreError:
                continue
            if file not in named:
                yield path

    def _intact(self, run_id: str) -> bool:
        try:
            self.open(run_id)
        except UnreachableError:
            raise
        except StoreError:
            return False
        return True

    def writable(self) -> None:
        """StoreError where results can't be kept at a URL. Asked before they are computed."""
        check_writable(self.source)


def stamps_of(url: str) -> list[tuple[str, Stamp]]:
    """Path and stamp of every file of the runs of a store at a URL, sorted; one request, if any."""
    return sorted(ObjectSource(url).stamps(RUNS).items())


def publish(source: Source, folder: str, files: Mapping[str, bytes], intact: Callable[[], bool]) -> None:
    """Creates the files of a run in an object store, the last one of them, its record, last: that commits it.

    Of two writers the first one counts. What a killed one left is taken away when nobody has finished it for
    `WAIT_SECONDS`.

    Args:
        intact: whether the run is there, whole.
    """
    for tried in range(2 * TRIES):
        try:
            for name, data in files.items():
                source.write(f"{folder}/{name}", [data])
        except UnreachableError:
            raise
        except StoreError:
            if intact():
                return
            if tried % TRIES < TRIES - 1:
                time.sleep(WAIT_SECONDS / TRIES)
                continue
            for path in source.walk(folder):
                source.remove(f"{folder}/{path}")
        else:
            if intact():
                return
    raise StoreError(
        f"The run at {source.name}/{folder} is written by several at once.",
        expected="one writer of a run",
        given="other bytes than were written here",
        next_step="Run it again.",
    )


def torn(source: Source) -> list[str]:
    """Files at a URL, by path, of runs whose writers were killed before the record: to be removed."""
    return [path for path, age in _unrecorded(source).items() if age >= STALE_SECONDS]


def _unrecorded(source: Source) -> dict[str, float]:
    """Files at a URL of runs without a record, with the seconds since the last of their run's was written."""
    if source.local is not None:  # a folder is hidden until the run is whole
        return {}
    written, newest = source.written(RUNS), dict[str, float]()
    for path, when in written.items():
        folder = path.rpartition("/")[0]
        if _FOLDER.fullmatch(folder) and f"{folder}/{RECORD}" not in written:
            newest[folder] = max(when, newest.get(folder, when))
    ages = {folder: time.time() - when for folder, when in newest.items()}
    return {path: ages[folder] for path in written if (folder := path.rpartition("/")[0]) in ages}


def _column(name: str, values: list[Any], schema: Mapping[str, Any]) -> pl.Series:
    """A column of one type; as text where the runs do not agree on the type."""
    kinds = {type(value) for value in values if value is not None}
    if name in schema or (len(kinds) > 1 and not kinds <= {int, float}):
        return pl.Series(name, [None if v is None else str(v) for v in values], dtype=pl.String)
    if kinds == {int, float}:
        return pl.Series(name, [None if v is None else float(v) for v in values], dtype=pl.Float64)
    try:
        return pl.Series(name, values)
    except (OverflowError, TypeError, PolarsError):  # numbers of more than 63 bits
        return pl.Series(name, [None if v is None else str(v) for v in values], dtype=pl.String)
