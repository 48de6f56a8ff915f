"""A store in an object store is the local one, object by object, whatever kills it or interferes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import s3_server
from synthetic_store import (
    FINGERPRINT,
    STUDY,
    expected,
    planes,
    small_plan,
    write_all,
)

import store.arrays
from app.build.parallel import check_workers
from app.frame.opened import open_at
from app.workers.asked import Workers
from engine.errors import PatchbayError, StoreError
from store.journal.notes import NoteLog
from store.layout import activation_name
from store.manifest import verify
from store.maps import MapLog
from store.places import client, lease
from store.places.cache import PIECES, Pieces, Room
from store.places.client import UnreachableError, check_url, shown
from store.reader import Store
from store.runs import RunLog
from store.sources import to_write
from store.writer import StoreWriter

s3_server.skip_without()
SITES = activation_name("base", "last_content", "sites")
SHARD = f"{SITES}/c.0.0.1.0"
TABLE = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25, None]})
HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def door() -> Iterator[s3_server.Door]:
    with s3_server.serving() as door:
        yield door


@pytest.fixture
def url(door: s3_server.Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty place. A writer without a sign of life for 2 s is taken for dead; little is tried again."""
    monkeypatch.setattr(lease, "BEAT", 0.3)
    monkeypatch.setattr(lease, "PATIENCE", 2.0)
    short = {"max_retries": 8, "retry_timeout": timedelta(seconds=3)}
    monkeypatch.setattr(client, "RETRY", {**client.RETRY, **short})
    yield f"s3://{s3_server.bucket()}/some/store"
    door.answer = lambda method, path: None


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("local") / "store"
    write_all(path)
    return path


def flip(url: str, path: str) -> None:
    data = bytearray(s3_server.objects(url)[path])
    data[10] ^= 1
    s3_server.put(url, {path: bytes(data)})


def test_the_bytes_are_the_local_ones(url: str, local: Path) -> None:
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)
    assert verify(url) == []
    write_all(url)  # goes on with a finished store
    assert s3_server.objects(url) == s3_server.files(local)


def test_notes_are_kept_there_too(url: str) -> None:
    write_all(url)
    log = NoteLog(url)
    kept = [log.append("Looks right.", "Ada"), log.append("Again, with 答.")]
    assert NoteLog(url).list() == (kept, [])
    assert verify(url) == []
    flip(url, f"notes/{kept[0].note_id}.json")
    assert [problem.array for problem in verify(url)] == [f"notes/{kept[0].note_id}"]


def test_everything_reads_as_it_was_written(url: str, local: Path) -> None:
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    plan = small_plan()
    s3_server.put(url, s3_server.files(local))
    remote, near = Store(url), Store(local)
    assert remote.complete
    for model in plan.models:
        for position in plan.positions:
            for component in plan.components:
                found = remote.activations(model, component, 1, position, stored=True)
                np.testing.assert_array_equal(found, expected(plan, model, position, component, 1))
    for name in near.array_names():
        if not name.startswith("activations/"):
            np.testing.assert_array_equal(remote.array(name), near.array(name))
    assert (remote.array_names(), remote.disk_use()) == (near.array_names(), near.disk_use())
    assert remote.prompts.equals(near.prompts)
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    plain = ObjectStore(S3Store(bucket, prefix=prefix), read_only=True)
    bits = zarr.open_array(plain, path=SITES, mode="r")[0, 1]
    np.testing.assert_array_equal(bits, near.activations("base", "resid", 1, stored=True))


KILLED = """
import os, sys
from store.places.objects import ObjectSource
from synthetic_store import write_all
done, put = [0], ObjectSource._put
def killed(self, path, data, mode):
    done[0] += 1
    if done[0] > int(sys.argv[2]):
        os._exit(9)
    return put(self, path, data, mode)
ObjectSource._put = killed
write_all(sys.argv[1])
"""


