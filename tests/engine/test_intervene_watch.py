"""Log-probabilities of given tokens under every patch, against plain forward hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import patch_oracle
import pytest
import torch
from tiny_models import VOCAB, random_tokens, tiny

from engine.errors import PatchError
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes import unembed
from engine.passes.patch_engine import PatchEngine
from engine.passes.unembed import FACTOR_FROM, low_rank

LENGTHS, POSITIONS = (9, 5, 12), (6, 4, 11)
WATCH = (99, 3, 40, 3)
"""The last tile's, the first's, another's, and one twice."""


def engine(family: str, width: int = 32, **options: Any) -> PatchEngine:
    prompts = [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]
    return PatchEngine(from_parts(tiny(family, hidden_size=width)), prompts, POSITIONS, **options)


def expected(run: PatchEngine, site: Site, vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    found = np.zeros((len(vectors), len(LENGTHS), len(WATCH)))
    for prompt, (ids, position) in enumerate(zip(run.token_ids, run.positions, strict=True)):
        put = torch.as_tensor(vectors[:, prompt])
        with patch_oracle.patched(run.taps, site, position, put):
            log_p = patch_oracle.log_probs(run.lm.model, ids, run.reads[prompt], len(vectors))
        found[:, prompt] = log_p[:, list(WATCH)].numpy()
    return found


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("tile", [30, 1000])
def test_watched_tokens_are_those_of_plain_hooks(
    family: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unembed, "TILE", tile)
    run, site = engine(family, read_at="decision", batch_tokens=9), Site("attn_out", 1)
    own = run.activations(site)
    vectors = np.stack([own.numpy() * alpha for alpha in (0.0, 1.0, 3.0)])
    swept = run.sweep(site, vectors, n_conditions=3, watch=WATCH, top_k=2)
    assert swept.watched is not None
    assert swept.unpatched_watched is not None
    assert swept.watched.dtype == np.float32
    # float32 logits of size about 10 through three blocks.
    np.testing.assert_allclose(swept.watched, expected(run, site, vectors), rtol=0, atol=2e-5)
    plain = run.log_probs()[:, list(WATCH)].numpy()
    np.testing.assert_allclose(swept.unpatched_watched, plain, rtol=0, atol=2e-5)
    assert np.abs(swept.watched[0] - plain).max() > 1e-2, "the patch matters"
    np.testing.assert_allclose(swept.watched[1], plain, rtol=0, atol=2e-5)


def test_watched_tokens_through_the_final_layer_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []

    def spy(rows: torch.Tensor) -> Any:
        factors = low_rank(rows)
        tried.append(factors is not None)
        return factors

    monkeypatch.setattr(unembed, "low_rank", spy)
    run, site = engine("qwen3", width=96), Site("resid_post", 2)
    own = run.activations(site)
    amplitudes = np.linspace(0, 2, FACTOR_FROM)[:, None, None]
    vectors = (own.numpy() + amplitudes * own.roll(1, 0).numpy()).astype(np.float32)
    swept = run.sweep(site, vectors, n_conditions=FACTOR_FROM, watch=WATCH)
    assert tried
    assert all(tried)
    # Two products in float32 instead of one.
    np.testing.assert_allclose(swept.watched, expected(run, site, vectors), rtol=0, atol=5e-5)


def test_nothing_is_watched_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    run, site = engine("llama"), Site("mlp_out", 0)
    vectors = run.activations(site).numpy()[None]
    swept = run.sweep(site, vectors, n_conditions=1)
    assert swept.watched is None
    assert swept.unpatched_watched is None
    with_watch = run.sweep(site, vectors * 2, n_conditions=1, watch=WATCH)
    without = run.sweep(site, vectors * 2, n_conditions=1)
    np.testing.assert_array_equal(with_watch.kl, without.kl)


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    run, site = engine("llama"), Site("mlp_out", 0)
    with pytest.raises(PatchError, match=f"0 to {VOCAB - 1}"):
        run.sweep(site, run.activations(site)[None], n_conditions=1, watch=(3, VOCAB))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("tile", [30, 1000])
def test_kl_over_some_tokens_is_that_of_the_cut_and_renormalised_distributions(
    reverse: bool, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By plain hooks; tiles without any of the tokens are passed over."""
    monkeypatch.setattr(unembed, "TILE", tile)
    shared = [0, 2, 5, 31, 33, 40, 95, 99]
    run, site = engine("qwen3", read_at="decision", batch_tokens=9), Site("attn_out", 1)
    own = run.activations(site)
    vectors = np.stack([own.numpy() * alpha for alpha in (0.0, 1.0, 3.0)])
    swept = run.sweep(site, vectors, n_conditions=3, shared=shared, reverse_kl=reverse)
    assert swept.shared_kl is not None
    assert swept.shared_mass is not None
    assert swept.unpatched_shared_mass is not None
    np.testing.assert_array_equal(swept.kl, run.sweep(site, vectors, n_conditions=3, reverse_kl=reverse).kl)
    for prompt, (ids, position) in enumerate(zip(run.token_ids, run.positions, strict=True)):
        before = patch_oracle.log_probs(run.lm.model, ids, run.reads[prompt])[0].double()[shared]
        with patch_oracle.patched(run.taps, site, position, torch.as_tensor(vectors[:, prompt])):
            after = patch_oracle.log_probs(run.lm.model, ids, run.reads[prompt], 3).double()[:, shared]
        assert swept.unpatched_shared_mass[prompt] == pytest.approx(float(before.exp().sum()), rel=1e-5)
        for condition in range(3):
            mass = float(after[condition].exp().sum())
            assert swept.shared_mass[condition, prompt] == pytest.approx(mass, rel=1e-4)
            p, q = after[condition].log_softmax(0), before.log_softmax(0)
            p, q = (q, p) if reverse else (p, q)
            wanted = float((p.exp() * (p - q)).sum())
            assert swept.shared_kl[condition, prompt] == pytest.approx(wanted, rel=1e-3, abs=2e-6)
    assert np.abs(swept.shared_kl - swept.kl).max() > 1e-3
