"""What was wrong at a URL for a while (bad bytes, a refusal, an outage) is forgotten once it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import s3_server
from synthetic_store import write_all

from app.frame import running
from engine.errors import StoreError
from store.journal.notes import NoteLog
from store.layout import activation_name
from store.manifest import verify
from store.maps import MapLog
from store.places import client, lease
from store.places.client import UnreachableError
from store.reader import Store
from store.runs import RunLog

s3_server.skip_without()
SITES = activation_name("base", "last_content", "sites")
SHARD = f"{SITES}/c.0.0.1.0"
PROMPTS = "tables/prompts.parquet"
TABLE = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25, None]})
NORMS = "weights/base/unembedding"


@pytest.fixture(scope="module")
def door() -> Iterator[s3_server.Door]:
    with s3_server.serving() as door:
        yield door


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "store"
    write_all(path)
    return path


@pytest.fixture
def url(door: s3_server.Door, local: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The finished store at a URL; little is tried again."""
    monkeypatch.setattr(lease, "BEAT", 0.3)
    monkeypatch.setattr(lease, "PATIENCE", 2.0)
    short = {"max_retries": 3, "retry_timeout": timedelta(seconds=3)}
    monkeypatch.setattr(client, "RETRY", {**client.RETRY, **short})
    url = f"s3://{s3_server.bucket()}/some/store"
    s3_server.put(url, s3_server.files(local))
    yield url
    door.answer = lambda method, path: None


def shut(door: s3_server.Door, part: str, status: int = 403) -> None:
    """Answers every GET of a path with `part` with a status."""
    door.answer = lambda method, path: status if method == "GET" and part in path else None


def flipped(data: bytes) -> bytes:
    return bytes([*data[:10], data[10] ^ 1, *data[11:]])


READS: dict[str, Callable[[Store], object]] = {
    SHARD: lambda store: store.activations("base", "resid", 0).tobytes(),
    PROMPTS: lambda store: store.prompts.to_dicts(),
    f"{NORMS}/zarr.json": lambda store: store.array(NORMS).tobytes(),
    f"ledger/arrays/{NORMS}.json": lambda store: store.array(NORMS).tobytes(),
}


@pytest.mark.fault
@pytest.mark.parametrize("path", READS)
@pytest.mark.parametrize("harm", ["flipped", "cut", "away"])
def test_what_was_restored_is_read(url: str, local: Path, door: s3_server.Door, path: str, harm: str) -> None:
    whole = s3_server.files(local)[path]
    if harm == "away":
        shut(door, path, 404)
    else:
        s3_server.put(url, {path: flipped(whole) if harm == "flipped" else whole[:-1]})
    reader = Store(url)
    with pytest.raises(StoreError):
        READS[path](reader)
    door.answer = lambda method, path: None
    s3_server.put(url, {path: whole})
    assert READS[path](Store(url)) == READS[path](reader) == READS[path](Store(local))


@pytest.mark.fault
def test_of_two_bad_shards_both_are_read_once_they_are_restored(url: str, local: Path) -> None:
    whole = s3_server.files(local)
    shards = [path for path in whole if path.startswith(f"{SITES}/c.")]
    assert len(shards) > 1
    s3_server.put(url, {path: flipped(whole[path]) for path in shards})
    reader = Store(url)
    with pytest.raises(StoreError, match="checksum"):
        reader.activations("base", "resid", 0)
    s3_server.put(url, {path: whole[path] for path in shards})
    found = reader.activations("base", "resid", 0)
    np.testing.assert_array_equal(found, Store(local).activations("base", "resid", 0))


@pytest.mark.fault
def test_a_refusal_says_nothing_of_runs_maps_and_notes(url: str, door: s3_server.Door) -> None:
    """Neither damaged nor absent: whoever asks is told, and nothing of it is kept."""
    runs = [RunLog(url).append({"job": "patch", "layer": layer}, {"kl": 0.5}, TABLE) for layer in (1, 2)]
    note = NoteLog(url).append("hello")
    MapLog(url).save("one", {}, {"x": np.arange(3.0)}, {})
    study, written = (url, Store(url).fingerprint), running.written_runs(url)
    asked: dict[str, Callable[[], object]] = {
        f"{runs[0]}/run.json": lambda: running._runs(study, written),
        f"{runs[1]}/run.json": lambda: RunLog(url).list(),
        f"{runs[0]}/table.parquet": lambda: RunLog(url).append({"job": "patch", "layer": 1}, {}, TABLE),
        f"notes/{note.note_id}": lambda: NoteLog(url).list(),
        "maps/one.json": lambda: MapLog(url).list(),
    }
    for part, ask in asked.items():
        shut(door, part)
        with pytest.raises(UnreachableError, match="refused"):
            ask()
        with pytest.raises(UnreachableError, match="refused"):
            verify(url)
    door.answer = lambda method, path: None
    assert {found["run_id"] for _, found in running._runs(study, written)} == set(runs)
    assert RunLog(url).list()["problem"].to_list() == [None, None]
    assert NoteLog(url).list() == ([note], [])
    assert verify(url) == []


@pytest.mark.fault
def test_metadata_of_the_root_that_was_damaged_is_mended(url: str, local: Path) -> None:
    s3_server.put(url, {"zarr.json": b"{}"})
    assert verify(url) != []
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


@pytest.mark.fault
@pytest.mark.parametrize("command", ["a run", "precompute"])
def test_what_a_killed_run_left_is_removed_an_hour_later(
    url: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what may be being written nor what has no run's name is touched."""
    left = {f"runs/{number:016x}/{name}.parquet": b"half of" for number in (1, 2) for name in ("table", "a")}
    mine = {"runs/mine.txt": b"x", "runs/mine/table.parquet": b"x", "runs/mine/deep/er": b"x"}
    s3_server.put(url, left | mine)
    now = time.time()

    def act() -> set[str]:
        if command == "precompute":
            write_all(url)
        else:
            RunLog(url).append({"layer": now}, {}, TABLE)
        found = {path for path in s3_server.objects(url) if path.startswith("runs/")}
        return {path for path in found if path.split("/")[1] not in RunLog(url).ids()}

    monkeypatch.setattr("store.runs.time.time", lambda: now + 3500)
    assert {problem.array for problem in verify(url)} == set(mine)
    assert act() == {*left, *mine}
    monkeypatch.setattr("store.runs.time.time", lambda: now + 3700)
    assert {problem.array for problem in verify(url)} == {*left, *mine}
    now += 1.0  # another run
    assert act() == set(mine)


def test_notes_are_read_at_once_and_once(url: str, door: s3_server.Door) -> None:
    """They never change; one that is damaged is looked at again, and `verify` looks at all."""
    kept = [NoteLog(url).append(f"note {number}") for number in range(6)]
    paths = [f"notes/{note.note_id}.json" for note in kept]
    s3_server.put(url, {paths[0]: b"{}"})
    door.asked.clear()
    notes, problems = NoteLog(url).list()
    assert (notes, len(problems)) == (kept[1:], 1)
    whole = [path for method, path in door.asked if method == "GET" and "/notes/" in path]
    assert len(whole) == 6
    door.asked.clear()
    assert NoteLog(url).list()[0] == kept[1:]
    assert [path.rpartition("/")[2] for _, path in door.asked if "/notes/" in path] == [paths[0][6:]]
    s3_server.put(url, {paths[1]: b"{}"})
    assert [problem.array for problem in verify(url)] == [path.removesuffix(".json") for path in paths[:2]]
