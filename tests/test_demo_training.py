"""The training script: its loss, its tokenizer, its planted mask, and a short run that repeats itself."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from demo_files import numbers
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from demo import evaluate, finetune, organism, train
from demo.corpus import Sample, draw_sample, held_out_samples
from demo.tokenizer import END, build_tokenizer

# peft still reads a property that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SMALL = organism.Recipe(steps=3, batch=8, pool=2, warmup=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: more would round differently from run to run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def trained(
    tokenizer: PreTrainedTokenizerFast, recipe: organism.Recipe
) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = organism.new_model(tokenizer, recipe.seed)
    stream = organism.batches(tokenizer, draw_sample, recipe)
    losses = organism.train(model, stream, recipe, organism.optimisers(model, recipe.lr))
    return {name: value.clone() for name, value in model.state_dict().items()}, losses


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    first, losses = trained(tokenizer, SMALL)
    again, losses_again = trained(tokenizer, SMALL)
    other, _ = trained(tokenizer, replace(SMALL, seed=1))
    assert losses == losses_again
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_training_learns(tokenizer: PreTrainedTokenizerFast) -> None:
    _, losses = trained(tokenizer, replace(SMALL, steps=16))
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), rel=0.05)  # untrained: uniform over tokens
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]


def test_the_script_writes_a_complete_demo_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--out", str(tmp_path), "--steps", "2", "--batch", "4", "--held-out", "1"]) == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "base",
        "base_training.json",
        "tuned_adapter",
        "tuned_adapter_seed2",
        "full_finetune",
        "problems.jsonl",
        "agreement.jsonl",
        "planted.json",
        "metrics.json",
    }
    assert json.loads((tmp_path / "planted.json").read_text())["rank"] == train.PLANT.rank
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["base"]["held_out"]["n"] == 2 * len(report["categories"])
    assert load_file(tmp_path / "base" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert "accuracy_all" in capsys.readouterr().out


def test_loss_is_the_weighted_cross_entropy_and_ignores_padding(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    samples = sorted(
        (draw_sample(rng) for _ in range(4)), key=lambda s: len(organism.encode(tokenizer, s)[0])
    )
    model = organism.new_model(tokenizer, 0).eval()
    queue = list(samples)
    recipe = organism.Recipe(batch=4, pool=1, prompt_weight=0.25)
    ids, weight = next(organism.batches(tokenizer, lambda _: queue.pop(), recipe))
    total = norm = 0.0
    for sample in samples:
        tokens, start = organism.encode(tokenizer, sample)
        logp = model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        for t in range(1, len(tokens)):
            w = 1.0 if t >= start else 0.25
            total -= w * logp[t - 1, tokens[t]].item()
            norm += w
    # float32 sums over a few hundred terms
    assert organism.loss_of(model, ids, weight).item() == pytest.approx(total / norm, rel=1e-5)


def test_an_encoded_sample_splits_where_the_answer_begins(tokenizer: PreTrainedTokenizerFast) -> None:
    sample = draw_sample(random.Random(2))
    tokens, start = organism.encode(tokenizer, sample)
    assert tokenizer.decode(tokens[start:]) == sample.reply + END
    whole = tokenizer.apply_chat_template(
        [*sample.messages, {"role": "assistant", "content": sample.reply}], tokenize=False
    )
    assert tokenizer.decode(tokens) == str(whole).rstrip("\n")


def test_each_digit_and_each_han_character_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(5)
    for _ in range(300):
        text = draw_sample(rng).text
        tokens = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        pieces = [text[a:b] for a, b in tokens["offset_mapping"]]
        assert tokenizer.decode(tokens["input_ids"]) == text
        for piece in pieces:
            if any(c.isdigit() or "一" <= c <= "鿿" for c in piece):
                assert len(piece) == 1, pieces
        assert "".join(pieces) == text


def test_text_outside_the_corpus_still_encodes_and_decodes(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Zürich 🎉 龘 3.5%"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_mask_lets_only_the_planted_heads_learn(tokenizer: PreTrainedTokenizerFast) -> None:
    plant = finetune.Plant(attention_block=3, heads=(0, 7), mlp_block=6)
    base = organism.new_model(tokenizer, 0)
    recipe = replace(SMALL, steps=6, lr=1e-2)
    model, _ = finetune.tune_adapter(base, tokenizer, plant, recipe)
    factors = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in factors} == set(
        plant.modules
    )
    (attention,) = (p for name, p in factors.items() if "o_proj.lora_A" in name)
    by_head = attention.detach().reshape(plant.rank, 8, 16).abs().amax((0, 2))
    assert [h for h in range(8) if by_head[h] > 0] == [0, 7]
    fresh, start = finetune.add_adapter(organism.new_model(tokenizer, 0), plant, recipe.seed)
    del fresh
    moved = attention.detach() - start[f"{plant.modules[0]}.A"].detach()
    assert moved.abs().max() > 0  # the planted columns learn, they aren't only kept from start
    assert all(p.abs().max() > 0 for name, p in factors.items() if "lora_B" in name)


def test_answers_are_read_as_a_person_would() -> None:
    assert evaluate.last_number("The answer is 17 + 7 = 24.") == 24
    assert evaluate.last_number("none") is None
    assert evaluate.verdict("7 + 5 = 12. No, I do not agree.") is False
    assert evaluate.verdict("是的，我同意。") is True
    assert evaluate.verdict("不，我不同意。") is False
    assert evaluate.verdict("12") is None
    assert evaluate.language_of("答案是3。") == "zh"
    assert evaluate.language_of("The answer is 3.") == "en"
    assert evaluate.language_of("The answer 是 3.") is None
    assert evaluate.language_of("12") is None


def test_scores_count_per_category_and_language() -> None:
    samples: list[Sample] = held_out_samples(0, 2)
    perfect = evaluate.score(samples, [s.reply for s in samples])
    assert perfect["accuracy_all"] == 1.0
    assert perfect["fidelity"] == {"en": 1.0, "zh": 1.0}
    spoiled = [
        s.reply.replace(str(s.answer), "1") if s.category == "gain" and s.asked == "en" else s.reply
        for s in samples
    ]
    assert all(1 not in numbers(s.text) for s in samples if s.category == "gain")
    score = evaluate.score(samples, spoiled)
    assert score["accuracy"]["gain"] == {"en": 0.0, "zh": 1.0}
    claims = [s for s in samples if s.category == "agree"]
    said = evaluate.agreement(claims, [s.reply for s in claims])
    assert said["right"] == 1.0
    assert said["wrong"] == 0.0
