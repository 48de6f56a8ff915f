"""Head substitution on other families, against plain Hugging Face hooks one head at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import LAYERS, VOCAB, random_tokens, tiny

from engine.errors import SiteError
from engine.heads.map_spec import HeadMap
from engine.heads.numbers import Heads
from engine.heads.spec import HeadSubsets
from engine.heads.swap import head_swap
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine

pytestmark = pytest.mark.reference

PROMPTS, TRAIN, LAYER = 12, 7, 1
TOLERANCE = 1e-5
"""float32: two orders of summation through three blocks differ by some 1e-6 in a log-probability."""
POST_NORM = ("gemma2", "gemma3_text", "olmo2")
LOUD: dict[str, dict[str, Any]] = {"granite": {"logits_scaling": 1.0, "embedding_multiplier": 1.0}}
"""Settings under which a single head moves the next token by more than rounding."""
PLAIN = ("llama", "qwen3", "granite", "gpt2", "gpt_neox", "cohere")


def tokens() -> list[list[int]]:
    return [random_tokens(1, 6 + i % 5, seed=i)[0].tolist() for i in range(PROMPTS)]


def lab(family: str, seeds: tuple[int, int] = (0, 1)) -> MemoryLab:
    """Two random models of a family, 12 prompts of their own lengths, the first 7 the train split."""
    models = {
        name: from_parts(tiny(family, seed=seed, **LOUD.get(family, {})), name=name)
        for name, seed in zip(("base", "tuned"), seeds, strict=True)
    }
    ids = tokens()
    at = [len(row) - 1 - (i % 3) for i, row in enumerate(ids)]
    split = ["train"] * TRAIN + ["validation"] * (PROMPTS - TRAIN)
    prompts = pl.DataFrame({"id": [f"p{i}" for i in range(PROMPTS)], "split": split})
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, at), prompts)


def wanted(component: str, **more: Any) -> HeadSubsets:
    return HeadSubsets(target="tuned", source="base", component=component, layer=LAYER, n_boot=100, **more)  # type: ignore[arg-type]


def by_hooks(here: MemoryLab, component: str, heads: tuple[int, ...], row: int, read_at: str) -> float:
    """KL of one prompt with some heads of the source put in, by hooks on the plain models."""
    source, target = (here.models[name] for name in ("base", "tuned"))
    ids, at = here.ids["tuned"][row], here.at["tuned"][row]
    seen: dict[str, torch.Tensor] = {}
    handle = source.taps.layers[LAYER].o_proj.register_forward_pre_hook(
        lambda _m, args: seen.update(z=args[0])
    )
    patch_oracle.log_probs(source.model, ids, at)
    handle.remove()
    z = seen["z"][0, at]
    site = Site(component, LAYER, heads)
    if component == "head_z":
        vector = z.unflatten(-1, (source.taps.n_heads, -1))[list(heads)].flatten()
    else:
        vector = patch_oracle.head_sum(source.taps, site, z)
    read = at if read_at == "patched" else len(ids) - 1
    before = patch_oracle.log_probs(target.model, ids, read)[0]
    with patch_oracle.patched(target.taps, site, at, vector[None]):
        after = patch_oracle.log_probs(target.model, ids, read)[0]
    return float(patch_oracle.kl(after, before))


@pytest.mark.parametrize("family", [*PLAIN, *POST_NORM])
@pytest.mark.parametrize("component", ["head_z", "head_out"])
@pytest.mark.parametrize("read_at", ["patched", "decision"])
def test_subsets_equal_plain_hooks(family: str, component: str, read_at: str) -> None:
    if family in POST_NORM and component == "head_out":
        pytest.skip("a norm behind the attention: there is no head_out, which another test asserts")
    here = lab(family)
    rows = np.arange(PROMPTS)
    swap = head_swap(here, wanted(component, read_at=read_at), rows)
    subsets = [(0,), (1,), (2,), (3,), (0, 2), (1, 2, 3)]
    found = swap.kl([Heads(subset) for subset in subsets])
    for subset, values in zip(subsets, found, strict=True):
        for row in (0, 4, 11):
            expected = by_hooks(here, component, subset, row, read_at)
            assert values[row] == pytest.approx(expected, rel=1e-3, abs=TOLERANCE)
    assert (found.mean(1) > 1e-4).all(), "every subset must move the distribution, or nothing is tested"


def logits(engine: PatchEngine, site: Site, vectors: np.ndarray) -> np.ndarray:
    """All log-probabilities under one patch of every prompt, in the vocabulary's order."""
    found = engine.sweep(site, vectors[None], n_conditions=1, top_k=VOCAB)
    assert found.top_ids is not None
    assert found.top_log_probs is not None
    out = np.empty((engine.n_prompts, VOCAB))
    np.put_along_axis(out, found.top_ids[0], found.top_log_probs[0].astype(float), axis=1)
    return out


