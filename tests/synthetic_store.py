"""Small stores of random bits with a known content, for the tests of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from store.maps import MapLog
from store.reader import Store
from store.runs import RunLog
from store.shared import Part, write_parts
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

Planes = dict[tuple[str, int], np.ndarray]
FINGERPRINT = "ab" * 32
STUDY = {"name": "synthetic", "seed": 3, "capture": {"dtype": "bfloat16"}}
SPECIAL_BITS = (0x0000, 0x8000, 0x0001, 0x8001, 0x007F, 0x7F80, 0xFF80, 0x7FC0, 0xFFC1, 0x7F81, 0x7F7F)
"""±0, denormals, ±inf, quiet and signalling NaNs with payload, and the largest finite value."""


def small_plan(
    *,
    n_prompts: int = 21,
    unit_prompts: int = 8,
    models: tuple[str, ...] = ("base", "tuned"),
    layers: tuple[int, ...] | None = None,
    dtype: str = "bfloat16",
    components: tuple[str, ...] = ("resid", "attn_out", "mlp_out", "head_z"),
    most: int = 5,
) -> StorePlan:
    """Three blocks of width 10, two heads of width 3 (2·3 is not 10 on purpose), one ragged position."""
    model = ModelPlan(d=10, n_layers=3, n_heads=2, head_dim=3)
    counts = {name: tuple((5 * p + len(name)) % (most + 1) for p in range(n_prompts)) for name in models}
    positions = {
        "last_content": PositionPlan(),
        "mean": PositionPlan("mean"),
        "sample(k=4,skip_last=1)": PositionPlan("many", counts),
    }
    return StorePlan(
        dict.fromkeys(models, model),
        positions,
        n_prompts,
        components=components,
        layers=layers,
        unit_prompts=unit_prompts,
        dtype=dtype,
    )


def planes(plan: StorePlan, model: str, unit: int) -> dict[str, Planes]:
    """Random stored values of one unit, the same on every call: position -> (component, layer) -> rows."""
    name = hashlib.sha256(f"{model}/{unit}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(name, np.uint32))
    sizes = plan.models[model]
    result: dict[str, Planes] = {}
    for position in plan.positions:
        rows = plan.rows(model, position, unit)
        result[position] = {}
        for component, layer in sites(plan, model):
            width = sizes.n_heads * sizes.head_dim if component == "head_z" else sizes.d
            if plan.dtype == "float32":
                values = rng.standard_normal((rows, width), dtype=np.float32)
            else:
                values = rng.integers(0, 2**16, (rows, width), dtype=np.uint16)
                special = np.resize(np.array(SPECIAL_BITS, np.uint16), values.shape)
                values = np.where(rng.random(values.shape) < 0.2, special, values)
            result[position][component, layer] = values
    return result


def sites(plan: StorePlan, model: str) -> Iterator[tuple[str, int]]:
    for component in plan.components:
        for layer in plan.states(model) if component == "resid" else plan.blocks(model):
            yield component, layer


def expected(plan: StorePlan, model: str, position: str, component: str, layer: int) -> np.ndarray:
    """What the store must return in its stored dtype, all units."""
    units = range(plan.n_units)
    return np.concatenate([planes(plan, model, unit)[position][component, layer] for unit in units])


def grams(plan: StorePlan, component: str) -> np.ndarray:
    count = len(plan.states("base") if component == "resid" else plan.blocks("base"))
    rng = np.random.default_rng(5)
    return rng.standard_normal((count, plan.n_prompts, plan.n_prompts), dtype=np.float32)


def prompts(plan: StorePlan) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"p{i}" for i in range(plan.n_prompts)], "text": ["你好 hello"] * plan.n_prompts}
    )


def write_all(path: Path, plan: StorePlan | None = None, *, finish: bool = True) -> StorePlan:
    """Goes on with the store at `path` until everything is in it."""
    plan = plan or small_plan()
    with StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer:
        for model in plan.models:
            for unit in writer.pending(model):
                writer.commit(model, unit, planes(plan, model, unit))
        for component in plan.components:
            writer.write_grams(next(iter(plan.models)), "last_content", component, grams(plan, component))
        weights = np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10)
        writer.write_array("weights/base/unembedding", weights, ("token", "feature"), {"meaning": "test"})
        keys, factors = np.random.default_rng(6).random((2, 4, 2, 3, 3), dtype=np.float32)
        shape, dims = keys.shape, ("layer", "head", "head_feature", "feature")
        named = write_parts(writer, "weights/base/w_k", map(Part, keys), shape, dims, {"meaning": "test"})
        parts = [Part(factor, keys=key) for factor, key in zip(factors, named, strict=True)]
        write_parts(writer, "weights/base/kernel_right", parts, shape, dims, {"meaning": "test"})
        writer.write_table("prompts", prompts(plan))
        if finish:
            writer.finish(
                {
                    "self_checks": [{"name": "check", "value": 0.0, "limit": 1.0, "passed": True}],
                    "seconds": 1.5,
                }
            )
    return plan


def contents(root: Path, *, manifest: bool = False) -> dict[str, bytes]:
    """Every file of a store, hidden ones included."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in found.items() if manifest or name != "manifest.json"}


def read_steps(path: Path) -> Iterator[Callable[[], object]]:
    """Everything that pages read of a store, one step after another."""
    store = Store(path)
    yield store.self_checks
    yield store.array_names
    yield lambda: store.prompts
    yield store.disk_use
    yield store.gram_prompts
    for model in store.models:
        yield partial(store.model_info, model)
        yield partial(store.rounding, model)
        yield partial(store.committed, model)
        for position in store.positions():
            yield partial(store.row_index, model, position)
            for component in store.components():
                yield partial(store.has_grams, model, component, position)
                for layer in store.states(model) if component == "resid" else store.layers(model):
                    yield partial(store.activations, model, component, layer, position)
    for name in store.array_names():
        yield partial(store.attrs, name)
        if not name.startswith("activations/"):
            yield partial(store.array, name)
        if name.startswith("grams/"):
            yield partial(store.grams, store.models[0], name.split("/")[-1])
            yield partial(store.gram, store.models[0], name.split("/")[-1], 1)
    for table in store.table_names():
        yield partial(store.table, table)
    runs = RunLog(path)
    yield runs.list
    for run_id in runs.ids():
        yield partial(runs.open, run_id)
    for log in (MapLog(path), MapLog(path, kept=True)):
        yield log.list
        for name in log.names():
            yield partial(log.open, name)
