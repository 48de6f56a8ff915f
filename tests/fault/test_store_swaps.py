"""200 damages of a tiny store, of each kind to each kind of file: swapped, flipped, cut, deleted.

Every one is found by verify, and by whoever reads the store before a number is shown, with the file named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from synthetic_store import contents, grams, planes, prompts, read_steps, small_plan

from engine.errors import StoreError
from store.manifest import verify
from store.maps import MapLog
from store.plan import StorePlan
from store.runs import RunLog
from store.shared import Part, write_parts
from store.writer import StoreWriter

pytestmark = pytest.mark.fault

KINDS: dict[str, Callable[[str], bool]] = {
    "manifest": lambda p: p == "manifest.json",
    "layout": lambda p: p == "ledger/layout.json",
    "unit entry": lambda p: p.startswith("ledger/") and p[-10:-5].isdigit(),
    "array entry": lambda p: p.startswith("ledger/arrays/"),
    "table entry": lambda p: p.startswith("ledger/tables/"),
    "activations": lambda p: p.startswith("activations/") and "/c." in p,
    "grams": lambda p: p.startswith("grams/") and "/c." in p,
    "weights": lambda p: p.startswith("weights/") and "/c." in p,
    "parts": lambda p: p.startswith("shared/") and "/c." in p,
    "root": lambda p: p == "zarr.json",
    "metadata": lambda p: p.endswith("zarr.json") and p.startswith(("grams", "weights", "shared")),
    "metadata of activations": lambda p: p.endswith("zarr.json") and p.startswith("activations"),
    "table": lambda p: p.startswith("tables/"),
    "run": lambda p: p.endswith("run.json"),
    "run's table": lambda p: p.startswith("runs/") and p.endswith(".parquet"),
    "map": lambda p: p.startswith("maps/") and ".kept" not in p and p.endswith(".safetensors"),
    "map's record": lambda p: p.startswith("maps/") and ".kept" not in p and p.endswith(".json"),
    "kept": lambda p: p.startswith("maps/.kept/") and p.endswith(".safetensors"),
    "kept's record": lambda p: p.startswith("maps/.kept/") and p.endswith(".json"),
}
DAMAGES = ("flip", "cut", "delete", "swap", "swap with another store")
Change = dict[str, bytes | None]


def write(path: Path, number: int) -> StorePlan:
    """Stores of equal layout and other values: which model's values go by which name depends on `number`."""
    plan = small_plan(
        n_prompts=6, unit_prompts=3, models=("base", "next"), components=("resid", "attn_out", "head_z")
    )
    other = dict(zip(plan.models, list(plan.models)[:: 1 - 2 * number], strict=True))
    with StoreWriter.create_or_resume(path, plan, {}, f"{number}" * 64, durable=False) as writer:
        for model in plan.models:
            for unit in writer.pending(model):
                writer.commit(model, unit, planes(plan, other[model], unit))
            mark = ord(other[model][0]) + number
            writer.write_grams(model, "last_content", "resid", grams(plan, "resid") + mark)
            name = f"weights/{model}/unembedding"
            writer.write_array(name, np.full((6, 10), mark), ("token", "feature"))
        keys = np.random.default_rng(number).random((2, 2, 3, 3))
        shape, dims = keys.shape, ("layer", "head", "head_feature", "feature")
        write_parts(writer, "weights/base/w_k", map(Part, keys), shape, dims, {})
        for table in ("prompts", "notes"):
            writer.write_table(table, prompts(plan).with_columns(pl.lit(number).alias(table)))
        writer.finish({})
    for run in range(2):
        table = pl.DataFrame({"id": ["p0", "p1"], "kl": [0.25 + run, 0.5 + number]})
        digest = f"{run}" * 64
        RunLog(path).append({"run": run}, {"kl": 0.375 + number}, table, {"more": table}, content_hash=digest)
        for kept in (False, True):
            MapLog(path, kept=kept).save(f"map{run}", {"v": run}, {"x": np.full(3, 2.0 * run + number)}, {})
    return plan


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stores")
    for number in range(2):
        write(folder / str(number), number)
    return folder / "0", folder / "1"