@pytest.mark.parametrize("family", PLAIN)
def test_all_heads_of_another_model_are_its_attention_output(family: str) -> None:
    """With the output projections' biases, which llama, granite, gpt2 and gpt_neox have here."""
    here, rows = lab(family), np.arange(PROMPTS)
    swap = head_swap(here, wanted("head_out"), rows)
    vectors = swap.vectors([swap.everything], rows.tolist())[0]
    source = here.activations("base", Site("attn_out", LAYER), "last_content", rows)
    patched = logits(swap.engine, swap.site, vectors)
    np.testing.assert_allclose(
        patched, logits(swap.engine, Site("attn_out", LAYER), source), rtol=0, atol=TOLERANCE
    )
    assert len(swap.everything) == 4 + (here.models["tuned"].taps.layers[LAYER].o_bias() is not None)
    assert np.abs(patched - swap.engine.log_probs().numpy()).max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", PLAIN)
def test_all_values_of_another_prompt_are_its_attention_output(family: str) -> None:
    """Within one model: the source is the same model on other prompts of the same lengths."""
    here, rows = lab(family, seeds=(0, 0)), np.arange(PROMPTS)
    here.ids["base"] = [list(reversed(row)) for row in here.ids["tuned"]]
    swap = head_swap(here, wanted("head_z"), rows)
    vectors = swap.vectors([swap.everything], rows.tolist())[0]
    source = here.activations("base", Site("attn_out", LAYER), "last_content", rows)
    patched = logits(swap.engine, swap.site, vectors)
    np.testing.assert_allclose(
        patched, logits(swap.engine, Site("attn_out", LAYER), source), rtol=0, atol=TOLERANCE
    )
    assert np.abs(patched - swap.engine.log_probs().numpy()).max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", POST_NORM)
def test_a_norm_behind_the_attention_refuses_contributions_and_takes_values(family: str) -> None:
    here = lab(family)
    with pytest.raises(SiteError, match="a norm after the attention mixes the heads"):
        wanted("head_out").run(here)
    found = wanted("head_z").run(here)
    assert found.summary["effect"]["shown"]
    assert "norm behind the attention" in found.summary["correlations"]["direct"]["reason"]
    assert found.tables["table"]["direct"].is_nan().all()


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "gpt_neox", "gpt2"])
def test_the_whole_chain_runs(family: str) -> None:
    here = lab(family)
    found = wanted("head_z", vectors="raw").run(here)
    assert found.summary["effect"]["shown"]
    table, curve, pairs = (found.tables[name] for name in ("table", "curve", "pairs"))
    assert table.height == 4
    assert pairs.height == 6
    assert sorted(curve["kind"].unique()) == ["greedy", "random", "ranked"]
    assert found.summary["self_check"]["passed"]
    both = HeadMap(target="tuned", source="base", component="head_z", vectors="raw", n_boot=100).run(here)
    assert both.table.height == 4 * LAYERS
    own = both.table.filter(pl.col("layer") == LAYER)
    np.testing.assert_array_equal(own["kl"].to_numpy(), table["kl"].to_numpy())
    np.testing.assert_array_equal(own["coverage"].to_numpy(), table["coverage"].to_numpy())


def test_without_a_bias_that_differs_no_part_is_added() -> None:
    here = lab("gpt2")
    model = copy.deepcopy(here.models["base"].model)
    with torch.no_grad():
        here.models["tuned"].taps.layers[LAYER].o_proj.bias.copy_(model.transformer.h[LAYER].attn.c_proj.bias)
    swap = head_swap(here, wanted("head_out"), np.arange(PROMPTS))
    assert swap.everything == Heads(range(4))
    assert not swap.notes()
