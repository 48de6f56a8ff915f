"""Damage of every kind is found, by the reader and by verify, and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_store import contents, small_plan, write_all

from engine.errors import StoreError
from store.layout import activation_name
from store.manifest import verify
from store.reader import Store
from store.runs import RunLog

pytestmark = pytest.mark.fault

SITES = activation_name("base", "last_content", "sites")
SHARD = f"{SITES}/c.0.0.1.0"
GRAMS = "grams/base/last_content/resid"


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("intact") / "store"
    write_all(path)
    table = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25, 0.5]})
    RunLog(path).append({"layer": 1}, {"kl": 0.375}, table, {"tokens": pl.DataFrame({"t": ["a"]})})
    return path


@pytest.fixture
def store(intact: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(intact, tmp_path / "store"))


def read_everything(path: Path) -> None:
    """Every array, table and run through the reader."""
    store = Store(path)
    for name in store.array_names():
        if not name.startswith("activations/"):
            store.array(name)
    for model in store.models:
        for position in store.positions():
            read_activations(store, model, position)
    for table in store.table_names():
        store.table(table)
    log = RunLog(path)
    for run_id in log.ids():
        log.open(run_id)


def read_activations(store: Store, model: str, position: str) -> None:
    for component in store.components():
        for layer in store.states(model) if component == "resid" else store.layers(model):
            store.activations(model, component, layer, position)


def test_an_intact_store_has_no_problems(store: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(store, lambda done, total: seen.append((done, total))) == []
    assert seen[-1][0] == seen[-1][1] > 50
    read_everything(store)


def test_a_flipped_byte_in_any_file_is_found_by_verify(store: Path) -> None:
    rng = np.random.default_rng(11)
    files = contents(store, manifest=True)
    assert {name.split("/")[0] for name in files if files[name]} == {
        "activations", "grams", "ledger", "manifest.json", "runs", "shared", "tables", "weights", "zarr.json"
    }  # fmt: skip
    for name, data in files.items():
        if not data:
            continue
        for at in {0, len(data) - 1, int(rng.integers(len(data)))}:
            damaged = bytearray(data)
            damaged[at] ^= int(rng.integers(1, 256))
            (store / name).write_bytes(damaged)
            problems = verify(store)
            assert problems, f"{name}: byte {at} of {len(data)}"
            folder = name.rsplit("/", 1)[0]
            words = " ".join(map(str, problems))
            assert any(part in words for part in (name, folder, name.split("/")[-1])), words
        (store / name).write_bytes(data)
    assert verify(store) == []


def test_a_flipped_byte_in_any_shard_is_found_by_the_reader(store: Path) -> None:
    """Every byte of one shard in turn: chunks, their checksums, the index and its checksum."""
    data = (store / SHARD).read_bytes()
    for at in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        (store / SHARD).write_bytes(damaged)
        with pytest.raises(StoreError, match=SITES):
            read_activations(Store(store), "base", "last_content")
    (store / SHARD).write_bytes(data)
    read_everything(store)


def test_the_reader_names_array_and_chunk_and_spares_the_rest(store: Path) -> None:
    from store.shards import ShardIndex, index_bytes

    data = bytearray((store / SHARD).read_bytes())
    spec = small_plan().spec("base", "last_content", "sites")
    index = ShardIndex.parse(
        bytes(data[-index_bytes(spec.chunks_per_shard) :]), spec.chunks_per_shard, len(data)
    )
    span = index.span(1 * 4 + 2)  # attn_out at state 2 of four states
    assert span is not None
    data[span[0] + span[1] // 2] ^= 1
    (store / SHARD).write_bytes(data)
    opened = Store(store)
    where = r"chunk \(site=attn_out, state=2, row=8:16, feature=0:10\)"
    with pytest.raises(StoreError, match=rf"Array {SITES} of .*: {where} is damaged.*checksum.*--verify"):
        opened.activations("base", "attn_out", 2)
    opened.activations("base", "attn_out", 1)
    opened.activations("base", "attn_out", 2, rows=[0, 20])
    (problem,) = verify(store)
    assert problem.array == SITES
    assert problem.chunk == "chunk (site=attn_out, state=2, row=8:16, feature=0:10) in shard c.0.0.1.0"
    assert "checksum" in problem.what


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [empty, truncate, lengthen, Path.unlink])
@pytest.mark.parametrize(
    "name",
    [
        SHARD,
        "weights/base/unembedding/c.0.0",
        "grams/base/last_content/resid/c.0.0.0",
        "tables/prompts.parquet",
    ],
)
def test_missing_and_short_files(store: Path, damage: Callable[[Path], None], name: str) -> None:
    size = (store / name).stat().st_size
    damage(store / name)
    with pytest.raises(StoreError) as caught:
        read_everything(store)
    text = str(caught.value)
    assert f"{size} bytes, as the ledger says" in text
    assert "damaged" in text
    problems = verify(store)
    assert [p for p in problems if f"{size} bytes" in p.what and p.array in name]


def test_damage_while_open_is_found(store: Path) -> None:
    """The index of a shard is kept in memory; a file replaced behind it is noticed."""
    opened = Store(store)
    opened.activations("base", "resid", 0)
    empty(store / SHARD)
    with pytest.raises(StoreError, match=r"0 bytes"):
        opened.activations("base", "resid", 0)


def test_missing_ledger_entries_and_stray_files(store: Path) -> None:
    (store / "ledger/tuned-00002.json").unlink()
    (store / "activations/base/notes.txt").write_text("mine")
    (store / "tables/.tmp-1-2-3-x.parquet").write_text("torn")
    found = {(p.array, p.chunk) for p in verify(store)}
    assert ("ledger", "ledger/tuned-00002.json") in found
    assert ("activations/base/notes.txt", "notes.txt") in found
    assert ("tables/.tmp-1-2-3-x.parquet", ".tmp-1-2-3-x.parquet") in found
    # Shards of the unit whose entry is gone count for nothing any more.
    assert any(array.startswith("activations/tuned/") and chunk == "c.0.0.2.0" for array, chunk in found)
    shutil.rmtree(store / "grams/base/last_content/resid")
    (store / "ledger/arrays/grams/base/last_content/resid.json").unlink()
    assert "ledger/arrays/grams/base/last_content/resid.json" in {p.chunk for p in verify(store)}


def test_damaged_manifest_and_no_store(store: Path, tmp_path: Path) -> None:
    text = (store / "manifest.json").read_text()
    (store / "manifest.json").write_text(text.replace('"seed": 3', '"seed": 4'))
    with pytest.raises(StoreError, match=r"manifest\.json is damaged: its text does not match"):
        Store(store)
    with pytest.raises(StoreError, match=r"no store at .*precompute\.py STUDY\.toml --store"):
        Store(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"no store"):
        verify(tmp_path / "nowhere")


def test_resume_repairs_missing_and_short_units(store: Path, intact: Path) -> None:
    empty(store / SHARD)
    (store / "weights/base/unembedding/c.0.0").unlink()
    truncate(store / "ledger/base-00000.json")
    write_all(store)
    assert verify(store) == []
    assert contents(store) == contents(intact)
