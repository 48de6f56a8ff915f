"""The whole mapped patch on other families, against plain Hugging Face hooks one prompt at a time."""

from __future__ import annotations

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.models.loading import from_parts
from engine.patching.mapped_spec import CONTROLS, MappedPatch
from engine.patching.vectors import intervention

pytestmark = pytest.mark.reference

PROMPTS = 16


def lab(family: str) -> MemoryLab:
    """Two random models of a family, 16 prompts of their own lengths, the first 10 the train split."""
    models = {
        name: from_parts(tiny(family, seed=seed), name=name) for seed, name in enumerate(("base", "tuned"))
    }
    ids = [random_tokens(1, 6 + i % 5, seed=i)[0].tolist() for i in range(PROMPTS)]
    at = [len(row) - 1 - (i % 3) for i, row in enumerate(ids)]
    split = ["train"] * 10 + ["validation"] * 6
    prompts = pl.DataFrame({"id": [f"p{i}" for i in range(PROMPTS)], "split": split})
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, at), prompts)


@pytest.mark.parametrize("family", ["gemma2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("component", ["resid_pre", "attn_out", "mlp_out"])
@pytest.mark.parametrize("read_at", ["patched", "decision"])
def test_every_kind_equals_plain_hooks(family: str, component: str, read_at: str) -> None:
    here = lab(family)
    wanted = MappedPatch(
        target="tuned",
        source="base",
        component=component,  # type: ignore[arg-type]
        layer=1,
        read_at=read_at,  # type: ignore[arg-type]
        alphas=(0.7, 1.3),
        n_boot=100,
    )
    result = wanted.run(here)
    every = result.tables["kl"]
    target, moved = here.models["tuned"], 0
    for kind, alpha in every.select("kind", "alpha").unique().rows():
        site, vectors, places = intervention(here, wanted, [2, 12], alpha, kind)
        for row, vector, at in zip((2, 12), vectors, places.tolist(), strict=True):
            ids = here.ids["tuned"][row]
            read = at if read_at == "patched" else len(ids) - 1
            before = patch_oracle.log_probs(target.model, ids, read)[0]
            with patch_oracle.patched(target.taps, site, at, torch.as_tensor(vector)[None]):
                after = patch_oracle.log_probs(target.model, ids, read)[0]
            found = every.filter(
                (pl.col("kind") == kind) & (pl.col("alpha") == alpha) & (pl.col("row") == row)
            )["kl"].item()
            expected = float(patch_oracle.kl(after, before))
            # float32: two orders of summation through the blocks behind the patch
            assert found == pytest.approx(expected, rel=1e-3, abs=1e-5)
            moved += expected > 1e-4
    assert moved > every.select("kind", "alpha").unique().height
    assert {kind for kind in every["kind"].unique() if kind not in ("mapped", "raw")} == set(CONTROLS)
    assert result.summary["self_check"]["passed"]
    assert np.isfinite(every["kl"].to_numpy()).all()
