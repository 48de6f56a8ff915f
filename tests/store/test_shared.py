"""Parts kept once: they read as an array, bit by bit, with Patchbay and with zarr, and damage is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from engine.errors import StoreError
from store.manifest import verify
from store.reader import Store
from store.shared import Part, times_keys, write_parts
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

DIMS = ("layer", "out", "in")


@pytest.fixture
def writer(tmp_path: Path) -> StoreWriter:
    plan = StorePlan({"base": ModelPlan(8, 3, 2, 4)}, {"last": PositionPlan()}, n_prompts=2)
    return StoreWriter.create_or_resume(tmp_path / "store", plan, {}, "f" * 64, durable=False)


def values(seed: int, shape: tuple[int, ...] = (3, 4, 5)) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(writer: StoreWriter, name: str, array: np.ndarray, **more: bool) -> list[str]:
    parts = [Part(entry, **more) for entry in array]
    return write_parts(writer, name, parts, array.shape, DIMS, {"meaning": "m"})


def test_equal_entries_are_kept_once_and_read_as_an_array(writer: StoreWriter) -> None:
    base = values(0)
    tuned = base.copy()
    tuned[1] += 1
    one, two = write(writer, "weights/base/w", base), write(writer, "weights/tuned/w", tuned)
    assert (one[0], one[2]) == (two[0], two[2])
    assert one[1] != two[1]
    store = Store(writer.root)
    assert len(list((writer.root / "shared").iterdir())) == 4 + 1, "four parts, and the group's metadata"
    np.testing.assert_array_equal(store.array("weights/base/w"), base)
    np.testing.assert_array_equal(store.array("weights/tuned/w"), tuned)
    np.testing.assert_array_equal(store.array("weights/tuned/w", first=1), tuned[1])
    with pytest.raises(StoreError, match=r"no such entry.*0\.\.2 of weights/base/w"):
        store.array("weights/base/w", first=3)
    assert store.attrs("weights/base/w")["shape"] == [3, 4, 5]
    assert store.attrs("weights/base/w")["dims"] == list(DIMS)
    assert store.attrs("weights/base/w")["meaning"] == "m"
    assert [name for name in store.array_names() if "w" in name] == ["weights/base/w", "weights/tuned/w"]
    use = store.disk_use()
    assert use["weights"] > 4 * base[0].nbytes // 2
    assert "shared" not in use


def test_zarr_reads_the_parts_that_the_group_names(writer: StoreWriter) -> None:
    array = values(1)
    write(writer, "weights/base/w", array)
    group = zarr.open_group(str(writer.root / "weights/base/w"), mode="r")
    for number, key in enumerate(group.attrs["parts"]):  # type: ignore[arg-type, var-annotated]
        part = zarr.open_array(str(writer.root / "shared" / str(key)), mode="r")
        np.testing.assert_array_equal(part[:], array[number])


def test_what_differs_in_kind_is_not_the_same_part() -> None:
    zero = np.zeros((2, 3), dtype=np.float32)
    kinds = [
        Part(zero),
        Part(zero, bfloat16=True),
        Part(zero.astype(np.float64)),
        Part(zero.reshape(3, 2)),
        Part(zero, keys="a"),
        Part(zero, keys="b"),
        Part(-zero),
    ]
    assert len({part.key for part in kinds}) == len(kinds)
    assert Part(zero.astype(np.uint16), bfloat16=True).key == kinds[1].key, "bits, or what they stand for"


def test_bfloat16_parts_keep_every_bit(writer: StoreWriter) -> None:
    bits = np.arange(2 * 4 * 5, dtype=np.uint16).reshape(2, 4, 5) * 997
    write(writer, "weights/base/w", bits, bfloat16=True)
    store = Store(writer.root)
    np.testing.assert_array_equal(store.array("weights/base/w", stored=True), bits)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(store.array("weights/base/w"), wide)


def test_a_factor_reads_as_its_product_with_the_keys(writer: StoreWriter) -> None:
    keys, factors = values(2, (3, 2, 4, 8)), values(3, (3, 6, 4, 4))
    named = write_parts(
        writer, "weights/base/w_k", [Part(k) for k in keys], keys.shape, ("layer", "g", "m", "d"), {}
    )
    parts = [Part(f, keys=k) for f, k in zip(factors, named, strict=True)]
    shape = (3, 6, 8, 4)
    write_parts(writer, "weights/base/right", parts, shape, ("layer", "head", "feature", "rank"), {})
    found = Store(writer.root).array("weights/base/right")
    for layer, head in np.ndindex(3, 6):
        wanted = keys[layer, head // 3].astype(np.float64).T @ factors[layer, head]
        np.testing.assert_allclose(found[layer, head], wanted, atol=1e-6)  # float32 sums of 4
    assert times_keys(keys[0], factors[0]).shape == shape[1:]


def test_a_lost_part_is_noticed_by_has_array_and_by_verify(writer: StoreWriter) -> None:
    keys = write(writer, "weights/base/w", values(4))
    assert writer.has_array("weights/base/w")
    plan, root = writer.plan, writer.root
    writer.close()
    assert verify(root) == []
    (shard,) = (root / "shared" / keys[1]).glob("c*")
    good = shard.read_bytes()
    shard.write_bytes(good[:10] + bytes([good[10] ^ 1]) + good[11:])
    assert [problem.array for problem in verify(root)] == [f"shared/{keys[1]}"]
    with pytest.raises(StoreError, match=rf"shared/{keys[1]}.* is damaged"):
        Store(root).array("weights/base/w")
    shard.unlink()
    again = StoreWriter.create_or_resume(root, plan, {}, "f" * 64, durable=False)
    assert not again.has_array("weights/base/w")
    write(again, "weights/base/w", values(4))
    assert again.has_array("weights/base/w")
    assert shard.read_bytes() == good


def test_damaged_references_are_refused(writer: StoreWriter) -> None:
    write(writer, "weights/base/w", values(5))
    path = writer.root / "weights/base/w/zarr.json"
    path.write_bytes(path.read_bytes().replace(b'"m"', b'"n"'))
    with pytest.raises(StoreError, match=r"weights/base/w.*metadata.*damaged"):
        Store(writer.root).array("weights/base/w")
