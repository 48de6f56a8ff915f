"""Scoring subspaces against a weight change: a notebook's way against Patchbay's, in one process, one thread.

    python benchmarks/subspace_scores.py [--quick] [--dense] [--json FILE] [--markdown FILE]

The notebook's way: float32, a full SVD for each candidate and layer, 120 sampled bases for each null. It is
run at one layer, on an eighth of the length for the sums over all layers, and scaled; what it takes is in
memory. Here: float64, everything read from a store that was just written, checksums included. Weights and
activations are random. Process CPU seconds, one run of each.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import subspace_store
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from app.live.subspaces import inputs_of
from engine.subspaces.numbers import REGISTRY, Delta, Inputs, Target, per_layer, prepare, sweep
from store.reader import Store

Array = NDArray[np.float32]

COMPANIONS = {
    "qk_circuit_per_head",
    "qk_and_chars_clusters",
    "act_ceiling",
    "dW_o_proj_ceiling",
    "dW_down_proj_ceiling",
    "dW_combined_ceiling",
}
DRAWS = 120


@dataclass(frozen=True)
class Shape:
    """Sizes of model and study; `distinct` layers of weights are kept in memory and taken in turn."""

    layers: int = 28
    d: int = 1024
    d_ff: int = 3072
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151_936
    prompts: int = 40
    tokens: int = 64
    rank: int = 16
    distinct: int = 3


QUICK = Shape(4, 256, 768, 4, 2, 64, 8000, 40, 24, 8, 2)


def cpu(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def made(shape: Shape, dense: bool) -> Inputs:
    """Random inputs of this shape; the change has rank `rank` in both tensors, or is a full matrix."""
    rng = np.random.default_rng(0)
    s, keys, width = shape, shape.kv_heads * shape.head_dim, shape.heads * shape.head_dim

    def some(*size: int) -> list[Array]:
        return [rng.standard_normal(size, dtype=np.float32) for _ in range(s.distinct)]

    sizes = {
        "q_proj": (width, s.d),
        "k_proj": (keys, s.d),
        "v_proj": (keys, s.d),
        "o_proj": (s.d, width),
        "up_proj": (s.d_ff, s.d),
        "gate_proj": (s.d_ff, s.d),
        "down_proj": (s.d, s.d_ff),
    }
    sizes |= {f"{name}_norm": (s.d,) for name in ("attn", "mlp")}
    held = {name: some(*size) for name, size in sizes.items()}
    for name in ("positive", "negative"):
        held[f"{name}_tokens"] = some(s.prompts, s.tokens, s.d)
        weights = some(s.prompts, s.tokens)
        held[f"{name}_attention"] = [w**2 / (w**2).sum(axis=1, keepdims=True) for w in weights]
    items = {name: _in_turn(arrays) for name, arrays in held.items()}
    rows = ("clean", "positive", "negative", "clean_mlp_input", "positive_mlp_input", "negative_mlp_input")
    acts = {name: rng.standard_normal((s.layers, s.prompts, s.d), dtype=np.float32) for name in rows}
    label = rng.standard_normal((2, s.layers, s.prompts, s.d), dtype=np.float32)
    items |= {name: per_layer(values) for name, values in acts.items()}
    unembedding = rng.standard_normal((s.vocabulary, s.d), dtype=np.float32)
    deltas = [_change(rng, s, dense) for _ in range(s.distinct)]
    target = Target(per_layer(label[0]), per_layer(label[1]), lambda layer: deltas[layer % s.distinct])
    return Inputs(
        s.layers,
        s.d,
        s.heads,
        s.kv_heads,
        target,
        unembedding=lambda _: unembedding,
        start_embedding=lambda _: unembedding[0],
        **items,
    )


def _in_turn(arrays: list[Array]) -> Callable[[int], Array]:
    return lambda layer: arrays[layer % len(arrays)]


def _change(rng: np.random.Generator, s: Shape, dense: bool) -> dict[str, Delta]:
    widths = {"o_proj": s.heads * s.head_dim, "down_proj": s.d_ff}
    if dense:
        return {
            name: Delta(rng.standard_normal((s.d, width), dtype=np.float32)) for name, width in widths.items()
        }
    return {
        name: Delta(
            rng.standard_normal((s.d, s.rank), dtype=np.float32),
            rng.standard_normal((s.rank, width), dtype=np.float32),
        )
        for name, width in widths.items()
    }


def left(matrix: Array, k: int = 8) -> Array:
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :k]


def right(matrix: Array, k: int = 8) -> Array:
    return np.linalg.svd(matrix, full_matrices=False)[2][:k].T


def pca(rows: Array) -> Array:
    return right(rows - rows.mean(axis=0))


def plain_weights(inputs: Inputs, layer: int) -> list[Array]:
    """Bases from weights of one layer, a full SVD each; what is taken away is a given subspace."""
    got = {
        name: np.asarray(getattr(inputs, f"{name}_proj")(layer))
        for name in ("q", "k", "v", "o", "up", "gate", "down")
    }
    groups = inputs.n_heads // inputs.n_kv_heads
    k, v = (
        np.repeat(got[n].reshape(inputs.n_kv_heads, -1, inputs.d), groups, axis=0).reshape(-1, inputs.d)
        for n in "kv"
    )
    written = np.concatenate([got["o"], got["down"]], axis=1)
    reads = np.concatenate([got[n] for n in ("q", "k", "v", "up", "gate")])
    x = np.asarray(inputs.clean_mlp_input(layer))  # type: ignore[misc]
    gate = inputs.activation(x @ got["gate"].T)
    forbidden = np.linalg.eigh(reads.T @ reads)[1][:, -64:]
    outside = np.eye(inputs.d, dtype=np.float32) - forbidden @ forbidden.T
    return [
        right(got["up"]),
        right(got["gate"]),
        right(np.concatenate([got["q"], got["k"], got["v"]])),
        right(reads),
        right(np.concatenate([got["k"], got["v"]])),
        left(written),
        left(got["o"]),
        left(got["down"]),
        *(left(outside @ written) for _ in range(4)),
        left(got["o"] @ v),
        left(got["down"] @ got["up"]),
        left(got["down"] @ (gate.mean(axis=0)[:, None] * got["up"])),
        left(got["q"].T @ k),
    ]


def plain_activations(inputs: Inputs, layer: int) -> list[Array]:
    """Bases from activations of one layer; clusters and rotation cost little and are left out."""
    one = {name: np.asarray(getattr(inputs, name)(layer)) for name in ("clean", "positive", "negative")}
    first, second = (np.asarray(getattr(inputs, f"{p}_tokens")(layer)) for p in ("positive", "negative"))
    a, b = (np.asarray(getattr(inputs, f"{p}_attention")(layer)) for p in ("positive", "negative"))
    rows = (first - second).reshape(-1, inputs.d)
    weights = (np.minimum(a, b), np.maximum(a, b), np.abs(a - b), np.minimum(a, b))
    weighed = [pca(rows * np.sqrt(weight.reshape(-1, 1))) for weight in weights]
    return [
        *(pca(values) for values in one.values()),
        *(pca(one["positive"] - one["negative"]) for _ in range(4)),
        *weighed,
    ]


def plain_nulls(inputs: Inputs, layer: int, times: int) -> None:
    """Sampled bases on the label, the label outside clean directions, both tensors, and both at unit norm."""
    rng = np.random.default_rng(layer)
    rows = np.asarray(inputs.target.label(layer))
    clean = pca(np.asarray(inputs.clean(layer)))  # type: ignore[misc]
    change = [
        np.asarray(c.left if c.right is None else c.left @ c.right)
        for c in inputs.target.delta(layer).values()
    ]
    both = np.concatenate([c / np.linalg.norm(c) for c in change], axis=1)
    for matrix in (rows.T, *change, both):
        for _ in range(times):
            basis = np.linalg.qr(rng.standard_normal((inputs.d, 8), dtype=np.float32))[0]
            ((basis.T @ matrix) ** 2).sum()
    outside = rows - rows @ clean @ clean.T
    for _ in range(times):
        basis = np.linalg.qr(rng.standard_normal((inputs.d, 8), dtype=np.float32))[0]
        basis = np.linalg.qr(basis - clean @ (clean.T @ basis))[0]
        ((outside @ basis) ** 2).sum()


def plain_globals(inputs: Inputs, shape: Shape) -> float:
    """Seconds of the SVDs over all layers, from an eighth of their length: unembedding, all writes twice."""
    eighth = shape.vocabulary // 8
    weight = np.asarray(inputs.unembedding(0))[:eighth]  # type: ignore[misc]
    length = shape.layers * (shape.heads * shape.head_dim + shape.d_ff)
    columns = np.random.default_rng(1).standard_normal((shape.d, length // 8), dtype=np.float32)
    return 8 * (cpu(lambda: right(weight)) + 2 * cpu(lambda: left(columns)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small model")
    parser.add_argument("--folder", type=Path, default=None, help="where the store is written and removed")
    parser.add_argument("--dense", action="store_true", help="a change of full rank instead of factors")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--markdown", type=Path, default=None)
    chosen = parser.parse_args()
    shape = QUICK if chosen.quick else Shape()
    names = [name for name in REGISTRY if name not in COMPANIONS]
    # two threads on a busy machine measure the scheduler
    with threadpool_limits(1), TemporaryDirectory(dir=chosen.folder) as folder:
        root = subspace_store.write(Path(folder) / "store", shape, dense=chosen.dense)
        seconds = measured(root, made(shape, chosen.dense), shape, names)
    text = table(seconds, shape, names)
    print(text)
    if chosen.markdown:
        chosen.markdown.write_text(text)
    if chosen.json:
        chosen.json.write_text(json.dumps({"workload": vars(shape), "seconds": seconds}, indent=1))


def measured(root: Path, inputs: Inputs, shape: Shape, names: list[str]) -> dict[str, float]:
    """CPU seconds of every part; `inputs` for the plain way."""
    alone = cpu(lambda: sweep(inputs_of(Store(root)), names, k=8, broad=64))
    start = time.process_time()
    prepared = prepare(inputs_of(Store(root)), names, widest=64, broad=64)
    built = time.process_time() - start
    first = cpu(lambda: prepared.scores(8))
    sliders = {f"k = {k}": cpu(lambda k=k: prepared.scores(k, clean=8)) for k in (4, 16, 32, 64)}
    assert not prepared.left_out, prepared.left_out
    layers = shape.layers
    svds = (cpu(lambda: plain_weights(inputs, 1)) + cpu(lambda: plain_activations(inputs, 1))) * layers
    svds += plain_globals(inputs, shape)
    nulls = cpu(lambda: plain_nulls(inputs, 1, DRAWS // 4)) * 4 * layers
    return {"alone": alone, "prepare": built, "first": first, **sliders, "svds": svds, "nulls": nulls}


def table(seconds: dict[str, float], shape: Shape, names: list[str]) -> str:
    """The seconds as Markdown."""
    alone, every = seconds["alone"], seconds["prepare"] + seconds["first"]
    shared, each = (seconds["svds"] + times * seconds["nulls"] for times in (1, len(names)))
    rows = [
        ("sweep", each, alone, f"full SVDs; {DRAWS} sampled bases for each candidate, layer and score"),
        ("sweep", shared, alone, f"full SVDs; {DRAWS} sampled bases for each layer and score, shared"),
        ("sweep, ready for every k ≤ 64", shared, every, "the same, for one k"),
    ]
    rows += [
        (f"whole table at {name}", shared, value, "everything again")
        for name, value in seconds.items()
        if name.startswith("k =")
    ]
    return "\n".join(
        [
            f"{len(names)} candidates × {shape.layers} layers, d = {shape.d}, d_ff = {shape.d_ff}, "
            f"{shape.prompts} fit and {shape.prompts} eval prompts of {shape.tokens} tokens, "
            f"{shape.vocabulary} words; k = 8, broad 64; one thread, process CPU seconds.",
            "",
            "| task | plain | here, from the store | ratio | the plain way |",
            "|---|---|---|---|---|",
            *(
                f"| {task} | {plain:.0f} | {fast:.3g} | {plain / fast:.0f} | {how} |"
                for task, plain, fast, how in rows
            ),
            "",
            f"Plain: {seconds['svds']:.0f} s of SVDs and {seconds['nulls']:.0f} s of shared nulls, one layer "
            "run and scaled.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
