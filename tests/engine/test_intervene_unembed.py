"""Divergences summed over vocabulary tiles, and the low-rank shortcut in front of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny
from torch import Tensor

from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.models.taps import taps
from engine.passes import unembed
from engine.passes.linear import PackedLinears
from engine.passes.patch_engine import PatchEngine
from engine.passes.unembed import FACTOR_FROM, FACTOR_TOLERANCE, Unembedding, low_rank


def states(prompts: int, rows: int, d: int, scale: float = 1.0) -> Tensor:
    return torch.randn(prompts, rows, d, generator=torch.Generator().manual_seed(3)) * scale


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "cohere", "granite", "phi"])
@pytest.mark.parametrize("tile", [7, 50, 1000])
@pytest.mark.parametrize("reverse", [False, True])
def test_comparison_is_the_definition(
    family: str, tile: int, reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unembed, "TILE", tile)
    found = taps(tiny(family))
    normed = states(3, 6, found.d, scale=3.0)
    normed[1, 2] = normed[1, 0]
    head = Unembedding(found, PackedLinears(False))
    with torch.no_grad():
        compared = head.compare(normed, reverse=reverse, top_k=4, factor=False)
        log_p = found.logits(normed).double().log_softmax(-1)
        torch.testing.assert_close(
            head.log_probs(normed.flatten(0, 1)).double(), log_p.flatten(0, 1), rtol=0, atol=1e-5
        )
    p, q = (log_p[:, :1], log_p[:, 1:]) if reverse else (log_p[:, 1:], log_p[:, :1])
    expected = (p.exp() * (p - q)).sum(-1)
    assert expected.max() > 0.05
    torch.testing.assert_close(compared.kl, expected, rtol=1e-5, atol=1e-5)
    assert compared.kl[1, 1] == 0.0, "an equal row has no divergence at all"
    assert compared.top_ids is not None
    assert compared.top_log_probs is not None
    values, ids = log_p.topk(4, dim=-1)
    torch.testing.assert_close(compared.top_ids, ids)
    torch.testing.assert_close(compared.top_log_probs.double(), values, rtol=0, atol=1e-5)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    found = taps(tiny("llama"))
    head = Unembedding(found, PackedLinears(False))
    normed = states(1, 3, found.d, scale=400.0)
    with torch.no_grad():
        compared = head.compare(normed, reverse=False, top_k=0, factor=False)
        logits = found.logits(normed).double()
    assert logits.abs().max() > 500
    log_p = logits.log_softmax(-1)
    expected = (log_p[:, 1:].exp() * (log_p[:, 1:] - log_p[:, :1])).sum(-1)
    torch.testing.assert_close(compared.kl, expected, rtol=1e-5, atol=1e-5)


def test_low_rank_rows_are_found_and_reproduced() -> None:
    generator = torch.Generator().manual_seed(0)
    rank, rows, d = 25, 265, 256
    parts = [
        torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in ((rows, rank), (rank, d))
    ]
    mixed = (parts[0] @ parts[1]).float()
    mixed[0, 5] *= 1e-4  # a short row must be kept as exactly as a long one
    mixed[1, 7] = 0.0  # as alpha = 0 gives it
    factors = low_rank(mixed)
    assert factors is not None
    coefficients, basis = factors
    assert rank <= basis.shape[1] <= 2 * rank
    lost = (coefficients.double() @ basis.double() - mixed.double()).norm(dim=-1)
    assert lost[1, 7] == 0
    lost /= mixed.double().norm(dim=-1).clamp_min(1e-30)
    # The tolerance, and float32 rounding of the coefficients.
    assert lost.max() <= FACTOR_TOLERANCE + 2e-7


def test_rows_of_full_rank_are_left_alone() -> None:
    assert low_rank(states(2, 265, 256)) is None
    nearly = torch.randn(1, 265, 20) @ torch.randn(1, 20, 256)
    # Off by 1e-4: small, and more than a float32 product loses.
    assert low_rank(nearly + 1e-4 * nearly.std() * states(1, 265, 256)) is None


def spied(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Grows with every attempt at a factorisation: whether it succeeded."""
    tried: list[bool] = []

    def spy(given: Tensor) -> tuple[Tensor, Tensor] | None:
        factors = low_rank(given)
        tried.append(factors is not None)
        return factors

    monkeypatch.setattr(unembed, "low_rank", spy)
    return tried


def test_factored_comparison_equals_the_direct_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unembed, "TILE", 40)
    tried = spied(monkeypatch)
    found = taps(tiny("phi", hidden_size=96))
    head = Unembedding(found, PackedLinears(False))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, FACTOR_FROM, 3, generator=generator) @ torch.randn(
        2, 3, found.d, generator=generator
    )
    with torch.no_grad():
        direct = head.compare(rows, reverse=False, top_k=3, factor=False)
        factored = head.compare(rows, reverse=False, top_k=3, factor=True)
    assert tried == [True]
    torch.testing.assert_close(factored.kl, direct.kl, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(factored.top_ids, direct.top_ids)


def test_a_sweep_behind_the_last_block_takes_the_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = spied(monkeypatch)
    lm = from_parts(tiny("qwen3", hidden_size=96))
    engine = PatchEngine(lm, [random_tokens(1, 9)[0].tolist()] * 2, [8, 5])
    site, count = Site("resid_post", 2), 2 * FACTOR_FROM
    own = engine.activations(site)
    amplitudes = torch.linspace(0, 2, count)[:, None, None]
    vectors = (own + amplitudes * own.roll(1, 0)).numpy()
    short = engine.sweep(site, vectors, n_conditions=count)
    assert tried == [True]
    parts = [engine.sweep(site, vectors[i : i + 8], n_conditions=8).kl for i in range(0, count, 8)]
    assert tried == [True], "too few rows for a factorisation"
    # Logits of size 30 in float32, summed up in two steps instead of one.
    np.testing.assert_allclose(short.kl, np.concatenate(parts), rtol=1e-5, atol=1e-5)
    engine.sweep(Site("resid_pre", 2), vectors, n_conditions=count)
    assert tried == [True], "a block in between mixes the rows"
