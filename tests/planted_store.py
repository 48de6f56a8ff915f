"""A small store with planted structure, written by the real writer without any model.

`tuned` equals `base` up to block 1 and has block 2's attention output changed, so every number that a
page shows has a known answer: CKA 1 up to block 1, below 1 from block 2 on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from app.build.grams import derive
from store.ledger import ledger_digests
from store.provenance import read_manifest, write_manifest
from store.reader import Store
from store.sources import LocalSource
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

LAYERS, WIDTH, HEADS, HEAD_DIM, PAIRS = 5, 24, 3, 6, 24
CHANGED = 2
CHECKS = [
    {"name": "self-patch KL = 0", "value": 1.2e-8, "limit": 1e-6, "passed": True, "detail": "nats"},
    {"name": "residual identity", "value": 3e-7, "limit": 1e-5, "passed": True, "detail": "relative"},
]


def prompts_table() -> pl.DataFrame:
    """Pairs of an English and a Chinese prompt in three categories, split by pair."""
    rows = [
        {
            "id": f"p{pair}-{language}",
            "pair_id": f"p{pair}",
            "language": language,
            "category": ("add", "sub", "mul")[pair % 3],
            "split": "validation" if pair % 3 == pair % 2 else "train",
            "text": f"{language} question {pair}",
        }
        for pair in range(PAIRS)
        for language in ("en", "zh")
    ]
    return pl.DataFrame(rows)


def streams(seed: int = 0) -> dict[str, dict[tuple[str, int], np.ndarray]]:
    """{model: {(component, block or state): (prompt, width)}} with the planted change at block 2."""
    rng = np.random.default_rng(seed)
    n = 2 * PAIRS
    language = np.tile([0.0, 1.0], PAIRS)[:, None] * rng.normal(size=WIDTH)
    problem = np.repeat(rng.normal(size=(PAIRS, WIDTH)), 2, axis=0)
    adds = [
        {part: rng.normal(size=(n, WIDTH)) * 0.4 + 0.3 * problem for part in ("attn_out", "mlp_out")}
        for _ in range(LAYERS)
    ]
    found: dict[str, dict[tuple[str, int], np.ndarray]] = {}
    for model in ("base", "tuned"):
        state = problem + language
        values = {("resid", 0): state}
        for block in range(LAYERS):
            attn, mlp = adds[block]["attn_out"], adds[block]["mlp_out"]
            if model == "tuned" and block == CHANGED:
                attn = attn + 2.0 * np.random.default_rng(seed + 1).normal(size=(n, WIDTH))
            state = state + attn + mlp
            values |= {("attn_out", block): attn, ("mlp_out", block): mlp, ("resid", block + 1): state}
            values["head_z", block] = attn[:, : HEADS * HEAD_DIM].copy()
        found[model] = {key: value.astype(np.float32) for key, value in values.items()}
    return found


def build_store(
    path: Path,
    *,
    finish: bool = True,
    checks: list[dict[str, Any]] | None = None,
    subspaces: bool = False,
    similarity_prompts: int | None = None,
    say: Callable[[str], str] = str,
) -> Path:
    """Write the planted store with the real writer; with `subspaces`, what tells that they can be scored;
    with `similarity_prompts` what similarity needs is derived as precompute does, of a sample of that many.
    `say` rewrites every text that a user may choose freely.
    """
    prompts, values = prompts_table(), streams()
    spoken = pl.col("id", "pair_id", "language", "category", "text")
    prompts = prompts.with_columns(spoken.map_elements(say, return_dtype=pl.String))
    sizes = ModelPlan(WIDTH, LAYERS, HEADS, HEAD_DIM)
    plan = StorePlan(
        models={"base": sizes, "tuned": sizes},
        positions={"last_content": PositionPlan("one"), "mean": PositionPlan("mean")},
        n_prompts=prompts.height,
        unit_prompts=16,
        dtype="float32",
    )
    study: dict[str, Any] = {"name": say("planted"), "seed": 0, "models": {"base": {}, "tuned": {}}}
    if similarity_prompts is not None:
        study["capture"] = {"similarity_prompts": similarity_prompts}
    with StoreWriter.create_or_resume(path, plan, study, "f" * 64, durable=False) as writer:
        writer.write_table("prompts", prompts)
        for model in ("base", "tuned"):
            for unit in writer.pending(model):
                rows = list(plan.prompts_of(unit))
                part = {key: value[rows] for key, value in values[model].items()}
                writer.commit(model, unit, {"last_content": part, "mean": part})
            _write_static(writer, model, values[model], keep_grams=similarity_prompts is None)
        if similarity_prompts is not None:
            derive(Store(path), writer)
        if subspaces:
            rows = {"row": [0, 1], "split": ["train", "validation"], "persona": [0, None]}
            writer.write_table("subspace-prompts", pl.DataFrame(rows))
            label = np.ones((LAYERS, 1, WIDTH), dtype=np.float32)
            writer.write_array("subspaces/label/tuned", label, ("layer", "prompt", "feature"))
        if finish:
            writer.finish(manifest(CHECKS if checks is None else checks, say))
    return path


def manifest(checks: list[dict[str, Any]], say: Callable[[str], str] = str) -> dict[str, Any]:
    """Provenance as precompute records it."""
    facts = {"dtype": "float32", "attention": "sdpa", "class": say("Planted"), "revision": say("abc1234")}
    checks = [check | {"detail": say(str(check["detail"]))} for check in checks]
    return {
        "device": say("cpu"),
        "created": "2026-01-02 03:04:05",
        "command": say("tests"),
        "self_checks": checks,
        "models": {"base": facts, "tuned": facts},
    }


def _write_static(
    writer: StoreWriter, model: str, values: dict[tuple[str, int], np.ndarray], *, keep_grams: bool
) -> None:
    for component in ("resid", "attn_out", "mlp_out", "head_z") if keep_grams else ():
        layers = range(LAYERS + (component == "resid"))
        stack = np.stack([values[component, layer] for layer in layers])
        centred = stack - stack.mean(axis=1, keepdims=True)
        found = np.einsum("lnd,lmd->lnm", centred, centred).astype(np.float32)
        for position in ("last_content", "mean"):
            writer.write_grams(model, position, component, found)
    rng = np.random.default_rng(8)
    unembedding = rng.normal(size=(40, WIDTH)).astype(np.float32)
    writer.write_array(f"weights/{model}/unembedding", unembedding, ("token", "feature"))
    gain = rng.uniform(0.5, 2.0, WIDTH).astype(np.float32)
    writer.write_array(f"weights/{model}/final_norm_gain", gain, ("feature",))
    rng = np.random.default_rng(7)
    factors = rng.normal(size=(LAYERS, HEADS, WIDTH, HEAD_DIM))
    right = np.linalg.qr(factors)[0].astype(np.float32)
    sigma = np.sort(rng.uniform(0.5, 2.0, size=(LAYERS, HEADS, HEAD_DIM)))[..., ::-1].astype(np.float32)
    writer.write_array(f"weights/{model}/kernel_right", right, ("layer", "head", "feature", "rank"))
    writer.write_array(
        f"weights/{model}/kernel_sigma", np.ascontiguousarray(sigma), ("layer", "head", "rank")
    )
    gates = np.random.default_rng(9).normal(size=(LAYERS, 2 * WIDTH, WIDTH))
    grams = gates.transpose(0, 2, 1) @ gates
    writer.write_array(
        f"weights/{model}/gate_gram", grams.astype(np.float32), ("layer", "direction", "other_direction")
    )
    moments = np.stack([np.trace(grams, axis1=1, axis2=2), (grams**2).sum(axis=(1, 2))], axis=1)
    writer.write_array(f"weights/{model}/gate_moments", moments, ("layer", "moment"))


def remove_arrays(store: Path, folder: str) -> None:
    """Makes a store one that never had the arrays below a folder, such as "weights"."""
    shutil.rmtree(store / folder)
    shutil.rmtree(store / "ledger" / "arrays" / folder)
    source = LocalSource(store)
    write_manifest(source, read_manifest(source) | {"ledger": ledger_digests(source)})
