"""The store speaks through zarr: what creates arrays, what decodes them, and what is checked before."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
import zarrs
from synthetic_store import contents, expected, write_all
from zarr.storage import MemoryStore

import store.arrays
from engine.errors import StoreError
from store.layout import STATIC_DTYPES, activation_name, static_spec
from store.reader import Store

SITES = activation_name("base", "last_content", "sites")
SHARD = f"{SITES}/c.0.0.1.0"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "made"
    write_all(path)
    return path


def flip(path: Path) -> None:
    """One byte in the middle of the first chunk of a shard."""
    data = bytearray(path.read_bytes())
    data[60] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("dtype", sorted(STATIC_DTYPES))
@pytest.mark.parametrize("shape", [(7,), (0, 4), (1200, 1100), (2, 3, 4)])
@pytest.mark.parametrize("compress", [True, False])
def test_zarr_creates_what_the_schema_says(dtype: str, shape: tuple[int, ...], compress: bool) -> None:
    attrs = {"rank": 4, "mixed": [1, 2.5, None, True, {"é": "€"}]}
    dims = tuple("abc"[: len(shape)])
    spec = static_spec("weights/a/x", shape, np.dtype(dtype), dims, attrs, compress=compress)
    assert spec.create() == spec.metadata()
    array = spec.open(MemoryStore())
    assert (array.shape, array.dtype, array.chunks, array.shards) == (
        shape,
        np.dtype(dtype),
        spec.chunk,
        spec.shard,
    )


def test_another_zarr_that_says_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    create = zarr.create_array
    monkeypatch.setattr(zarr, "create_array", lambda *a, **k: create(*a, **{**k, "fill_value": 5}))
    spec = static_spec("weights/a/x", (3,), np.dtype("int8"), ("a",), {}, compress=True)
    with pytest.raises(StoreError, match=r"weights/a/x otherwise .* {'fill_value': 0}.* {'fill_value': 5}"):
        spec.create()


def test_metadata_and_grams_have_the_bytes_that_they_always_had(made: Path) -> None:
    """Of everything that no library's version decides: a store of before opens, and goes on."""
    found = {
        name: data
        for name, data in contents(made).items()
        if name.endswith("zarr.json") or (name.startswith("grams/") and "/c." in name)
    }
    digest = hashlib.sha256(b"".join(name.encode() + found[name] for name in sorted(found)))
    assert digest.hexdigest() == "6e11ad1113931019a419ee83ed2573f9ed8ff7da2f0d86ad2abce9b2c793c539"


def pipelines(store_: Store) -> list[str]:
    """What decodes the arrays that a store has opened for zarrs."""
    readers = store_._ledger._arrays.values()
    opened = (reader.__dict__.get("_zarrs") for reader in readers)
    return [type(array.async_array.codec_pipeline).__name__ for array in opened if array is not None]


def without_zarrs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.arrays, "_zarrs_process", lambda: 0)


def global_zarrs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its user's choice of a pipeline for own arrays changes nothing."""
    without_zarrs(monkeypatch)
    zarr.config.set({"codec_pipeline.path": store.arrays.ZARRS})


@pytest.mark.parametrize("change", [lambda _: None, without_zarrs, global_zarrs])
def test_zarrs_decodes_where_it_is_installed_and_zarr_elsewhere(
    made: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    before = zarr.config.get("codec_pipeline.path")
    try:
        change(monkeypatch)
        chosen = zarr.config.get("codec_pipeline.path")
        opened, plan = Store(made), write_all(made)
        for position in plan.positions:
            got = opened.activations("base", "mlp_out", 1, position, stored=True)
            np.testing.assert_array_equal(got, expected(plan, "base", position, "mlp_out", 1))
        some = opened.activations("base", "resid", 2, rows=[3, 9], stored=True)
        np.testing.assert_array_equal(some, expected(plan, "base", "last_content", "resid", 2)[[3, 9]])
        assert set(pipelines(opened)) == ({"ZarrsCodecPipeline"} if store.arrays._zarrs_process() else set())
        assert zarr.config.get("codec_pipeline.path") == chosen, "a library leaves its user's choice alone"
    finally:
        zarr.config.set({"codec_pipeline.path": before})


@pytest.mark.reference
def test_zarrs_alone_reads_a_flipped_byte(made: Path, tmp_path: Path) -> None:
    """Why every chunk is checked before zarrs reads it. Where this fails, zarrs has begun to check."""
    write_all(tmp_path / "store")
    flip(tmp_path / "store" / SHARD)
    with zarr.config.set({"codec_pipeline.path": f"{zarrs.__name__}.ZarrsCodecPipeline"}):
        array = zarr.open_array(tmp_path / "store" / SITES, mode="r")
    assert np.asarray(array[0:1, 0:1]).shape == (1, 1, 21, 10)


@pytest.mark.fault
@pytest.mark.parametrize("change", [lambda _: None, without_zarrs])
def test_a_flipped_byte_is_found_before_anything_decodes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None],
) -> None:
    change(monkeypatch)
    write_all(tmp_path / "store")
    flip(tmp_path / "store" / SHARD)
    monkeypatch.setattr(store.arrays, "_slice", lambda *_: pytest.fail("decoded"))
    opened = Store(tmp_path / "store")
    where = r"chunk \(site=resid, state=0, row=8:16, feature=0:10\)"
    with pytest.raises(StoreError, match=rf"Array {SITES} of .*: {where} is damaged.*checksum"):
        opened.activations("base", "resid", 0)


@pytest.mark.fault
def test_a_file_that_changes_while_zarrs_reads_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "store")
    opened, read = Store(tmp_path / "store"), store.arrays._slice

    def slow(array: zarr.Array, region: tuple[slice, ...]) -> np.ndarray:
        shard = tmp_path / "store" / SHARD
        os.utime(shard, ns=(0, shard.stat().st_mtime_ns + 1))
        return read(array, region)

    monkeypatch.setattr(store.arrays, "_slice", slow)
    with pytest.raises(StoreError, match=r"c\.0\.0\.1\.0, .* a file that changed while it was read"):
        opened.activations("base", "resid", 0)


def test_a_notebooks_loop_and_many_threads_read(made: Path) -> None:
    """A thread with a running loop goes by way of zarr's own threads; the others read by themselves."""
    from concurrent.futures import ThreadPoolExecutor

    opened = Store(made)
    want = opened.activations("base", "resid", 1, stored=True)

    async def cell() -> np.ndarray:
        return opened.activations("base", "resid", 1, stored=True)

    with ThreadPoolExecutor(8) as pool:
        # in a thread of its own: a browser that an earlier test drives runs a loop in this one
        np.testing.assert_array_equal(pool.submit(lambda: asyncio.run(cell())).result(), want)
        calls = [pool.submit(opened.activations, "base", "resid", 1, stored=True) for _ in range(64)]
        for call in calls:
            np.testing.assert_array_equal(call.result(), want)


@pytest.mark.fault
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_reads(made: Path) -> None:
    """zarrs would wait for threads that were not forked with it."""
    opened = Store(made)
    want = opened.activations("base", "resid", 1, stored=True)
    child = os.fork()
    if not child:
        import signal

        signal.alarm(20)
        same = (opened.activations("base", "resid", 1, stored=True) == want).all()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
