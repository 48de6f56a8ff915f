"""Packed linear layers: the same numbers, chosen by measurement, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny
from torch import nn

from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes import linear
from engine.passes import patch_engine as intervene
from engine.passes.linear import Measurement, PackedLinears, measure, packed_product, packing_pays
from engine.passes.patch_engine import PatchEngine


def with_onednn() -> bool:
    return measure(torch.float32) is not None


needs_onednn = pytest.mark.skipif(not with_onednn(), reason="this build of torch has no oneDNN linears")


@needs_onednn
@pytest.mark.parametrize("rows", [1, 7, 512, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_product_equals_the_exact_one(rows: int, bias: bool) -> None:
    layer = nn.Linear(96, 80, bias=bias)
    x = torch.randn(2, rows, 96, generator=torch.Generator().manual_seed(0))
    product = packed_product(layer.weight, None if layer.bias is None else layer.bias.detach())
    exact = x.double() @ layer.weight.double().T + (0.0 if layer.bias is None else layer.bias.double())
    with torch.no_grad():
        # float32 sums of 96 products of size one.
        torch.testing.assert_close(product(x).double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("native", "packed", "difference", "dtype", "wins"),
    [
        (2.0, 1.0, 1e-7, torch.float32, True),
        (1.1, 1.0, 1e-7, torch.float32, False),
        (1.0, 2.0, 0.0, torch.float32, False),
        (9.0, 1.0, 1e-3, torch.float32, False),
        (9.0, 1.0, 1e-3, torch.bfloat16, True),
        (9.0, 1.0, 0.1, torch.bfloat16, False),
    ],
)
def test_packing_wins_only_if_faster_and_equal(
    native: float, packed: float, difference: float, dtype: torch.dtype, wins: bool
) -> None:
    assert Measurement(native, packed, difference).packed_wins(dtype) is wins


def test_the_measurement_is_made_once_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []

    def fake(dtype: torch.dtype, _repeats: int) -> Measurement:
        made.append(dtype)
        return Measurement(3.0, 1.0, 0.0)

    monkeypatch.setattr(linear, "_measured", {})
    monkeypatch.setattr(linear, "_measure", fake)
    cpu = torch.device("cpu")
    assert packing_pays(cpu, torch.float32)
    assert packing_pays(cpu, torch.float32)
    assert made == [torch.float32]
    assert not packing_pays(torch.device("cuda"), torch.float32)

    def impossible(_dtype: torch.dtype, _repeats: int) -> Measurement:
        raise RuntimeError("no oneDNN")

    monkeypatch.setattr(linear, "_measured", {})
    monkeypatch.setattr(linear, "_measure", impossible)
    assert not packing_pays(cpu, torch.float32)


@needs_onednn
def test_lent_layers_come_back_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 4)))
    x = torch.randn(3, 8)
    packed = PackedLinears(True)
    with torch.no_grad():
        expected = model(x)
        with packed.lent_to([model]):
            lent = [m for m in model.modules() if "forward" in m.__dict__]
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
        assert len(lent) == 2

        def fail() -> None:
            with packed.lent_to([model]):
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert not [m for m in model.modules() if "forward" in m.__dict__]
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_without_room_or_leave_nothing_is_packed() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    for packed in (PackedLinears(False), PackedLinears(True)):
        packed.room = 0
        with packed.lent_to([model]):
            assert not [m for m in model.modules() if "forward" in m.__dict__]


@needs_onednn
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "phi", "qwen3_moe"])
def test_sweeps_agree_with_and_without_packing(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_parts(tiny(family))
    ids = [random_tokens(1, length, seed=length)[0].tolist() for length in (5, 9, 12)]
    positions = [4, 8, 6]
    found = []
    for packs in (False, True):
        monkeypatch.setattr(intervene, "packing_pays", lambda *_args, packs=packs: packs)
        engine = PatchEngine(lm, ids, positions)
        for site in (Site("attn_out", 0), Site("head_z", 1)):
            vectors = engine.activations(site).flip(0)[None].numpy()
            found.append(engine.sweep(site, vectors, n_conditions=1, top_k=5))
        assert bool(engine._linears._products) is packs
    for native, packed in zip(found[:2], found[2:], strict=True):
        np.testing.assert_allclose(packed.kl, native.kl, rtol=0, atol=1e-5)
        assert packed.top_log_probs is not None
        assert native.top_log_probs is not None
        np.testing.assert_allclose(packed.top_log_probs, native.top_log_probs, rtol=0, atol=1e-5)
