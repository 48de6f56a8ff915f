"""Greedy generation: batches, endings, edits beyond one token, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import random_tokens, tiny
from tiny_tokenizers import chatml

from engine.errors import PatchError, SiteError
from engine.models.loading import from_parts
from engine.models.sites import Site, first_tensor, replace_first
from engine.passes.decoding import Decoder
from engine.passes.edits import Edit, Tokens
from engine.passes.generate import _likeliest, generate, replace_at, stop_tokens
from engine.passes.patch_engine import JobCancelled, PatchEngine

LENGTHS, POSITIONS = (9, 14, 5, 12, 14, 1), (6, 13, 0, 9, 11, 0)
SITE = Site("resid_post", 1)


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def test_batches_do_not_change_the_tokens() -> None:
    lm, ids = from_parts(tiny("qwen3")), prompts()
    vectors = PatchEngine(lm, ids, POSITIONS).activations(SITE).roll(1, 0)
    edits = [None, replace_at(SITE, POSITIONS, vectors), None]
    together = generate(lm, ids, edits, max_new_tokens=8, stop=[])
    alone = generate(lm, ids, edits, max_new_tokens=8, stop=[], batch_tokens=1)
    assert together == alone
    assert together.tokens[0] == together.tokens[2]
    assert together.tokens[0] != together.tokens[1]
    assert not any(any(row) for row in together.ended)


def test_the_own_activation_put_back_changes_nothing() -> None:
    lm, ids = from_parts(tiny("gemma2")), prompts()
    engine = PatchEngine(lm, ids, POSITIONS)
    sites = [SITE, Site("head_z", 0, (1,)), Site("attn_out", 2), Site("mlp_out", 0)]
    edits = [replace_at(site, POSITIONS, engine.activations(site)) for site in sites]
    made = generate(lm, ids, [None, *edits], max_new_tokens=8, stop=[])
    assert all(made.tokens[c] == made.tokens[0] for c in range(1, len(edits) + 1))


def test_a_row_ends_at_its_first_stop_token_and_leaves_it_out() -> None:
    lm, ids = from_parts(tiny("llama")), prompts()
    free = generate(lm, ids, max_new_tokens=10, stop=[]).tokens[0]
    stop = free[1][3]
    made = generate(lm, ids, max_new_tokens=10, stop=[stop])
    for found, whole, ended in zip(made.tokens[0], free, made.ended[0], strict=True):
        cut = whole.index(stop) if stop in whole else len(whole)
        assert found == whole[:cut]
        assert ended == (stop in whole)
    assert made.ended[0][1]


def test_what_shares_no_edited_token_runs_once() -> None:
    lm, ids = from_parts(tiny("qwen3")), prompts()
    edit = replace_at(SITE, POSITIONS, torch.zeros(len(ids), 32))
    seen: list[int] = []
    handle = lm.taps.embed.register_forward_hook(lambda _m, args, _o: seen.append(args[0].numel()))
    decoder = Decoder(lm, ids, [None, edit, edit, edit], room=1)
    for batch in decoder.plan(None):
        decoder.start(batch)
    handle.remove()
    tails = sum(length - min(p, length - 1) for length, p in zip(LENGTHS, POSITIONS, strict=True))
    once = sum(POSITIONS)
    padding = sum(seen) - once - 4 * tails
    assert 0 <= padding < once


@pytest.mark.parametrize("scope", ["prompt", "all"])
def test_a_function_may_edit_every_token(scope: Any) -> None:
    lm, ids = from_parts(tiny("llama")), prompts()
    layer = lm.taps.layers[1]
    edit = Edit(Site("mlp_out", 1), lambda own, tokens: -own, (0,) * len(ids), scope)
    made = generate(lm, ids, [None, edit], max_new_tokens=8, stop=[])

    def negate(_module: Any, _args: Any, output: Any) -> Any:
        value = first_tensor(output)
        generated = scope == "prompt" and value.shape[1] == 1 and len(row) > 1
        return output if generated else replace_first(output, -value)

    for prompt, row in enumerate(ids):
        if scope == "prompt" and len(row) == 1:
            continue  # a one-token prompt can't be told from a generated token by this hook
        handle = layer.mlp.register_forward_hook(negate)
        out = lm.model.generate(
            input_ids=torch.tensor([row]),
            attention_mask=torch.ones(1, len(row), dtype=torch.long),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
            pad_token_id=0,
        )
        handle.remove()
        assert made.tokens[1][prompt] == out[0, len(row) :].tolist()
    assert made.tokens[0] != made.tokens[1]


def test_a_change_is_told_which_tokens_it_sees() -> None:
    lm, ids = from_parts(tiny("qwen3")), prompts()
    seen: dict[int, set[int]] = {}

    def look(own: torch.Tensor, tokens: Tokens) -> torch.Tensor:
        for prompt, index in zip(tokens.prompts.tolist(), tokens.index.tolist(), strict=True):
            seen.setdefault(prompt, set()).update(i for i in index if i >= 0)
        return own

    generate(lm, ids, [Edit(SITE, look, (0,) * len(ids), "all")], max_new_tokens=3, stop=[])
    assert seen == {p: set(range(len(row) + 2)) for p, row in enumerate(ids)}


def test_stop_tokens_come_from_model_and_tokenizer() -> None:
    tokenizer = chatml()
    lm = from_parts(tiny("qwen3", vocab_size=len(tokenizer)), tokenizer)
    assert stop_tokens(lm) == {2} | ({tokenizer.eos_token_id} - {None})
    made = generate(lm, [tokenizer("Tom has")["input_ids"]], max_new_tokens=4)
    assert made.texts(tokenizer) == [[tokenizer.decode(made.tokens[0][0])]]


def test_generation_can_be_cancelled_between_tokens() -> None:
    lm, asked = from_parts(tiny("qwen3")), iter([False, False, False, True])
    with pytest.raises(JobCancelled, match="was cancelled"):
        generate(lm, prompts(), max_new_tokens=8, stop=[], should_stop=lambda: next(asked))


def test_what_does_not_fit_is_refused_in_words() -> None:
    lm, ids = from_parts(tiny("gpt2")), prompts()
    with pytest.raises(PatchError, match="at most 128 tokens"):
        generate(lm, ids, max_new_tokens=120)
    with pytest.raises(PatchError, match="1 token or more"):
        generate(lm, ids, max_new_tokens=0)
    with pytest.raises(PatchError, match="nothing to run"):
        generate(lm, [[]], max_new_tokens=1)
    with pytest.raises(PatchError, match="inside each prompt"):
        generate(lm, ids, [replace_at(SITE, [99] * 6, torch.zeros(6, 32))], max_new_tokens=1)
    with pytest.raises(PatchError, match="do not fit the prompts"):
        replace_at(SITE, POSITIONS, torch.zeros(2, 32))
    with pytest.raises(PatchError, match="not finite"):
        replace_at(SITE, POSITIONS, torch.full((6, 32), float("nan")))
    with pytest.raises(SiteError, match="Layer 9"):
        generate(lm, ids, [replace_at(Site("resid_pre", 9), POSITIONS, torch.zeros(6, 32))], max_new_tokens=1)


def test_the_likeliest_tokens_are_those_of_a_forward_pass_over_the_text() -> None:
    lm, ids = from_parts(tiny("qwen3")), prompts()
    vectors = PatchEngine(lm, ids, POSITIONS).activations(SITE).roll(1, 0)
    stop = generate(lm, ids, max_new_tokens=4, stop=[]).tokens[0][1][2]
    edits = [None, replace_at(SITE, POSITIONS, vectors)]
    made = generate(lm, ids, edits, max_new_tokens=4, top=3, stop=[stop])
    plain = generate(lm, ids, edits, max_new_tokens=4, stop=[stop])
    assert (made.tokens, made.ended) == (plain.tokens, plain.ended)
    assert plain.top == []
    for prompt, row in enumerate(ids):
        said, ended, best = (part[0][prompt] for part in (made.tokens, made.ended, made.top))
        assert len(best) == len(said) + ended
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([row + said])).logits[0, len(row) - 1 :]
        for step, pairs in enumerate(best):
            wanted = logits[step].softmax(-1).topk(3)
            assert [token for token, _ in pairs] == wanted.indices.tolist()
            # Batches of another shape add in another order.
            assert [p for _, p in pairs] == pytest.approx(wanted.values.tolist(), abs=4e-6)
            assert pairs[0][0] == (said[step] if step < len(said) else stop)
    assert any(any(row) for row in made.ended)


def test_of_equal_tokens_the_chosen_one_comes_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0], [1.0, 0.0, 3.0, 3.0]])
    found = _likeliest(logits, torch.tensor([3, 2]), 3)
    assert [pairs[0][0] for pairs in found] == [3, 2]
    assert {token for token, _ in found[0]} == {1, 2, 3}
    assert _likeliest(logits, torch.tensor([3, 2]), 0) == []
