"""Stores of other versions are brought up to date or refused, and a rerun mends what is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_store import FINGERPRINT, STUDY, contents, read_steps, small_plan, write_all

import precompute
from engine.errors import StoreError
from store.files import crc32c, seal
from store.manifest import verify
from store.maps import MapLog
from store.migrate import migrate
from store.reader import Store
from store.runs import RunLog
from store.writer import StoreWriter

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    write_all(path)
    RunLog(path).append({"layer": 1}, {"kl": 0.375}, pl.DataFrame({"id": ["p0"]}))
    MapLog(path).save("one", {"v": 1}, {"x": np.arange(3.0)}, {})
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def make_old(root: Path) -> None:
    """Rewrites a store's ledger, runs, maps and manifest as version 1 kept them."""
    for entry in (root / "ledger").rglob("*.json"):
        files = [
            {"path": f["path"], "size": f["size"], "crc32c": f"{crc32c((root / f['path']).read_bytes()):08x}"}
            for f in json.loads(entry.read_bytes())["files"]
        ]
        entry.write_bytes(seal({"files": files}))
    for path in (root / "runs").glob("*/run.json"):
        record = json.loads(path.read_bytes())
        del record["store"]
        for name, table in record["tables"].items():
            del table["sha256"]
            table["crc32c"] = f"{crc32c((path.parent / f'{name}.parquet').read_bytes()):08x}"
        path.write_bytes(seal(record))
    for path in (root / "maps").glob("*.json"):
        path.unlink()
    manifest = json.loads((root / "manifest.json").read_bytes())
    manifest |= {"format": "patchbay-store-1", "ledger": sorted(manifest["ledger"])}
    del manifest["version"]
    (root / "manifest.json").write_bytes(seal(manifest))


def test_an_older_store_is_refused_with_the_command_that_migrates_it(
    store: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_old(store)
    message = rf"does not read.*version 2\. Given: version 1\. Next: .*precompute\.py migrate {store}"
    for read in (Store, verify):
        with pytest.raises(StoreError, match=message):
            read(store)
    assert precompute.main(["migrate", str(store)]) == 0
    assert "could not tell whether parts of equal layout" in capsys.readouterr().out
    assert verify(store) == []
    for step in read_steps(store):
        step()
    assert contents(store, manifest=True) == contents(whole, manifest=True)
    assert precompute.main(["migrate", str(store)]) == 0
    assert "version 2 already" in capsys.readouterr().out


def test_a_migration_that_was_stopped_goes_on(store: Path, whole: Path) -> None:
    make_old(store)
    for entry in ("ledger/base-00001.json", "ledger/tables/prompts.json"):
        (store / entry).write_bytes((whole / entry).read_bytes())
    migrate(store)
    assert contents(store, manifest=True) == contents(whole, manifest=True)


def test_a_damaged_older_store_is_not_declared_whole(store: Path) -> None:
    make_old(store)
    shard = store / "activations/base/last_content/sites/c.0.0.1.0"
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"c\.0\.0\.1\.0 is damaged.*Restore it from a copy"):
        migrate(store)
    with pytest.raises(StoreError, match="Given: version 1"):
        Store(store)


@pytest.mark.parametrize("version", [3, 10**9])
def test_a_newer_store_is_refused(store: Path, version: int) -> None:
    manifest = json.loads((store / "manifest.json").read_bytes())
    (store / "manifest.json").write_bytes(seal(manifest | {"version": version}))

    def resume(path: Path) -> None:
        StoreWriter.create_or_resume(path, small_plan(), STUDY, FINGERPRINT)

    for read in (Store, verify, migrate, resume):
        with pytest.raises(StoreError, match=rf"Given: version {version}\. Next: Update Patchbay"):
            read(store)


@pytest.mark.parametrize(
    "name",
    [
        "activations/base/last_content/sites/c.0.0.1.0",
        "activations/base/last_content/sites/zarr.json",
        "grams/base/last_content/resid/c.0.0.0",
        "weights/base/unembedding/c.0.0",
        "weights/base/w_k/zarr.json",
        "tables/prompts.parquet",
        "ledger/base-00001.json",
        "ledger/arrays/weights/base/unembedding.json",
        "manifest.json",
        "zarr.json",
    ],
)
@pytest.mark.parametrize("deleted", [False, True])
def test_a_rerun_mends_a_flipped_byte_and_a_lost_file(
    name: str, deleted: bool, store: Path, whole: Path
) -> None:
    data = bytearray((store / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store / name).write_bytes(data)
    if deleted:
        (store / name).unlink()
    with StoreWriter.create_or_resume(store, small_plan(), STUDY, FINGERPRINT, durable=False) as writer:
        assert writer.manifest["state"] == "building", "not taken as complete"
        assert bool(writer.forgotten) == (name != "manifest.json")
    write_all(store)
    assert contents(store, manifest=True) == contents(whole, manifest=True)
    assert verify(store) == []


def test_two_swapped_shards_are_mended(store: Path, whole: Path) -> None:
    one, two = (store / f"activations/tuned/mean/sites/c.0.0.{unit}.0" for unit in range(2))
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    write_all(store)
    assert contents(store, manifest=True) == contents(whole, manifest=True)


def test_a_manifest_of_another_study_is_not_made_anew(store: Path) -> None:
    (store / "manifest.json").unlink()
    with pytest.raises(StoreError, match="not a store and not empty"):
        StoreWriter.create_or_resume(store, small_plan(), STUDY, "cd" * 32)
    (store / "manifest.json").write_bytes(b"{}")
    with pytest.raises(StoreError, match=r"manifest\.json is damaged.*it makes the manifest anew"):
        StoreWriter.create_or_resume(store, small_plan(), STUDY, "cd" * 32)
