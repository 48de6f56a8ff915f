"""The engine against plain forward hooks: every family, every site, first, middle and last block."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from typing import Literal

import numpy as np
import patch_oracle
import pytest
import torch
from tiny_models import ALIKE, FAMILY_NAMES, LATER_NAMES, LAYERS, UNLISTED_NAMES, VOCAB, random_tokens, tiny

from engine.errors import SiteError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import COMPONENTS, Site
from engine.passes.patch_engine import PatchEngine

pytestmark = pytest.mark.reference

# Different lengths in one pack; the patched token first, inside (also beyond a window of 6) and last.
LENGTHS = (9, 14, 5, 12, 14)
POSITIONS = (6, 13, 0, 4, 9)
TOLERANCE = 1e-5
"""float32: two orders of summation through three blocks differ by some 1e-6 in a log-probability."""
RECURRENT = 1e-4
"""The same behind a recurrent state, whose mix of few tokens is nearly 0 here and there and is then normed: a
patched prompt run plainly with and without the tokens behind the one that is read differs by 2e-5 itself."""


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def sites(lm: LoadedModel) -> list[Site]:
    found = []
    for component, layer in product(COMPONENTS, range(LAYERS)):
        site = Site(component, layer, (1, 3) if component.startswith("head") and layer < 2 else None)
        try:
            found.append(site.check(lm.taps))
        except SiteError:
            own = lm.taps.layers[layer]
            assert (component == "head_out" and own.attn_post_norm) or not own.has_heads
    return found


def vectors_for(own: torch.Tensor, seed: int) -> torch.Tensor:
    """Three conditions: own activation, another prompt's, and noise of the site's size."""
    noise = torch.randn(own.shape, generator=torch.Generator().manual_seed(seed)) * own.std()
    return torch.stack([own, own.roll(1, 0), own + noise])


def each_alone(
    lm: LoadedModel, ids: list[int], position: int, read: int, vectors: dict[Site, torch.Tensor], prompt: int
) -> dict[Site, torch.Tensor]:
    """Log-probabilities of a prompt with each site patched by itself in two rows of one batch."""
    with ExitStack() as stack:
        for turn, (site, given) in enumerate(vectors.items()):
            rows = slice(2 * turn, 2 * turn + 2)
            stack.enter_context(patch_oracle.patched(lm.taps, site, position, given[1:, prompt], rows))
        found = patch_oracle.log_probs(lm.model, ids, read, batch=2 * len(vectors))
    return dict(zip(vectors, found.split(2), strict=True))


def families_and_reads() -> list[tuple[str, str]]:
    """Every family at the token that decides; at the patched one those with blocks of their own."""
    every = [*FAMILY_NAMES, *LATER_NAMES, *UNLISTED_NAMES]
    return [("decision", family) for family in every] + [("patched", f) for f in every if f not in ALIKE]


@pytest.mark.parametrize(("read_at", "family"), families_and_reads())
def test_engine_equals_plain_hooks(family: str, read_at: Literal["patched", "decision"]) -> None:
    lm = from_parts(tiny(family))
    ids = prompts()
    engine = PatchEngine(lm, ids, POSITIONS, read_at=read_at)
    unpatched = [patch_oracle.log_probs(lm.model, ids[p], engine.reads[p])[0] for p in range(len(ids))]
    limit = RECURRENT if lm.taps.family.mixer else TOLERANCE
    moved = 0
    vectors = {site: vectors_for(engine.activations(site), turn) for turn, site in enumerate(sites(lm))}
    plain = [each_alone(lm, ids[p], POSITIONS[p], engine.reads[p], vectors, p) for p in range(len(ids))]
    for site, given in vectors.items():
        found = engine.sweep(site, given, n_conditions=3, top_k=VOCAB)
        assert found.top_ids is not None
        assert np.abs(found.kl[0]).max() <= 1e-6
        for prompt in range(len(ids)):
            expected = plain[prompt][site]
            order = torch.tensor(found.top_ids[1:, prompt])
            assert torch.equal(order.sort(-1).values, torch.arange(VOCAB).expand(2, -1))
            log_probs = torch.tensor(found.top_log_probs)[1:, prompt].double()
            torch.testing.assert_close(log_probs, expected.gather(-1, order), rtol=limit, atol=limit)
            kl = patch_oracle.kl(expected, unpatched[prompt])
            np.testing.assert_allclose(found.kl[1:, prompt], kl.numpy(), rtol=0, atol=limit)
            moved += int(((expected - unpatched[prompt]).abs().amax(-1) > 10 * TOLERANCE).sum())
    assert moved > len(ids) * len(vectors), "most patches must move the distribution, or nothing is tested"


@pytest.mark.parametrize("family", [*FAMILY_NAMES, *LATER_NAMES, *UNLISTED_NAMES])
def test_activations_and_log_probs_are_the_unpatched_run(family: str) -> None:
    lm = from_parts(tiny(family))
    ids = prompts()
    engine = PatchEngine(lm, ids, POSITIONS)
    log_probs = engine.log_probs()
    with torch.no_grad():
        for prompt, tokens in enumerate(ids):
            expected = patch_oracle.log_probs(lm.model, tokens, POSITIONS[prompt])[0]
            torch.testing.assert_close(log_probs[prompt].double(), expected, rtol=0, atol=TOLERANCE)
        states = [
            lm.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
            for tokens in ids
        ]
    for layer in range(LAYERS):
        entering = engine.activations(Site("resid_pre", layer))
        for prompt, position in enumerate(POSITIONS):
            torch.testing.assert_close(
                entering[prompt], states[prompt][layer][0, position], rtol=1e-4, atol=1e-5
            )
        added = engine.activations(Site("attn_out", layer)) + engine.activations(Site("mlp_out", layer))
        leaving = engine.activations(Site("resid_post", layer))
        torch.testing.assert_close(entering + added, leaving, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "granite", "gpt2", "gpt_neox"])
def test_head_out_sums_to_attn_out(family: str) -> None:
    lm = from_parts(tiny(family))
    engine = PatchEngine(lm, prompts(), POSITIONS)
    layer = lm.taps.layers[1]
    single = [engine.activations(Site("head_out", 1, (head,))) for head in range(lm.taps.n_heads)]
    bias = layer.o_bias()
    offset = 0.0 if bias is None else bias * layer.multiplier
    attn_out = engine.activations(Site("attn_out", 1))
    torch.testing.assert_close(torch.stack(single).sum(0) + offset, attn_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        engine.activations(Site("head_out", 1)) + offset, attn_out, rtol=1e-4, atol=1e-5
    )
    z = engine.activations(Site("head_z", 1, (0, 2)))
    expected = torch.einsum("nhf,hfd->nd", z.view(len(z), 2, -1), layer.w_o()[[0, 2]]) * layer.multiplier
    torch.testing.assert_close(single[0] + single[2], expected, rtol=1e-4, atol=1e-5)
