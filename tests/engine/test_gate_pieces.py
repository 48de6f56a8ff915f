"""What is kept of W_gate, for every family, against the dense weights."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_models import FAMILY_NAMES, LAYERS, tiny

from engine.geometry.layers import energy_in
from engine.geometry.z import key_frame, multi_head_basis
from engine.models.pieces import GATE_PIECES, gate_weight, model_pieces, piece_names
from engine.models.sites import taps

EXPERTS = {"qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe"}
UNGATED = {"phi", "gpt2", "gpt_neox", "starcoder2", "nemotron", *EXPERTS}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_energy_of_the_gate_in_z_equals_the_dense_one(family: str) -> None:
    model = tiny(family)
    found = taps(model)
    pieces = {piece.name: piece.values for piece in model_pieces(found)}
    assert tuple(pieces) == piece_names(found)
    if family in UNGATED:
        assert not set(GATE_PIECES) & set(pieces)
        return
    full = found.n_kv_heads * found.head_dim >= found.d
    for layer in range(LAYERS):
        weight = gate_weight(found.layers[layer])
        assert weight is not None
        dense = weight.double().numpy()
        assert dense.shape == (48, 32)
        right, sigma = pieces["kernel_right"][layer], pieces["kernel_sigma"][layer]
        basis = multi_head_basis(right, sigma, 3)
        frame = None if full else key_frame(right, found.n_kv_heads)
        wanted = float(((dense @ basis) ** 2).sum())
        # float32 sums of 48 products
        assert energy_in(basis, pieces["gate_gram"][layer], frame).sum() == pytest.approx(wanted, rel=1e-4)
        gram = dense.T @ dense
        np.testing.assert_allclose(
            pieces["gate_moments"][layer], [np.trace(gram), (gram**2).sum()], rtol=1e-5
        )


def test_the_gate_of_a_fused_projection_is_the_half_that_is_activated() -> None:
    model = tiny("phi3")
    mlp = model.model.layers[0].mlp
    weight = gate_weight(taps(model).layers[0])
    assert weight is not None
    x = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    import torch

    both = mlp.gate_up_proj(torch.from_numpy(x))
    gate = torch.from_numpy(x) @ weight.T
    up = both[:, 48:]
    torch.testing.assert_close(mlp(torch.from_numpy(x)), mlp.down_proj(up * mlp.activation_fn(gate)))