@pytest.mark.fault
@pytest.mark.parametrize("puts", [0, 1, 9, 30, 52, 95])
def test_a_killed_writer_goes_on_to_the_same_bytes(url: str, local: Path, puts: int) -> None:
    """Before the manifest, in the layout, inside a unit and before its entry, among weights, near the end."""
    folders = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-c", KILLED, url, str(puts)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    left = s3_server.objects(url)
    assert len(left) == puts + 1, "what was put, and the hold of the one that was killed"
    listed = [name for name in left if name.startswith("ledger/")]
    assert all(left[name] == s3_server.files(local)[name] for name in listed)
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


@pytest.mark.fault
def test_a_flipped_byte_is_named_and_mended(url: str, local: Path) -> None:
    s3_server.put(url, s3_server.files(local))
    flip(url, SHARD)
    (problem,) = verify(url)
    assert problem.array == SITES
    assert problem.chunk == "chunk (site=resid, state=0, row=8:16, feature=0:10) in shard c.0.0.1.0"
    with pytest.raises(StoreError, match=rf"{SITES} of {url}: chunk \(site=resid, state=0, row=8:16"):
        Store(url).activations("base", "resid", 0)
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


@pytest.mark.fault
def test_a_flipped_byte_is_found_before_anything_decodes(
    url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.put(url, s3_server.files(local))
    flip(url, SHARD)
    monkeypatch.setattr(store.arrays, "_slice", lambda *_: pytest.fail("decoded"))
    with pytest.raises(StoreError, match="checksum"):
        Store(url).activations("base", "resid", 0)


@pytest.mark.fault
def test_short_missing_and_stray_objects_are_named(url: str, local: Path) -> None:
    kept = s3_server.files(local)
    del kept["tables/prompts.parquet"]
    s3_server.put(url, kept | {SHARD: b"", "tables/other.parquet": b"x"})
    with pytest.raises(StoreError, match=rf"{SITES} .* 0 bytes"):
        Store(url).activations("base", "resid", 0)
    said = {problem.array: problem.what for problem in verify(url)}
    assert said == {
        SITES: f"it has 0 bytes; the ledger says {len(s3_server.files(local)[SHARD])} bytes",
        "tables/prompts.parquet": said["tables/prompts.parquet"],
        "tables/other.parquet": "no ledger entry lists it",
    }
    assert said["tables/prompts.parquet"].startswith("it is missing")


def begun(url: str | Path) -> StoreWriter:
    return StoreWriter.create_or_resume(url, small_plan(), STUDY, FINGERPRINT)


def test_a_second_writer_is_refused(url: str, local: Path) -> None:
    with begun(url) as first:
        with pytest.raises(StoreError, match=r"(?s)Another writer is at work.*process \d+ on "):
            begun(url)
        first.commit("base", 0, planes(first.plan, "base", 0))
    assert write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


def test_one_that_was_taken_over_writes_no_more(
    url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun(url)
    first._lock._end.set()  # no more signs of life, as of a machine that sleeps
    first._lock._thread.join()
    with begun(url) as second:
        assert second.commit("base", 0, planes(second.plan, "base", 0))
        with pytest.raises(StoreError, match="no longer holds the store"):
            first.commit("base", 1, planes(first.plan, "base", 1))
        monkeypatch.setattr(first._lock, "check", lambda: None)  # it was asked before it went to sleep
        other = {
            place: {k: v + 1 for k, v in some.items()}
            for place, some in planes(first.plan, "base", 0).items()
        }
        with pytest.raises(StoreError, match="written by somebody else meanwhile"):
            first.commit("base", 0, other)
        first.close()
        assert ".writer.lock" in s3_server.objects(url), "the second one's hold stays"
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


def test_what_is_replaced_or_added_reopens_a_finished_store(url: str, local: Path, tmp_path: Path) -> None:
    near = tmp_path / "near"
    for place in (url, near):
        write_all(place)
        for name, shape in (("weights/base/unembedding", (6, 10)), ("weights/base/new", (3,))):
            values = np.ones(shape, np.float32)
            with begun(place) as writer:
                writer.write_array(name, values, ("token", "feature")[: values.ndim])
                assert writer.manifest["state"] == "building"
                writer.finish({})
        assert verify(place) == []
        np.testing.assert_array_equal(Store(place).array("weights/base/new"), np.ones(3))
    assert s3_server.objects(url) == s3_server.files(near) != s3_server.files(local)


def test_other_things_and_other_studies_are_not_written_over(url: str) -> None:
    s3_server.put(url, {"thesis.txt": b"mine"})
    with pytest.raises(StoreError, match=r"(?s)not a store and not empty.*thesis.txt"):
        begun(url)
    assert s3_server.objects(url) == {"thesis.txt": b"mine"}
    write_all(f"{url}-2")
    before = s3_server.objects(f"{url}-2")
    with pytest.raises(StoreError, match="made from another study"):
        StoreWriter.create_or_resume(f"{url}-2", small_plan(), STUDY, "cd" * 32)
    assert s3_server.objects(f"{url}-2") == before


@pytest.mark.fault
@pytest.mark.parametrize("status", [503, 500, 0])
def test_a_service_that_stumbles_is_asked_again(
    url: str, local: Path, door: s3_server.Door, status: int
) -> None:
    """Each fifth request fails once, by an answer or a connection that is cut."""
    seen, lock = [0], threading.Lock()

    def answer(method: str, path: str) -> int | None:
        with lock:
            seen[0] += 1
            return status if seen[0] % 5 == 0 else None

    door.answer = answer
    write_all(url)
    assert verify(url) == []
    door.answer = lambda method, path: None
    assert seen[0] > 100
    assert s3_server.objects(url) == s3_server.files(local)


@pytest.mark.fault
@pytest.mark.parametrize("status", [503, 0])
@pytest.mark.parametrize("puts", [12, 40])
def test_a_service_that_goes_away_is_told_and_gone_on_with(
    url: str, local: Path, door: s3_server.Door, status: int, puts: int
) -> None:
    seen = [0]

    def answer(method: str, path: str) -> int | None:
        seen[0] += method == "PUT"
        return status if seen[0] > puts else None

    door.answer = answer
    with pytest.raises(UnreachableError, match=r"(?s)did not answer.*run the same command again"):
        write_all(url)
    with pytest.raises(UnreachableError):
        verify(url)
    with pytest.raises(UnreachableError):
        write_all(url)  # a service that doesn't answer is not taken for a damaged store
    door.answer = lambda method, path: None
    left = s3_server.objects(url)
    assert all(
        s3_server.files(local)[name] == data for name, data in left.items() if name.startswith("ledger")
    )
    write_all(url)
    assert s3_server.objects(url) == s3_server.files(local)


def test_keys_that_may_not_write_are_told(url: str, door: s3_server.Door) -> None:
    door.answer = lambda method, path: 403 if method == "PUT" else None
    with pytest.raises(StoreError, match=r"(?s)The object store refused.*Correct the keys"):
        begun(url)
    with pytest.raises(StoreError, match="The object store refused"):
        RunLog(url).writable()


def test_a_bucket_that_is_not_there_is_told(door: s3_server.Door) -> None:
    with pytest.raises(StoreError, match=r"(?s)no such bucket|did not answer as it should"):
        begun("s3://no-such-bucket-here/x")
    with pytest.raises(StoreError):
        Store("s3://no-such-bucket-here/x")


def test_runs_are_kept(url: str, local: Path) -> None:
    s3_server.put(url, s3_server.files(local))
    run_id = RunLog(url).append({"layer": 1}, {"kl": 0.5}, TABLE, {"more": TABLE})
    again = RunLog(url)
    assert again.ids() == [run_id]
    assert again.open(run_id).table.equals(TABLE)
    assert again.list()["run_id"].to_list() == [run_id]
    assert again.append({"layer": 1}, {"kl": 0.7}, TABLE) == run_id
    assert again.open(run_id).summary == {"kl": 0.5}, "the first one counts"
    assert verify(url) == []


@pytest.mark.fault
def test_a_torn_run_is_none_and_is_written_again(
    url: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("store.runs.WAIT_SECONDS", 0.2)
    s3_server.put(url, s3_server.files(local))
    run_id = RunLog(url).append({"layer": 1}, {}, TABLE)
    kept = s3_server.objects(url)
    torn = f"{url}-torn"
    s3_server.put(torn, {k: v for k, v in kept.items() if not k.endswith("run.json")})
    s3_server.put(torn, {f"runs/{run_id}/table.parquet": b"half of"})
    assert RunLog(torn).ids() == []
    assert verify(torn) == [], "somebody may be writing it"
    with monkeypatch.context() as patch:
        patch.setattr("store.runs.STALE_SECONDS", 0.0)
        assert [problem.what for problem in verify(torn)] == ["no run lists it"]
    assert RunLog(torn).append({"layer": 1}, {}, TABLE) == run_id
    assert RunLog(torn).open(run_id).table.equals(TABLE)
    assert verify(torn) == []


def test_of_two_writers_of_a_run_one_counts(url: str, local: Path) -> None:
    s3_server.put(url, s3_server.files(local))
    tables = [TABLE.with_columns(pl.lit(n).alias("writer")) for n in range(4)]
    threads = [
        threading.Thread(target=lambda n=n: RunLog(url).append({"layer": 2}, {"writer": n}, tables[n]))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run_id,) = RunLog(url).ids()
    run = RunLog(url).open(run_id)
    assert run.table.equals(tables[run.summary["writer"]]), "record and table are of one writer"
    assert verify(url) == []


def test_maps_are_kept(url: str, local: Path) -> None:
    s3_server.put(url, s3_server.files(local))
    log = MapLog(url)
    log.save("one", {"kind": "mean"}, {"x": np.arange(3.0)}, {})
    with pytest.raises(StoreError, match="named 'one' already"):
        log.save("one", {}, {}, {})
    np.testing.assert_array_equal(MapLog(url).open("one").arrays["x"], np.arange(3.0))
    assert [kept.name for kept in log.list()[0]] == ["one"]
    assert verify(url) == []
    log.delete("one")
    assert MapLog(url).names() == []


def test_a_finished_store_is_read_once(url: str, local: Path, door: s3_server.Door) -> None:
    s3_server.put(url, s3_server.files(local))
    first = Store(url).activations("base", "resid", 1)
    asked = len(door.asked)
    np.testing.assert_array_equal(Store(url).activations("base", "resid", 1), first)
    assert [method for method, _ in door.asked[asked:]] == ["GET"], "the manifest, by which all is kept"
    flip(url, SHARD)
    assert [problem.array for problem in verify(url)] == [SITES], "verify takes nothing that was kept"
    changed = s3_server.objects(url)["manifest.json"]
    s3_server.put(url, {"manifest.json": changed.replace(b'"seconds": 1.5', b'"seconds": 2.5')})
    with pytest.raises(StoreError, match="damaged"):
        Store(url)


def test_listing_takes_as_many_requests_as_there_are_pages(
    url: str, local: Path, door: s3_server.Door
) -> None:
    s3_server.put(url, s3_server.files(local))
    asked = len(door.asked)
    opened = Store(url)
    for layer in range(3):
        opened.activations("tuned", "mlp_out", layer, "mean")
    listings = [path for method, path in door.asked[asked:] if "list-type" in path]
    assert len(listings) == 1
    assert not [method for method, _ in door.asked[asked:] if method == "HEAD"]


def test_pieces_are_bounded() -> None:
    kept = Pieces(100)
    for number in range(50):
        kept.put(number, bytes(10))
        kept.get(0)
        assert kept.held <= 100
    assert kept.get(0) is not None, "asked for lately"
    assert kept.get(1) is None
    kept.put("large", bytes(26))
    assert kept.get("large") is None
    assert PIECES.held <= PIECES.most


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_is_refused_instead_of_waiting(url: str, local: Path) -> None:
    s3_server.put(url, s3_server.files(local))
    opened = Store(url)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            opened.activations("base", "resid", 0)
        except StoreError as error:
            code = 7 if "cannot be reached from a forked process" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_room_is_bounded() -> None:
    room, most, lock = Room(100), [0, 0], threading.Lock()

    def hold(size: int) -> None:
        with room.of(size):
            with lock:
                most[0] += size
                most[1] = max(most[1], most[0])
            time.sleep(0.01)
            with lock:
                most[0] -= size

    threads = [threading.Thread(target=hold, args=(size,)) for size in (40, 50, 30, 250, 60) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [0, 250], "the large ones alone"
    assert room.held == 0


def test_an_unfinished_store_is_read_as_far_as_it_goes(url: str) -> None:
    with begun(url) as writer:
        reader = Store(url)
        with pytest.raises(StoreError, match="not computed yet"):
            reader.activations("base", "resid", 0)
        for unit in range(writer.plan.n_units):
            writer.commit("base", unit, planes(writer.plan, "base", unit))
        found = reader.activations("base", "resid", 0, stored=True)
    np.testing.assert_array_equal(found, expected(writer.plan, "base", "last_content", "resid", 0))


@pytest.mark.parametrize(
    "bad",
    [
        "ftp://host/x",
        "memory://x",
        "file:/x://",
        "s3://",
        "s3:///x",
        "s3://bucket/../x",
        "s3://bucket/a/./b",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?endpoint=http://other",
        "s3://bucket/x#y",
        "s3://bucket/a b",
        "s3://bucket/%2e%2e/x",
        "S3://bucket/x",
        "s3://bucket/x\n",
    ],
)
def test_urls_are_names_and_nothing_else(bad: str) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        check_url(bad)
    with pytest.raises(StoreError):
        Store(bad)


@pytest.mark.parametrize(
    "bad",
    [
        "s3://AKIAKEY:SECRET@bucket/x",
        "s3://AKIAKEY:SEC/RET@bucket/x",
        "s3://AKIAKEY:SE@C/RET@bucket/x",
        "s3://AKIAKEY:SEC?RET@bucket",
        "s3:/AKIAKEY:SECRET@bucket/x",
        "AKIAKEY:SECRET@s3://bucket/x",
        "az://box/x?sv=1&sig=SECRET",
        "az://box?sig=SECRET",
        "az://box#SECRET",
        "https://user:SECRET@host/x",
        "ftp://host/SECRET",
    ],
)
def test_no_secret_of_a_mistyped_url_is_shown(bad: str) -> None:
    """Not by a reader, by a page, by a log of runs, or where a folder is wanted."""
    several = Workers("ray", count=2)
    for ask in (
        Store,
        RunLog,
        open_at,
        lambda url: to_write(url, "A report"),
        lambda url: check_workers(several, url),
    ):
        with pytest.raises(PatchbayError) as raised:
            ask(bad)
        for part in ("SEC", "RET", "AKIA", "sig="):
            assert part not in str(raised.value)


def test_of_a_mistyped_url_protocol_and_bucket_are_shown() -> None:
    for url, said in (
        ("s3://key:secret@bucket/x", "s3://bucket/…"),
        ("https://host:80/x", "https://host/…"),
        ("ftp://host", "ftp://host"),
        ("runs/a b?c", "runs/a b?c"),
    ):
        assert shown(url) == said


@pytest.mark.parametrize("good", ["s3://bucket", "s3://bucket/", "gs://b-1.x/a/b", "az://box/run=1+2@x/"])
def test_plain_urls_are_taken(good: str) -> None:
    protocol, bucket, prefix = check_url(good)
    assert f"{protocol}://{bucket}/{prefix}".rstrip("/") == good.rstrip("/")


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(StoreError, match=r"pip install 'patchbay\[s3\]'"):
        Store("s3://bucket/never-opened-before")
