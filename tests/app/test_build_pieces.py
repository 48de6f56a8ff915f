"""Pieces of weights in a store: computed and kept once, block by block, and those of the weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny

from app.build.pieces import kept, write_pieces
from engine.geometry.kernels import head_kernels
from engine.geometry.z import head_kernel_svd, key_side
from engine.models import pieces as pieces_module
from engine.models.loading import from_parts
from engine.models.pieces import Entry, model_pieces, rounded
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

WIDE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512, "vocab_size": 300}
"""Entries large enough to be shared."""


def store_of(root: Path, *models: torch.nn.Module, names: tuple[str, ...] = ("base", "tuned")) -> StoreWriter:
    loaded = [from_parts(model, None, name) for name, model in zip(names, models, strict=False)]
    sizes = {
        lm.name: ModelPlan(lm.taps.d, lm.taps.n_layers, lm.taps.n_heads, lm.taps.head_dim) for lm in loaded
    }
    plan = StorePlan(sizes, {"last": PositionPlan()}, n_prompts=2)
    writer = StoreWriter.create_or_resume(root, plan, {}, "f" * 64, durable=False)
    for lm in loaded:
        write_pieces(writer, lm)
    return writer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_changed_block_is_kept_and_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    base = tiny("qwen3", **WIDE).to(dtype)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].self_attn.q_proj.weight *= 1.5
    done: list[int] = []
    decompose = key_side
    monkeypatch.setattr(pieces_module, "key_side", lambda *a, **k: (done.append(1), decompose(*a, **k))[1])
    writer = store_of(tmp_path / "s", base, tuned)
    layers = 3
    assert len(done) == 2 * layers + 2, "plain and folded, of all blocks and then of one"
    store = Store(writer.root)
    for name in ("w_k", "kernel_right", "folded_right", "gate_gram", "unembedding"):
        one, two = (store.attrs(f"weights/{model}/{name}")["parts"] for model in ("base", "tuned"))
        differ = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        on_key_directions = name == "gate_gram"  # which are kernel_right's
        assert differ == ([1] if "right" in name or on_key_directions else []), name
    for model, name in ((base, "base"), (tuned, "tuned")):
        for piece in model_pieces(from_parts(model).taps):
            found = store.array(f"weights/{name}/{piece.name}")
            assert found.shape == piece.shape
            # the same numbers, but for singular vectors, which are multiplied out here
            np.testing.assert_allclose(found, piece.values, rtol=0, atol=1e-6 if "right" in piece.name else 0)


def test_kernels_of_a_store_are_those_of_the_weights(tmp_path: Path) -> None:
    model = tiny("qwen3", **WIDE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    store = Store(store_of(tmp_path / "s", model).root)
    taps = from_parts(model).taps
    for layer, at in enumerate(taps.layers):
        w_q, w_k = at.w_q().double().numpy(), at.w_k().double().numpy()
        gains = [taps.gain(norm).double().numpy() for norm in (at.input_norm, at.q_norm, at.k_norm)]
        for fold in (False, True):
            if fold:
                w_q, w_k = w_q * gains[1][:, None] * gains[0], w_k * gains[2][:, None] * gains[0]
            right, sigma = head_kernels(store.array, "base", layer, fold)
            for head in range(taps.n_heads):
                dense = w_q[head].T @ w_k[head // (taps.n_heads // taps.n_kv_heads)]
                inside = right[head].astype(np.float64) * sigma[head]
                # K Kᵀ on the key side, whatever the signs of singular vectors; float32
                np.testing.assert_allclose(
                    inside @ inside.T, dense.T @ dense, atol=2e-6 * sigma[head, 0] ** 2
                )


def test_a_store_of_an_earlier_version_still_gives_folded_kernels() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "weights/base/w_q": rng.normal(size=(1, 4, 3, 12)),
        "weights/base/w_k": rng.normal(size=(1, 2, 3, 12)),
        "weights/base/attn_norm_gain": rng.uniform(0.5, 2, (1, 12)),
        "weights/base/q_norm_gain": np.ones((1, 4, 3)),
        "weights/base/k_norm_gain": np.ones((1, 2, 3)),
    }

    def read(name: str, first: int) -> np.ndarray:
        from engine.errors import StoreError

        if name not in arrays:
            raise StoreError(f"There is no array {name!r}.")
        return arrays[name][first]

    found = head_kernels(read, "base", 0, fold_norm=True)
    gain = arrays["weights/base/attn_norm_gain"][0]
    wanted = head_kernel_svd(arrays["weights/base/w_q"][0], arrays["weights/base/w_k"][0], input_gain=gain)
    np.testing.assert_allclose(found[0], wanted.right)


@pytest.mark.parametrize("dead", ["query", "key", "one key dimension", "nearly dependent"])
def test_dead_heads_keep_orthonormal_vectors(tmp_path: Path, dead: str) -> None:
    model = tiny("qwen3", **WIDE)
    attn = model.model.layers[0].self_attn
    with torch.no_grad():
        if dead == "query":
            attn.q_proj.weight[:64] = 0
        if dead == "key":
            attn.k_proj.weight[:64] = 0
        if dead == "one key dimension":
            attn.k_proj.weight[3] = 0
        if dead == "nearly dependent":
            attn.k_proj.weight[4] = attn.k_proj.weight[3] * (1 + 1e-6)
    store = Store(store_of(tmp_path / "s", model).root)
    right, sigma = head_kernels(store.array, "base", 0)
    taps = from_parts(model).taps
    wanted = head_kernel_svd(taps.layers[0].w_q().numpy(), taps.layers[0].w_k().numpy())
    np.testing.assert_allclose(sigma, wanted.sigma, atol=1e-6 * wanted.sigma.max())
    inner = np.matmul(right.transpose(0, 2, 1), right)
    assert np.abs(inner - np.eye(inner.shape[-1])).max() < 1e-4


def test_key_side_is_the_decomposition() -> None:
    rng = np.random.default_rng(1)
    w_q, w_k, gain = rng.normal(size=(6, 5, 40)), rng.normal(size=(3, 5, 40)), rng.uniform(0.2, 3, 40)
    for given in (None, gain):
        wanted, found = head_kernel_svd(w_q, w_k, input_gain=given), key_side(w_q, w_k, input_gain=given)
        assert found.factor is not None
        np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-10)
        right = np.einsum("hmd,hmr->hdr", w_k[np.arange(6) // 2], found.factor)
        right = right if given is None else right * given[:, None]
        signs = np.sign((right * wanted.right).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(right * signs, wanted.right, atol=1e-9)
    assert key_side(w_q, np.zeros_like(w_k)).factor is None


def test_rounding_keeps_so_many_bits_and_ties_go_to_even() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    found = rounded(values, 10)
    assert np.abs(found / values - 1).max() <= 2.0**-11
    assert np.abs(found / values - 1).max() > 2.0**-12
    assert not (found.view(np.uint32) & np.uint32((1 << 13) - 1)).any()
    np.testing.assert_array_equal(rounded(found, 10), found)
    one = np.float32(1)
    ties = np.array([one + 2.0**-11, one + 3 * 2.0**-11], dtype=np.float32)
    np.testing.assert_array_equal(rounded(ties, 10), np.float32([1, 1 + 2 * 2.0**-10]))
    assert rounded(np.zeros(1), 10)[0] == 0


def test_weights_are_kept_in_bfloat16_only_where_it_holds_them() -> None:
    exact = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert kept(Entry(exact), exact=True).bfloat16
    assert kept(Entry(exact.float()), exact=True).key == kept(Entry(exact), exact=True).key
    assert not kept(Entry(exact.float() * (1 + 2.0**-12)), exact=True).bfloat16
    assert not kept(Entry(exact.float()), exact=False).bfloat16
