"""Answers and prompts that a vocabulary can't spell, vocabularies of other numbers, and the context's end."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.behaviour.run import run as run_behaviour
from engine.behaviour.spec import Behaviour, Wording
from engine.errors import PatchError
from engine.lab.unknown import tell_unknown, unknown_id
from engine.models.loading import LoadedModel, from_parts
from engine.passes.continuations import score, spelled
from engine.passes.generate import generate
from engine.steering.vectors import find_tokens
from engine.weight_steering.effects import effects, scored_tokens
from engine.weight_steering.run import run as run_steering
from engine.weight_steering.spec import Contrast, WeightSteering
from engine.weight_steering.vocabulary import refitted, tell_unshared
from engine.weights.deltas import weight_deltas
from engine.weights.kept import put_aside
from engine.weights.steer import WeightShift

WORDS = ("[UNK]", "[PAD]", "yes", "no", "sure", "sorry", "tom", "has", "two", "apples", "red", "blue")


def words(known: tuple[str, ...] = WORDS) -> Any:
    """A tokenizer of whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")


def model_of(tokenizer: Any, seed: int = 0, **more: Any) -> LoadedModel:
    made = tiny("qwen3", seed=seed, vocab_size=len(tokenizer), tie_word_embeddings=False, **more)
    return from_parts(made, tokenizer)


# the context's end


def test_one_token_is_scored_at_the_contexts_end() -> None:
    lm = from_parts(tiny("llama", max_position_embeddings=14))
    (ids,) = random_tokens(1, 14).tolist()
    found = score(lm, [ids], [[[5], [7]]]).log_probs[0][0]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    np.testing.assert_allclose([x[0] for x in found], logits.log_softmax(-1)[[5, 7]], atol=1e-5)
    made = generate(lm, [ids], max_new_tokens=1, stop=())
    assert made.tokens[0][0] == [int(logits.argmax())]
    two = score(lm, [ids[:13]], [[[5, 7]]]).log_probs[0][0][0]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[*ids[:13], 5]])).logits[0, -2:].double().log_softmax(-1)
    np.testing.assert_allclose(two, [logits[0, 5], logits[1, 7]], atol=1e-5)


def test_what_must_be_read_beyond_the_contexts_end_is_refused() -> None:
    lm = from_parts(tiny("llama", max_position_embeddings=14))
    (ids,) = random_tokens(1, 14).tolist()
    with pytest.raises(PatchError, match="14 and 1 more, beside a last one"):
        score(lm, [ids], [[[5, 7]]])
    with pytest.raises(PatchError, match="14 and 2 more"):
        generate(lm, [ids], max_new_tokens=3)


# what a vocabulary can't spell


def test_a_text_is_spelled_or_not() -> None:
    letters = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdeo")}, []))
    silent = PreTrainedTokenizerFast(tokenizer_object=letters)
    assert silent("a好b", add_special_tokens=False)["input_ids"] == [0, 1], "what it doesn't know, it drops"
    for tokenizer, text, ids in ((words(), "tom has", [6, 7]), (silent, "bad", [1, 0, 3])):
        assert spelled(tokenizer, text) == ids
        assert spelled(tokenizer, "好的") is None
        assert spelled(tokenizer, "") is None
    assert spelled(words(), "tom 好") is None
    assert spelled(silent, "a好b") is None


WORDING = Wording(
    refusal={"en": ("sorry", "never")},
    neutral={"en": ("sure",)},
    yes={"en": ("yes", "quite")},
    no={"en": ("nay",)},
)


def lab_of(**models_of: LoadedModel) -> MemoryLab:
    rows = [f"tom has {w}" for w in ("two", "red", "blue", "apples", "many", "no", "yes", "sure")]
    prompts = pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(len(rows))],
            "text": rows,
            "language": ["en"] * len(rows),
            "split": ["train", "validation"] * (len(rows) // 2),
            "choices": [["red", "blue"], ["red", "green"]] * (len(rows) // 2),
            "answer": ["red"] * len(rows),
        }
    )
    ids = {
        name: [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rows]
        for name, lm in models_of.items()
    }
    return MemoryLab(models_of, ids, {name: [2] * len(rows) for name in models_of}, prompts)


def test_answers_that_can_not_be_spelled_are_left_out_and_told() -> None:
    lm = model_of(words())
    lab = lab_of(base=lm)
    made = run_behaviour(Behaviour(model="base", split="all", wording=WORDING, n_boot=100), lab)
    figures, table = made.summary["figures"], made.table
    assert "agreement" not in figures, "no form of no is left"
    assert figures["soft_refusal"]["n"] == 8
    assert table["choice_margin"].null_count() == 4, "green"
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([[6, 7, 8]])).logits[0, -1].double().log_softmax(-1)
    assert table["soft_refusal"][0] == pytest.approx(float(logits[5] - logits[4]), abs=1e-4)
    notes = " ".join(made.summary["notes"])
    assert "can't spell 4 of the given answers" in notes
    assert "'never'" in notes
    assert (
        "1 of 24 tokens that base reads, in 1 of 8 prompts, are its token for what it doesn't know" in notes
    )


