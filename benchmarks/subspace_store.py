"""A store in the shape that precompute.py gives subspace scores, with random values, for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.build.weights import DELTA_SCHEMA
from app.live.subspaces import PLACE, PROMPTS, TOKENS, label_name
from app.live.weight_tables import delta_table
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

Array = NDArray[np.float32]
WEIGHT, STREAM = ("layer", "out", "in"), ("layer", "prompt", "feature")


class Sizes(Protocol):
    """What has to be known of the model and the study."""

    layers: int
    d: int
    d_ff: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    prompts: int
    tokens: int
    rank: int


def write(root: Path, s: Sizes, *, dense: bool) -> Path:
    """Writes it; weights and a dense change in bfloat16, streams and factors in float32."""
    models = {name: ModelPlan(s.d, s.layers, s.heads, s.head_dim) for name in ("base", "tuned")}
    plan = StorePlan(models, {"decision": PositionPlan()}, 2 * s.prompts, components=("resid",), layers=(0,))
    study: dict[str, Any] = {"name": "benchmark", "models": {"base": {}, "tuned": {}}}
    with StoreWriter.create_or_resume(root, plan, study, "0" * 64, durable=False) as writer:
        for name, values, dims, attrs, half in arrays(s):
            writer.write_array(name, values, dims, attrs, bfloat16=half)
        rows = [row for layer in range(s.layers) for row in _change(writer, s, layer, dense)]
        writer.write_table(delta_table("tuned"), pl.DataFrame(rows, schema=DELTA_SCHEMA))
        splits = ["fit"] * s.prompts + ["evaluate"] * s.prompts
        used = {"row": range(2 * s.prompts), "split": splits, "persona": [0] * 2 * s.prompts}
        writer.write_table(PROMPTS, pl.DataFrame(used))
        each = {"prompt": range(s.prompts), "start": range(0, s.prompts * s.tokens, s.tokens)}
        counted = pl.DataFrame(each).with_columns(pl.lit(s.tokens, pl.Int64).alias("count"))
        personas = [counted.with_columns(pl.lit(name).alias("persona")) for name in ("positive", "negative")]
        writer.write_table(TOKENS, pl.concat(personas))
    return root


def arrays(s: Sizes) -> Iterator[tuple[str, Array, tuple[str, ...], dict[str, Any], bool]]:
    """Name, values, axes, attributes, and whether they are kept in bfloat16."""
    rng = np.random.default_rng(0)

    def some(*size: int) -> Array:
        return rng.standard_normal(size, dtype=np.float32)

    keys, width = s.kv_heads * s.head_dim, s.heads * s.head_dim
    heads = ("layer", "head", "head_feature", "feature")
    yield "weights/base/w_q", some(s.layers, s.heads, s.head_dim, s.d), heads, {}, True
    yield "weights/base/w_k", some(s.layers, s.kv_heads, s.head_dim, s.d), heads, {}, True
    for name, count in (("q_norm_gain", s.heads), ("k_norm_gain", s.kv_heads)):
        yield f"weights/base/{name}", some(s.layers, count, s.head_dim), heads[:3], {}, True
    for name in ("attn_norm_gain", "mlp_norm_gain"):
        yield f"weights/base/{name}", some(s.layers, s.d), ("layer", "feature"), {}, True
    yield "weights/base/final_norm_gain", some(s.d), ("feature",), {}, True
    yield "weights/base/unembedding", some(s.vocabulary, s.d), ("token", "feature"), {}, True
    places = {
        "o_proj": {"tensors": [f"o.{i}.weight" for i in range(s.layers)], "transposed": False},
        "down_proj": {"tensors": [f"down.{i}.weight" for i in range(s.layers)], "transposed": False},
        "gate_proj": {"activation": "silu"},
    }
    sizes = {"v_proj": (keys, s.d), "o_proj": (s.d, width), "down_proj": (s.d, s.d_ff)}
    sizes |= {"up_proj": (s.d_ff, s.d), "gate_proj": (s.d_ff, s.d)}
    for name, size in sizes.items():
        yield f"{PLACE}/{name}", some(s.layers, *size), WEIGHT, places.get(name, {}), True
    yield f"{PLACE}/start_embedding", some(s.d), ("feature",), {}, True
    streams = [name + end for name in ("clean", "positive", "negative") for end in ("", "_mlp_input")]
    for name in streams:
        yield f"{PLACE}/{name}", some(s.layers, s.prompts, s.d), STREAM, {}, False
    for which in ("label", "label_fit"):
        yield label_name("tuned", which), some(s.layers, s.prompts, s.d), STREAM, {}, False
    for persona in ("positive", "negative"):
        tokens = s.prompts * s.tokens
        dims = ("layer", "token", "feature")
        yield f"{PLACE}/{persona}_tokens", some(s.layers, tokens, s.d), dims, {}, False
        weights = some(s.layers, s.prompts, s.tokens) ** 2
        weights /= weights.sum(axis=-1, keepdims=True)
        yield f"{PLACE}/{persona}_attention", weights.reshape(s.layers, -1), dims[:2], {}, False


def _change(writer: StoreWriter, s: Sizes, layer: int, dense: bool) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(layer)
    for part, width in (("o", s.heads * s.head_dim), ("down", s.d_ff)):
        name = f"{part}.{layer}.weight"
        shapes = {"dense": (s.d, width)} if dense else {"left": (s.d, s.rank), "right": (s.rank, width)}
        for side, size in shapes.items():
            values = rng.standard_normal(size, dtype=np.float32)
            writer.write_array(f"weights/tuned/delta/{name}/{side}", values, ("out", "in"), bfloat16=dense)
        yield {
            "name": name,
            "layer": layer,
            "shape": [s.d, width],
            "norm": 1.0,
            "relative": 1.0,
            "rank": None if dense else s.rank,
            "error": 0.0,
            "factors_stored": not dense,
            "stored": "dense" if dense else "factors",
        }
