"""What goes into a store comes out, bit by bit, through our reader and through everybody else's."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from synthetic_store import (
    SPECIAL_BITS,
    STUDY,
    expected,
    grams,
    planes,
    prompts,
    sites,
    small_plan,
    write_all,
)

from engine.errors import StoreError
from store.bfloat16 import bits_of, pack, widen
from store.layout import activation_name
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

PIPELINES = {
    "default": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs": "zarrs.ZarrsCodecPipeline",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StorePlan]:
    path = tmp_path_factory.mktemp("store") / "made"
    return path, write_all(path)


def as_float(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_tensorstore(path: Path) -> np.ndarray:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True, read=True).result().read().result()


def test_reader_returns_every_bit(made: tuple[Path, StorePlan]) -> None:
    path, plan = made
    store = Store(path)
    for model in plan.models:
        for position in plan.positions:
            for component, layer in sites(plan, model):
                want = expected(plan, model, position, component, layer)
                got = store.activations(model, component, layer, position, stored=True)
                assert got.dtype == np.uint16
                np.testing.assert_array_equal(got, want)
                floats = store.activations(model, component, layer, position)
                assert floats.dtype == np.float32
                # Compared as bits: NaN payloads and signs of zero count.
                np.testing.assert_array_equal(floats.view(np.uint32), want.astype(np.uint32) << 16)


@pytest.mark.reference
@pytest.mark.parametrize("reader", ["default", "zarrs", "tensorstore"])
def test_other_readers_see_the_same_bits(made: tuple[Path, StorePlan], reader: str) -> None:
    path, plan = made
    for position in plan.positions:
        for leaf in ("sites", "head_z"):
            name = activation_name("tuned", position, leaf)
            if reader == "tensorstore":
                array = read_tensorstore(path / name)
            else:
                with zarr.config.set({"codec_pipeline.path": PIPELINES[reader]}):
                    array = np.asarray(zarr.open_array(path / name, mode="r")[...])
            rows = array_rows(plan, "tuned", position)
            for component, layer in sites(plan, "tuned"):
                if (component == "head_z") != (leaf == "head_z"):
                    continue
                index = plan.states("tuned").index(layer) if leaf == "sites" else layer
                plane = array[plan.sites.index(component), index] if leaf == "sites" else array[index]
                got = plane[rows].reshape(len(rows), -1)
                np.testing.assert_array_equal(got, expected(plan, "tuned", position, component, layer))
            if leaf == "sites":
                # attn_out and mlp_out have no value at the last state: absent chunks read as NaN.
                assert np.isnan(as_float(array[1:, -1])).all()


def array_rows(plan: StorePlan, model: str, position: str) -> np.ndarray:
    """Rows of the Zarr array that hold a prompt's rows, worked out from the counts alone."""
    counts = plan.positions[position].row_counts
    if counts is None:
        return np.arange(plan.n_prompts)
    reserved = plan.rows_per_unit(model, position)
    used = [sum(counts[model][p] for p in plan.prompts_of(unit)) for unit in range(plan.n_units)]
    return np.concatenate([unit * reserved + np.arange(count) for unit, count in enumerate(used)])


@pytest.mark.reference
@pytest.mark.parametrize("reader", ["default", "zarrs", "tensorstore"])
def test_other_readers_see_grams_and_weights(made: tuple[Path, StorePlan], reader: str) -> None:
    path, plan = made
    for name in ("grams/base/last_content/attn_out", "weights/base/unembedding"):
        if reader == "tensorstore":
            array = read_tensorstore(path / name)
        else:
            with zarr.config.set({"codec_pipeline.path": PIPELINES[reader]}):
                array = np.asarray(zarr.open_array(path / name, mode="r")[...])
        np.testing.assert_array_equal(array, Store(path).array(name))
    np.testing.assert_array_equal(Store(path).grams("base", "attn_out"), grams(plan, "attn_out"))


@pytest.mark.reference
def test_zarr_writes_the_chunks_that_we_write(tmp_path: Path) -> None:
    """The same values through zarr's own writer give the same values in our reader."""
    path = tmp_path / "store"
    plan = write_all(path)
    name = activation_name("base", "last_content", "sites")
    array = zarr.open_array(path / name, mode="r")
    twin = zarr.create_array(
        tmp_path / "twin",
        shape=array.shape,
        dtype=array.dtype,
        chunks=array.chunks,
        shards=array.shards,
        compressors=array.compressors,
        chunk_key_encoding={"name": "default", "separator": "."},
        fill_value=array.fill_value,
    )
    twin[...] = array[...]
    ours, theirs = (path / name / "c.0.0.1.0"), (tmp_path / "twin/c.0.0.1.0")
    assert ours.stat().st_size == theirs.stat().st_size
    opened = Store(path)
    opened.activations("base", "resid", 0)  # keeps the indices of our own shards
    # zarr orders the chunks of a shard its own way: give our reader the whole array as zarr wrote it.
    assert ours.read_bytes() != theirs.read_bytes()
    for shard in (tmp_path / "twin").glob("c.*"):
        (path / name / shard.name).write_bytes(shard.read_bytes())
    for component, layer in sites(plan, "base"):
        if component != "head_z":
            got = opened.activations("base", component, layer, stored=True)
            np.testing.assert_array_equal(got, expected(plan, "base", "last_content", component, layer))


