"""The peers of the patching benchmark find the engine's numbers, and a missing one is named."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens, tiny

from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]
FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("patching")


def test_peers_and_engine_find_the_same_divergence(benchmark: Any) -> None:
    model = tiny("qwen2")
    prompts = [random_tokens(1, length, seed=length)[0].tolist() for length in (4, 9, 6)]
    lm, last = from_parts(model), [len(ids) - 1 for ids in prompts]
    engine = PatchEngine(lm, prompts, last)
    peers = benchmark.prepare(model, prompts)
    assert [kind.name for kind, _ in peers] == [kind.name for kind in (*benchmark.PADDED, *benchmark.TUNED)]
    ready = [peer for _, peer in peers if not isinstance(peer, str)]
    assert len(ready) >= 2, "plain and tuned hooks need nothing but transformers"
    for site, block in ((Site("resid_post", 1), 1), (Site("resid_pre", 2), 1), (Site("resid_post", 2), 2)):
        vectors = engine.activations(site).roll(1, 0)
        found = engine.sweep(site, vectors[None].numpy(), n_conditions=1).kl[0]
        assert found.min() > 1e-3
        for peer in ready:
            log_p = peer.log_probs(block, vectors)
            kl = (log_p.exp() * (log_p - peer.unpatched)).sum(-1)
            np.testing.assert_allclose(kl.numpy(), found, rtol=1e-4, atol=1e-4)


def test_a_missing_library_is_named_in_the_table(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = importlib.import_module("peers")
    monkeypatch.setattr(peers.NNsightPeer, "package", "nnsight-that-nobody-installed", raising=True)
    model = tiny("qwen2")
    prompts = [[5, 6, 7]]
    ready = dict(benchmark.prepare(model, prompts))
    assert ready[peers.NNsightPeer] == "not installed"
    contenders = [benchmark.Contender("nnsight", "", False, note="not installed")]
    contenders.append(benchmark.Contender("hooks", "1", False, seconds=3.0, difference=0.0))
    table = benchmark.markdown([benchmark.Row("first", "resid_post@0", 0.03, 0.01, 1.0, 0.0, contenders)])
    assert "| not installed |" in table
    assert "**100×** (3000 ms)" in table