def damages(files: dict[str, bytes], other: dict[str, bytes]) -> Iterator[tuple[str, str, Change]]:
    """(kind of file, kind of damage, what files become), chosen by a seeded generator."""
    rng = np.random.default_rng(20)
    for kind, is_one in KINDS.items():
        named = [path for path in files if is_one(path)]
        for damage in DAMAGES * 3:
            path = named[rng.integers(len(named))]
            data = files[path]
            if damage == "flip":
                flipped = bytearray(data)
                flipped[rng.integers(len(data))] ^= int(rng.integers(1, 256))
                yield kind, damage, {path: bytes(flipped)}
            elif damage == "cut":
                yield kind, damage, {path: data[: rng.integers(len(data))]}
            elif damage == "delete":
                yield kind, damage, {path: None}
            elif damage == "swap":
                others = [p for p in named if files[p] != data]
                equal = [p for p in others if len(files[p]) == len(data)] or others
                if equal:
                    partner = equal[rng.integers(len(equal))]
                    yield kind, damage, {path: files[partner], partner: data}
            elif other.get(path, data) != data:
                yield kind, damage, {path: other[path]}


def names(path: str, text: str) -> bool:
    """Whether a message names a file, or the array, run or map that it is of."""
    folder, _, name = path.rpartition("/")
    stem = name.rsplit(".", 1)[0]
    kind = path.split("/", maxsplit=1)[0]
    place = {"runs": f"run {folder.rpartition('/')[2]}", "maps": f"'{stem}'", "tables": f"able {stem} "}
    found = [path, place.get(kind, folder or name)]
    if path == "manifest.json":
        found.append("that the manifest lists")
    if name == "zarr.json":
        found.append(f"{kind} of ")
    return any(part in text for part in found)


def test_two_hundred_damages_are_found_and_named(stores: tuple[Path, Path]) -> None:
    root, another = stores
    files, other = (
        {path: data for path, data in contents(store, manifest=True).items() if data} for store in stores
    )
    assert verify(root) == verify(another) == []
    for step in read_steps(root):
        step()
    done = 0
    for kind, damage, change in damages(files, other):
        for path, data in change.items():
            (root / path).unlink()
            if data is not None:
                (root / path).write_bytes(data)
        what = f"{damage} of {kind}: {', '.join(change)}"
        assert named_by_verify(root, change), what
        told = told_by_reader(root)
        assert told, f"{what}: not found by the reader"
        assert any(names(path, text) for path in change for text in told), f"{what}: {told}"
        for path in change:
            (root / path).write_bytes(files[path])
        done += 1
    assert done >= 200
    assert verify(root) == []


def named_by_verify(root: Path, change: Change) -> bool:
    try:
        found = [str(problem) for problem in verify(root)]
    except StoreError as error:
        found = [str(error)]
    return any(names(path, text) or path in text for path in change for text in found)


def told_by_reader(root: Path) -> list[str]:
    """What reading everything tells: errors, and the problems in the lists of runs and maps."""
    try:
        for step in read_steps(root):
            step()
    except StoreError as error:
        return [str(error)]
    return []


def test_a_forged_checksum_in_a_shard_does_not_hide_a_swap(stores: tuple[Path, Path]) -> None:
    """Two shards of one array change places: same size, same CRC over the file, every chunk whole."""
    root = stores[0]
    one, two = (root / f"activations/base/last_content/sites/c.0.0.{unit}.0" for unit in range(2))
    first, second = one.read_bytes(), two.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    two.write_bytes(first)
    told = told_by_reader(root)
    assert "another chunk lies in its place" in told[0]
    assert {p.array for p in verify(root)} == {"activations/base/last_content/sites"}
    assert len(verify(root)) == 2 * (4 + 3), "every chunk of both shards: four states, three outputs"
    one.write_bytes(first)
    two.write_bytes(second)


def test_new_values_of_equal_layout_are_written(stores: tuple[Path, Path], tmp_path: Path) -> None:
    """The same files are not written again, and other values are not taken for the same files."""
    with StoreWriter.create_or_resume(tmp_path / "s", small_plan(), {}, "a" * 64, durable=False) as writer:
        values = np.arange(12.0).reshape(3, 4)
        shard = tmp_path / "s/weights/base/x/c.0.0"
        writer.write_array("weights/base/x", values, ("a", "b"), compress=False)
        stamp = shard.stat().st_mtime_ns
        writer.write_array("weights/base/x", values, ("a", "b"), compress=False)
        assert shard.stat().st_mtime_ns == stamp
        writer.write_array("weights/base/x", values[::-1], ("a", "b"), compress=False)
    from store.reader import Store

    np.testing.assert_array_equal(Store(tmp_path / "s").array("weights/base/x"), values[::-1])