@pytest.mark.reference
def test_xarray_opens_positions(made: tuple[Path, StorePlan]) -> None:
    import xarray

    path, plan = made
    data = xarray.open_zarr(
        path, group="activations/base/last_content", consolidated=False, zarr_format=3, chunks=None
    )
    assert data["sites"].dims == ("site", "state", "row", "feature")
    assert data["head_z"].dims == ("layer", "row", "head", "head_feature")
    got = data["sites"].isel(site=plan.sites.index("mlp_out"), state=2).values
    np.testing.assert_array_equal(got, expected(plan, "base", "last_content", "mlp_out", 2))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n_prompts=st.integers(1, 30),
    unit=st.integers(1, 40),
    d=st.integers(1, 40),
    blocks=st.integers(1, 4),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 9),
    dtype=st.sampled_from(["bfloat16", "float32"]),
    components=st.sets(st.sampled_from(["resid", "attn_out", "mlp_out", "head_z"]), min_size=1),
    counts=st.lists(st.integers(0, 90), min_size=30, max_size=30),
    subset=st.booleans(),
)
def test_any_shape_round_trips(
    tmp_path_factory: pytest.TempPathFactory,
    n_prompts: int,
    unit: int,
    d: int,
    blocks: int,
    heads: int,
    head_dim: int,
    dtype: str,
    components: set[str],
    counts: list[int],
    subset: bool,
) -> None:
    path = tmp_path_factory.mktemp("shapes") / "store"
    plan = StorePlan(
        {"m": ModelPlan(d=d, n_layers=blocks, n_heads=heads, head_dim=head_dim)},
        {"decision": PositionPlan(), "tokens": PositionPlan("many", {"m": tuple(counts[:n_prompts])})},
        n_prompts,
        components=tuple(sorted(components)),
        layers=(blocks - 1,) if subset else None,
        unit_prompts=unit,
        dtype=dtype,
    )
    with StoreWriter.create_or_resume(path, plan, STUDY, "0" * 64, durable=False) as writer:
        for number in writer.pending("m"):
            writer.commit("m", number, planes(plan, "m", number))
    store = Store(path)
    for position in plan.positions:
        for component, layer in sites(plan, "m"):
            got = store.activations("m", component, layer, position, stored=True)
            np.testing.assert_array_equal(got, expected(plan, "m", position, component, layer))
    index = store.row_index("m", "tokens")
    assert index["row_count"].to_list() == counts[:n_prompts]
    assert index["row_start"].to_list() == [sum(counts[:p]) for p in range(n_prompts)]


def test_rows_and_heads_are_lazy_selections(made: tuple[Path, StorePlan]) -> None:
    path, _ = made
    store = Store(path)
    for position in ("last_content", "sample(k=4,skip_last=1)"):
        whole = store.activations("tuned", "mlp_out", 1, position, stored=True)
        size = len(whole)
        for rows in ([3], [size - 1, 0, 7, 7], slice(5, 12), np.arange(size)[::-1], [-1], [True] * size):
            got = store.activations("tuned", "mlp_out", 1, position, rows=rows, stored=True)
            np.testing.assert_array_equal(got, whole[rows])
        assert store.activations("tuned", "mlp_out", 1, position, rows=[]).shape == (0, 10)
    heads = store.activations("base", "head_z", 2, stored=True)
    one = store.activations("base", "head_z", 2, head=1, rows=[4, 2], stored=True)
    np.testing.assert_array_equal(one, heads[[4, 2]][:, 3:])
    assert store.activations("base", "head_z", 2, head=1, rows=[]).shape == (0, 3)


def test_states_are_kept_once(made: tuple[Path, StorePlan]) -> None:
    store = Store(made[0])
    for block in store.layers("base"):
        before = store.activations("base", "resid_pre", block, stored=True)
        after = store.activations("base", "resid_post", block, stored=True)
        np.testing.assert_array_equal(before, store.activations("base", "resid", block, stored=True))
        np.testing.assert_array_equal(after, store.activations("base", "resid", block + 1, stored=True))
        np.testing.assert_array_equal(
            store.gram("base", "resid_post", block), store.grams("base", "resid")[block + 1]
        )
    np.testing.assert_array_equal(store.grams("base", "resid_post"), store.grams("base", "resid")[1:])


def test_layer_subset_keeps_only_its_states(tmp_path: Path) -> None:
    plan = write_all(tmp_path / "s", small_plan(layers=(0, 2), models=("base",)))
    store = Store(tmp_path / "s")
    assert (store.layers("base"), store.states("base")) == ([0, 2], [0, 1, 2, 3])
    write_all(tmp_path / "one", small_plan(layers=(2,), models=("base",)))
    assert Store(tmp_path / "one").states("base") == [2, 3]
    got = store.activations("base", "head_z", 2, stored=True)
    np.testing.assert_array_equal(got, expected(plan, "base", "last_content", "head_z", 2))
    with pytest.raises(StoreError, match=r"no such layer .* Expected: 0, 2\. Given: 1"):
        store.activations("base", "attn_out", 1)


