"""Teacher-forced log-probabilities against plain forward passes, and how texts become tokens."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import patch_oracle
import pytest
import torch
from tiny_models import random_tokens, tiny
from tiny_tokenizers import chatml, gemma, llama3

from engine.errors import PatchError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes.continuations import score, shared_ids, spelled, surface_forms
from engine.passes.edits import replace_at
from engine.passes.patch_engine import PatchEngine

LENGTHS, POSITIONS = (9, 14, 5, 12), (6, 13, 0, 4)
CONTINUATIONS = [[[5], [6, 7, 8], [9, 10]], [[11, 12]], [], [[13, 14, 15, 16, 17, 18, 19, 20], [21]]]
SHARED = list(range(0, 101, 2))
TOLERANCE = 1e-5
"""float32: the cached run sums in another order than the whole pass, some 1e-6 in a log-probability."""


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def whole_pass(
    lm: LoadedModel, ids: list[int], continuation: list[int], patch: tuple[Site, int, torch.Tensor] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of every token of the continuation, and of all shared tokens together."""
    with ExitStack() as stack:
        if patch is not None:
            stack.enter_context(patch_oracle.patched(lm.taps, *patch))
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([[*ids, *continuation]]), use_cache=False).logits[0]
    log_probs = logits.double().log_softmax(-1)[len(ids) - 1 : -1]
    chosen = log_probs.gather(-1, torch.tensor(continuation)[:, None])[:, 0]
    return chosen.numpy(), log_probs[:, SHARED].exp().sum(-1).log().numpy()


FAMILIES = ("qwen3", "llama", "gemma2", "gpt2", "gpt_neox", "mistral")


@pytest.mark.parametrize("family", [*FAMILIES, "bloom", "gpt_oss", "deepseek_v3", "jamba", "mllama"])
@pytest.mark.parametrize("batch_tokens", [None, 60])
def test_scores_are_those_of_whole_passes(family: str, batch_tokens: int | None) -> None:
    lm = from_parts(tiny(family))
    ids, sites = prompts(), (Site("resid_post", 0), Site("head_z", 1, (0, 2)), Site("mlp_out", 1))
    engine = PatchEngine(lm, ids, POSITIONS)
    vectors = [3 * engine.activations(site).roll(1, 0) for site in sites]
    edits = [None, *(replace_at(s, POSITIONS, v.numpy()) for s, v in zip(sites, vectors, strict=True))]
    found = score(lm, ids, CONTINUATIONS, edits, shared=SHARED, batch_tokens=batch_tokens)
    assert found.log_mass is not None
    moved = 0.0
    for condition in range(len(edits)):
        for prompt, own in enumerate(CONTINUATIONS):
            assert len(found.log_probs[condition][prompt]) == len(own)
            for number, continuation in enumerate(own):
                vector = vectors[condition - 1][prompt][None]
                patch = (sites[condition - 1], POSITIONS[prompt], vector) if condition else None
                log_probs, mass = whole_pass(lm, ids[prompt], continuation, patch)
                got = found.log_probs[condition][prompt][number]
                np.testing.assert_allclose(got, log_probs, rtol=0, atol=TOLERANCE)
                np.testing.assert_allclose(
                    found.log_mass[condition][prompt][number], mass, rtol=0, atol=TOLERANCE
                )
                moved = max(moved, float(np.abs(got - found.log_probs[0][prompt][number]).max()))
    assert moved > 0.1, "an edit must move something, or nothing is tested"


def test_a_prompts_own_activation_put_back_changes_nothing() -> None:
    lm, ids, site = from_parts(tiny("qwen3")), prompts(), Site("attn_out", 1)
    own = PatchEngine(lm, ids, POSITIONS).activations(site)
    found = score(lm, ids, CONTINUATIONS, [None, replace_at(site, POSITIONS, own)])
    for plain, back in zip(found.log_probs[0], found.log_probs[1], strict=True):
        for a, b in zip(plain, back, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def test_empty_continuations_are_refused() -> None:
    lm = from_parts(tiny("qwen3"))
    with pytest.raises(PatchError, match="token sequences that are not empty"):
        score(lm, prompts(), [[[]], [], [], []])
    with pytest.raises(PatchError, match="4 lists"):
        score(lm, prompts(), [[[5]]])


@pytest.mark.parametrize("tokenizer", [chatml(), llama3(), gemma()])
def test_a_text_is_spelledd_alone_and_without_special_tokens(tokenizer: object) -> None:
    for text in ("Yes", " Yes", "是的"):
        ids = spelled(tokenizer, text)
        assert ids is not None
        assert not set(ids) & set(tokenizer.all_special_ids)  # type: ignore[attr-defined]
        assert tokenizer.decode(ids) == text  # type: ignore[attr-defined]
    assert spelled(tokenizer, "") is None


def test_forms_exclude_one_another() -> None:
    tokenizer = chatml()
    forms = surface_forms(tokenizer, ("Yes", "Yes", " Yes", "Yes, I agree", "No"))
    texts = sorted(tokenizer.decode(ids) for ids in forms)
    assert texts == [" Yes", "No", "Yes"], "a longer form is part of the one it begins with"


def test_shared_tokens_are_matched_by_string_never_by_id() -> None:
    ours, theirs = chatml(), llama3()
    there = theirs.get_vocab()
    shared = shared_ids(ours, theirs)
    strings = ours.convert_ids_to_tokens(shared)
    assert set(strings) == set(ours.get_vocab()) & set(there)
    assert any(there[s] != i for s, i in zip(strings, shared, strict=True)), "some ids differ"
    assert shared_ids(ours, ours) == sorted(ours.get_vocab().values())
