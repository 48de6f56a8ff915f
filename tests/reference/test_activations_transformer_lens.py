"""Recorded activations against TransformerLens, which runs its own attention on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lens_bridge import bridge
from tiny_models import FAMILY_NAMES, LAYERS, random_tokens, tiny
from torch import Tensor

from engine.models.sites import record, taps

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore"),  # that library's own deprecations are not ours to mend
]

# Its attention is another implementation (eager, reshaped), so more than rounding order differs; the
# promise is 1e-4 in float32, and about 5e-7 is what is seen on these sizes.
LIMIT = 1e-4
# TransformerLens has no q/k layer norm for Phi and says so: that option is left out on both sides.
OPTIONS: dict[str, dict[str, Any]] = {"phi": {"qk_layernorm": False}}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_site_equals_transformer_lens(family: str) -> None:
    model = tiny(family, **OPTIONS.get(family, {}))
    tokens = random_tokens(2, 11)
    with torch.no_grad(), record(taps(model)) as seen:
        logits = model(tokens).logits
    with torch.no_grad():
        other_logits, cache = bridge(family, **OPTIONS.get(family, {})).run_with_cache(tokens)
    assert relative(logits, other_logits) <= LIMIT
    for layer in range(LAYERS):
        theirs = {
            ("resid", layer): cache[f"blocks.{layer}.hook_resid_pre"],
            ("resid", layer + 1): cache[f"blocks.{layer}.hook_resid_post"],
            ("attn_out", layer): cache[f"blocks.{layer}.hook_attn_out"],
            ("mlp_out", layer): cache[f"blocks.{layer}.hook_mlp_out"],
            ("head_z", layer): cache[f"blocks.{layer}.attn.hook_z"].reshape(seen["head_z", layer].shape),
        }
        for key, value in theirs.items():
            assert relative(seen[key], value) <= LIMIT, key