def test_float32_rounds_to_nearest_even_and_keeps_exact_values() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        reference = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(pack(values), reference)
    half_way = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert [hex(b) for b in pack(half_way)] == ["0x3f80", "0x3f82"]
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(pack(widen(every)), every)
    low_payload = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(widen(pack(low_payload))).all()
    assert set(SPECIAL_BITS) <= set(every.tolist())


def test_accepted_forms_of_values_are_the_same(tmp_path: Path) -> None:
    plan = small_plan(models=("base",), n_prompts=5, unit_prompts=8, most=1)
    bits = planes(plan, "base", 0)
    forms = {
        "uint16": lambda b: b,
        "int16": lambda b: b.view(np.int16),
        "ml_dtypes": lambda b: b.view(ml_dtypes.bfloat16),
        "float32": widen,
    }
    shards = []
    for name, form in forms.items():
        with StoreWriter.create_or_resume(tmp_path / name, plan, STUDY, "0" * 64, durable=False) as writer:
            values = {p: {k: form(v) for k, v in planes_.items()} for p, planes_ in bits.items()}
            writer.commit("base", 0, values)
        shards.append((tmp_path / name / activation_name("base", "mean", "sites") / "c.0.0.0.0").read_bytes())
    assert len(set(shards)) == 1
    assert bits_of(np.array([1.0])).tolist() == [0x3F80]


def test_whole_arrays_are_accepted_too(tmp_path: Path) -> None:
    plan = small_plan(
        models=("base",), n_prompts=6, unit_prompts=8, most=0, components=("resid", "attn_out", "head_z")
    )
    values = planes(plan, "base", 0)
    whole = {
        position: {
            "sites": np.stack(
                [
                    np.stack([p.get((site, s), np.zeros_like(p["resid", 0])) for s in plan.states("base")])
                    for site in plan.sites
                ]
            ),
            "head_z": np.stack([p["head_z", block] for block in plan.blocks("base")]),
        }
        for position, p in values.items()
    }
    for name, form in (("planes", values), ("whole", whole)):
        with StoreWriter.create_or_resume(tmp_path / name, plan, STUDY, "0" * 64, durable=False) as writer:
            assert writer.commit("base", 0, form)
            assert not writer.commit("base", 0, form), "a unit is written once"
    for file in sorted((tmp_path / "planes").rglob("c.*")):
        assert file.read_bytes() == (tmp_path / "whole" / file.relative_to(tmp_path / "planes")).read_bytes()


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (1200, 1100), (0, 4)])
def test_static_arrays_of_any_dtype(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = (np.random.default_rng(1).standard_normal(shape) * 100).astype(dtype)
    dims = tuple("abc"[: len(shape)])
    with StoreWriter.create_or_resume(tmp_path / "s", small_plan(), STUDY, "0" * 64, durable=False) as writer:
        writer.write_array("weights/base/x", values, dims, {"rank": np.int64(4)})
    store = Store(tmp_path / "s")
    got = store.array("weights/base/x")
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "s/weights/base/x", mode="r")[...], values)
    assert store.attrs("weights/base/x") == {"rank": 4, "dims": list(dims), "shape": list(shape)}


def test_static_bfloat16_comes_back_as_float32(tmp_path: Path) -> None:
    values = widen(np.arange(600, dtype=np.uint16).reshape(30, 20))
    with StoreWriter.create_or_resume(tmp_path / "s", small_plan(), STUDY, "0" * 64, durable=False) as writer:
        writer.write_array("weights/base/w", values, ("row", "feature"), bfloat16=True)
    store = Store(tmp_path / "s")
    np.testing.assert_array_equal(store.array("weights/base/w"), values)
    assert store.array("weights/base/w", stored=True).dtype == np.uint16


def test_store_describes_itself(made: tuple[Path, StorePlan]) -> None:
    path, plan = made
    store = Store(path)
    assert store.complete
    assert store.models == ["base", "tuned"]
    assert store.positions() == list(plan.positions)
    assert store.components() == list(plan.components)
    assert store.model_info("base")["d"] == 10
    assert store.manifest["study"] == STUDY
    assert store.self_checks()[0]["name"] == "check"
    assert store.prompts.equals(prompts(plan))
    assert store.table_names() == ["prompts", *(f"rows-{m}-sample-k-4-skip_last-1" for m in plan.models)]
    assert "grams/base/last_content/resid" in store.array_names()
    assert len([name for name in store.array_names() if name.startswith("activations/")]) == 12
    use = store.disk_use()
    on_disk = sum(p.stat().st_size for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
    in_ledger = sum(p.stat().st_size for p in (path / "ledger").rglob("*.json"))
    assert use["total"] == on_disk - in_ledger
    values = (planes(plan, model, unit) for model in plan.models for unit in range(plan.n_units))
    assert use["raw"] == sum(
        a.nbytes for unit in values for position in unit.values() for a in position.values()
    )


def test_reading_through_a_file_url(made: tuple[Path, StorePlan]) -> None:
    assert Store(f"file://{made[0]}").complete
