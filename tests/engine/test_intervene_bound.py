"""How far apart two states' distributions can be, and the self-check that relies on it."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny
from torch import Tensor

from engine.errors import PatchError
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.models.taps import taps
from engine.passes import packed
from engine.passes import patch_engine as intervene
from engine.passes.linear import PackedLinears
from engine.passes.patch_engine import PatchEngine
from engine.passes.resume import own_values
from engine.passes.unembed import Unembedding

SITES = [Site("resid_post", 0), Site("head_z", 1), Site("attn_out", 0), Site("mlp_out", 1)]


def divergences(a: Tensor, b: Tensor) -> Tensor:
    """The larger of KL both ways of rows of logits, in float64."""
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return torch.maximum((p.exp() * (p - q)).sum(-1), (q.exp() * (q - p)).sum(-1))


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "cohere", "granite", "phi", "gpt2", "gpt_neox"])
def test_no_divergence_exceeds_the_bound(family: str) -> None:
    model = tiny(family).double()
    found = taps(model)
    head = Unembedding(found, PackedLinears(False))
    generator = torch.Generator().manual_seed(1)
    for scale in (0.1, 1.0, 10.0):
        for size in (1e-6, 1e-3, 0.1, 1.0):
            x, change = torch.randn(2, 200, found.d, generator=generator, dtype=torch.float64)
            # Every second change points where one entry of the vocabulary gains most.
            towards = model.get_output_embeddings().weight[torch.arange(100) % found.vocab]
            change[::2] = towards / towards.norm(dim=-1, keepdim=True)
            y = scale * x + size * change
            with torch.no_grad():
                told = head.bound(scale * x, y)
                measured = divergences(found.logits(scale * x), found.logits(y))
            # KL of float64 logits: rounding of about 1e-15 where the bound is smaller still.
            assert (measured <= told * (1 + 1e-9) + 1e-14).all()
    same = head.bound(y, y)
    assert (same == 0).all()


def test_the_bound_is_reached_where_half_of_the_vocabulary_goes_each_way() -> None:
    model = tiny("qwen2", vocab_size=100).double()
    found = taps(model)
    way = torch.randn(found.d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = model.get_output_embeddings().weight
    with torch.no_grad():
        weight.copy_(way)
        weight[::2] *= -1
    assert len(weight) % 2 == 0
    head = Unembedding(found, PackedLinears(False))
    x = torch.zeros(1, found.d, dtype=torch.float64)
    y = x + 1e-3 * way / way.norm()
    with torch.no_grad():
        told, measured = head.bound(x, y), divergences(found.logits(x), found.logits(y))
    # The next term of log cosh is smaller by a factor of (1e-3 |w|)^2.
    torch.testing.assert_close(measured, told, rtol=1e-3, atol=0)


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=length)[0].tolist() for length in (9, 14, 5, 12)]


def made(family: str = "qwen3", dtype: torch.dtype = torch.float32) -> PatchEngine:
    return PatchEngine(from_parts(tiny(family).to(dtype)), prompts(), [6, 13, 2, 4])


def vectors(engine: PatchEngine, site: Site) -> np.ndarray[Any, Any]:
    own = engine.activations(site)
    drawn = torch.randn(3, *own.shape, generator=torch.Generator().manual_seed(5))
    return (own + drawn * own.std()).numpy()


def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows per prompt of every comparison: the reference, the conditions, the plain run if it is there."""
    seen: list[int] = []
    real = Unembedding.compare

    def spy(self: Unembedding, normed: Tensor, **kwargs: Any) -> Any:
        seen.append(normed.shape[1])
        return real(self, normed, **kwargs)

    monkeypatch.setattr(Unembedding, "compare", spy)
    return seen


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_a_certain_self_patch_takes_no_vocabulary_and_changes_nothing(
    family: str, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, engine = widths(monkeypatch), made(family)
    given = vectors(engine, site)
    found = engine.sweep(site, given, n_conditions=3)
    assert set(seen) == {4}, "the reference and three conditions"
    assert found.self_kl.max() <= intervene.CERTAIN_SHARE * 1e-6 + torch.finfo(torch.float32).eps
    seen.clear()
    monkeypatch.setattr(intervene, "CERTAIN_SHARE", -1.0)
    measured = made(family).sweep(site, given, n_conditions=3)
    assert set(seen) == {5}, "and the plain run"
    # Small vocabularies: KL sums of float32 logits are good to some 1e-7.
    assert measured.self_kl.max() <= found.self_kl.min() + 2e-7
    np.testing.assert_allclose(measured.kl, found.kl, rtol=0, atol=1e-6)


def test_half_precision_is_always_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, engine = widths(monkeypatch), made(dtype=torch.bfloat16)
    engine.sweep(SITES[0], vectors(engine, SITES[0]), n_conditions=3)
    assert set(seen) == {5}


@pytest.mark.parametrize("wrong", [1.01, 1.1, float("nan")])
def test_a_wrong_plain_run_is_still_refused(wrong: float) -> None:
    engine, site = made(), SITES[1]
    given = vectors(engine, site)
    with torch.inference_mode():
        for group, pack in engine._packs.items():
            off = pack.final.clone()
            off[1:2] *= wrong
            engine._packs[group] = replace(pack, final=off)
    with pytest.raises(PatchError, match="differs from its own forward pass"):
        engine.sweep(site, given, n_conditions=3)


def test_a_small_error_of_the_own_activation_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the share that is certain and the limit the KL over the vocabulary decides."""
    engine, site = made(), SITES[0]
    given = vectors(engine, site)
    seen = widths(monkeypatch)
    monkeypatch.setattr(intervene, "own_values", lambda *args: own_values(*args) * (1 + 1e-4))
    found = engine.sweep(site, given, n_conditions=3)
    assert set(seen) == {5}
    assert 0 < found.self_kl.max() <= 1e-6


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "gpt_neox", "qwen3_moe"])
def test_the_last_mlp_is_run_on_the_tail_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing behind it mixes tokens: what is kept is what the whole pass gives."""
    lm = from_parts(tiny(family))
    rows: list[int] = []
    handle = lm.taps.layers[-1].mlp.register_forward_hook(
        lambda _m, args, _out: rows.append(args[0].reshape(-1, lm.taps.d).shape[0])
    )
    engine = PatchEngine(lm, prompts(), [6, 13, 2, 4], read_at="decision")
    assert rows[0] == sum(engine._tails) < sum(map(len, prompts()))
    assert rows[1] == max(map(len, prompts())), "the model's own pass is left as it is"
    handle.remove()
    cut = engine._packs[0]
    monkeypatch.setattr(packed, "_last_mlp_at", lambda *_args: nullcontext())
    whole = PatchEngine(lm, prompts(), [6, 13, 2, 4], read_at="decision")._packs[0]
    # float32: other shapes of the same products.
    torch.testing.assert_close(cut.final, whole.final, rtol=0, atol=1e-5)
    torch.testing.assert_close(cut.mlp_out[-1], whole.mlp_out[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(cut.states[-1], whole.states[-1], rtol=0, atol=1e-5)
