"""A prompt that is patched at several tokens is run once: the same numbers as from prompts on their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny

from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes import patch_engine
from engine.passes.patch_engine import PatchEngine

SITES = [
    Site("resid_pre", 1),
    Site("attn_out", 1),
    Site("mlp_out", 0),
    Site("resid_post", 2),
]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "bloom", "jamba"])
def test_tokens_of_one_prompt_are_as_those_of_many(family: str) -> None:
    lm = from_parts(tiny(family))
    long, short = (random_tokens(1, n, seed=n)[0].tolist() for n in (11, 6))
    ids, positions = [long, short, long, long, short], [3, 5, 10, 0, 2]
    shared = PatchEngine(lm, ids, positions, read_at="decision")
    for site in SITES:
        own = shared.activations(site)
        vectors = torch.stack([own, own.roll(1, 0)]).numpy()
        found = shared.sweep(site, vectors, n_conditions=2)
        assert np.abs(found.kl[0]).max() <= 1e-6
        for number, (tokens, position) in enumerate(zip(ids, positions, strict=True)):
            alone = PatchEngine(lm, [tokens], [position], read_at="decision")
            torch.testing.assert_close(alone.activations(site)[0], own[number], rtol=1e-5, atol=1e-5)
            one = alone.sweep(site, vectors[:, [number]], n_conditions=2)
            np.testing.assert_allclose(found.kl[:, number], one.kl[:, 0], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_it_takes_the_room_of_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patch_engine, "PACK_TOKENS", 24)
    lm = from_parts(tiny(family))
    ids = random_tokens(1, 20, seed=1)[0].tolist()
    engine = PatchEngine(lm, [ids] * 20, range(20), read_at="decision", batch_tokens=24)
    assert len(engine._groups) == 1
    assert len(engine._packs[0].states[0]) == 20