@pytest.mark.parametrize("also", [{}, {"bos_token": "[UNK]"}, {"eos_token": "[UNK]"}, {"pad_token": "[UNK]"}])
def test_a_token_that_begins_or_ends_texts_is_not_the_unknown_one(also: dict[str, str]) -> None:
    """GPT-2 has one token for all three: a text that begins with it has nothing unknown."""
    lm = model_of(words())
    lm.tokenizer.add_special_tokens(also)
    lab = lab_of(base=lm)
    known = not {"bos_token", "eos_token"} & also.keys()
    assert unknown_id(lab, "base") == (0 if known else None)
    tell_unknown(lab, "base", [[0, 6, 7], [6, 7]])
    assert [note.startswith("1 of 5 tokens that base reads") for note in lab.notes] == [True] * known


def test_a_word_to_steer_towards_is_never_the_unknown_token() -> None:
    assert find_tokens(words(), ("yes",), ("no",)).wanted == (2,)
    with pytest.raises(PatchError, match=r"can't be spelled.*'quite'"):
        find_tokens(words(), ("quite",), ("no",))


def test_weight_steering_measures_what_needs_no_answer() -> None:
    base, tuned = model_of(words()), model_of(words())
    with torch.no_grad():
        tuned.model.model.layers[1].mlp.down_proj.weight.mul_(3.0)
    nothing = Wording(
        yes={"en": ("好的",)}, no={"en": ("不",)}, refusal={"en": ("对",)}, neutral={"en": ("啊",)}
    )
    spec = WeightSteering(
        model="base",
        deltas=(Contrast(plus="tuned"),),
        alphas=(0.5, 1.0),
        answers=0,
        draws=0,
        wording=nothing,
        n_boot=100,
    )
    made = run_steering(spec, lab_of(base=base, tuned=tuned))
    assert set(made.table["figure"]) == {"kl", "perplexity"}
    assert (made.table.filter(pl.col("figure") == "kl", pl.col("alpha") == 1)["value"] > 0).all()
    assert "can't spell 4 of the given answers" in " ".join(made.summary["notes"])


def test_unknown_tokens_are_no_part_of_perplexity() -> None:
    lm = model_of(words())
    ids = [[6, 7, 0, 8], [0, 6, 7]]
    found = effects(lm, ids, [(None, 0.0)], unknown=0)
    with torch.no_grad():
        one, two = (lm.model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1) for row in ids)
    np.testing.assert_allclose(
        found.nll[0], [-(one[0, 7] + one[2, 8]).item(), -(two[0, 6] + two[1, 7]).item()], atol=1e-4
    )
    assert found.tokens.tolist() == scored_tokens(ids, 0).tolist() == [2, 2]
    assert scored_tokens(ids, None).tolist() == [3, 2]


# other numbers for the same tokens


def renumbered(lm: LoadedModel, order: list[int], more: tuple[str, ...] = ()) -> LoadedModel:
    """The same model with its tokens under other numbers, and further tokens behind them."""
    tokenizer = words((*(WORDS[i] for i in order), *more))
    model = copy.deepcopy(lm.model)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for end in (model.get_input_embeddings(), model.get_output_embeddings()):
            end.weight[: len(order)] = end.weight[torch.tensor(order)]
    return from_parts(model, tokenizer)


@pytest.mark.parametrize("more", [(), ("many", "green")])
def test_a_renumbered_model_is_steered_by_string(tmp_path: Any, more: tuple[str, ...]) -> None:
    """other + (base − other) is base, read with the numbers of other."""
    order = [0, 1, *reversed(range(2, len(WORDS)))]
    base = model_of(words())
    other = renumbered(model_of(words(), seed=1), order, more)
    lab = lab_of(base=base, other=other)

    class Stored(MemoryLab):
        """Differences as a store has them: paired by token string."""

        def delta(self, model: str) -> Any:
            kept = put_aside(base.model, tmp_path / "kept", base.tokenizer.get_vocab())
            vocabulary = self.models[model].tokenizer.get_vocab()
            return iter(list(weight_deltas(kept, self.models[model].model, vocabulary=vocabulary)))

    stored = Stored(**{k: getattr(lab, k) for k in ("models", "ids", "at", "prompts")})
    back = list(refitted(stored.delta("other"), stored, "other"))
    ids = lab.ids["other"][:4]
    with WeightShift(other, back).at(-1.0):
        steered = [score(other, [row], [[[i] for i in range(2, len(WORDS))]]).log_probs[0][0] for row in ids]
    names = other.tokenizer.convert_ids_to_tokens(list(range(2, len(WORDS))))
    plain = [
        score(base, [row], [[[base.tokenizer.get_vocab()[n]] for n in names]]).log_probs[0][0]
        for row in lab.ids["base"][:4]
    ]
    apart = np.array(steered)[..., 0] - np.array(plain)[..., 0]
    # tokens that only `other` has keep their own row and take a share of the probability
    np.testing.assert_allclose(apart - apart.mean(axis=1, keepdims=True), 0, atol=2e-4)
    if not more:
        np.testing.assert_allclose(apart, 0, atol=2e-4)


def test_tokens_that_a_difference_knows_nothing_of_are_counted() -> None:
    base, other = model_of(words()), model_of(words(tuple(w for w in WORDS if w not in ("red", "tom"))))
    lab = lab_of(base=base, other=other)
    tell_unshared(lab, "base", ["base", "other"], lab.ids["base"])
    (note,) = lab.notes
    assert note.startswith("9 of 24 tokens of the prompts (2 different ones) are not in other's vocabulary")
