"""Patch maps against TransformerLens' `generic_activation_patch`, layer × token, on the same weights."""

from __future__ import annotations

import warnings

import numpy as np
import polars as pl
import pytest
import torch
from lens_bridge import bridge
from memory_lab import Letters, MemoryLab
from tiny_models import LAYERS, random_tokens, tiny

from engine.models.loading import from_parts
from engine.patch_map.run import run
from engine.patch_map.spec import PatchMap

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # that library's own deprecations are not ours to mend
]
TOKENS = 9
LIMIT = 1e-4
SITES = ("resid_pre", "attn_out", "mlp_out")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_maps_are_those_of_generic_activation_patch(family: str) -> None:
    from transformer_lens import patching

    receiving, donor = (random_tokens(1, TOKENS, seed=seed)[0].tolist() for seed in (3, 4))
    lm = from_parts(tiny(family))
    lm.tokenizer = Letters()
    prompts = pl.DataFrame({"id": ["p0", "p1"], "text": ["a", "b"]})
    lab = MemoryLab({"base": lm}, {"base": [receiving, donor]}, {"base": [TOKENS - 1] * 2}, prompts)
    spec = PatchMap(target="base", source="base", prompt="p0", donor="p1", sites=SITES, nulls=0)
    found = run(spec, lab)
    first, second = found.summary["answer_ids"]

    theirs = bridge(family)
    _, cache = theirs.run_with_cache(torch.tensor([donor]))
    for site in SITES:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            want = getattr(patching, f"get_act_patch_{site}")(
                theirs,
                torch.tensor([receiving]),
                cache,
                lambda logits: logits[0, -1, first] - logits[0, -1, second],
            )
        assert tuple(want.shape) == (LAYERS, TOKENS)
        cells = found.table.filter(pl.col("site") == site)
        got = np.full((LAYERS, TOKENS), np.nan)
        for layer, token, value in cells.select("layer", "token", "logit_difference").rows():
            got[layer, token] = value
        patched = np.isfinite(got)
        assert patched.sum() >= LAYERS * 7
        np.testing.assert_allclose(got[patched], want.numpy()[patched], rtol=0, atol=LIMIT, err_msg=site)
        assert np.ptp(got[patched]) > 100 * LIMIT, "the map is not flat"
