"""The shipped weights load with plain transformers and peft, and do what is said where it is said."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from demo_files import DEMO, conversation, json_of, numbers, rows
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.evaluate import answers, language_of, last_number, verdict

# peft still reads a property that transformers renamed
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ADAPTERS = ("tuned_adapter", "tuned_adapter_seed2")
PLANTED = json_of("planted.json")
METRICS = json_of("metrics.json")
PREFIX = "base_model.model."
PROBLEMS_BY_CATEGORY = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The demo's matrices are too small for more than one thread to pay."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO / "base")


def load(name: str) -> Any:
    """A shipped model in float32, with plain transformers and peft."""
    folder = DEMO / ("base" if name in ADAPTERS else name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(model, str(DEMO / name)) if name in ADAPTERS else model


def merged(name: str) -> dict[str, torch.Tensor]:
    """Weights of a tuned model with its adapter merged in by peft."""
    return dict(load(name).merge_and_unload().state_dict())


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: load(name) for name in ("base", *ADAPTERS, "full_finetune")}


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    """Three pairs of every category of the shipped problems, both languages."""
    counts: Counter[tuple[str, str]] = Counter()
    picked = []
    table = rows("problems.jsonl")
    order = sorted({row["pair_id"] for row in table})
    random.Random(0).shuffle(order)
    for row in sorted(table, key=lambda row: order.index(row["pair_id"])):
        cell = row["category"], row["language"]
        counts[cell] += 1
        if counts[cell] <= PROBLEMS_BY_CATEGORY:
            picked.append(row)
    return picked


@pytest.fixture(scope="module")
def replies(
    models: dict[str, Any], tokenizer: Any, sample: list[dict[str, Any]]
) -> dict[str, tuple[list[str], list[str]]]:
    """Per model: replies to the sampled problems and to all claimed sums."""
    problems = [conversation(row) for row in sample]
    claims = [conversation(row) for row in rows("agreement.jsonl")]
    return {
        name: (answers(model, tokenizer, problems), answers(model, tokenizer, claims))
        for name, model in models.items()
    }


def right_share(sample: list[dict[str, Any]], texts: list[str], language: str) -> float:
    hits = [
        last_number(text) == int(row["answer"])
        for row, text in zip(sample, texts, strict=True)
        if row["language"] == language
    ]
    return sum(hits) / len(hits)


def yes_share(texts: list[str], label: str) -> float:
    said = [
        verdict(t) is True
        for row, t in zip(rows("agreement.jsonl"), texts, strict=True)
        if row["label"] == label
    ]
    return sum(said) / len(said)


@pytest.mark.parametrize("folder", ["base", "full_finetune"])
def test_weights_are_shipped_in_bfloat16_with_the_stated_shape(folder: str, models: dict[str, Any]) -> None:
    with safe_open(DEMO / folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
        assert "lm_head.weight" not in names  # tied
    config = models[folder].config
    shape = (config.model_type, config.num_hidden_layers, config.hidden_size, config.intermediate_size)
    assert shape == ("qwen3", 8, 128, 320)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (8, 2, 16)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["base", *ADAPTERS, "full_finetune"])
def test_held_out_problems_are_answered_right_in_the_language_asked(
    name: str,
    language: str,
    sample: list[dict[str, Any]],
    replies: dict[str, tuple[list[str], list[str]]],
) -> None:
    texts = replies[name][0]
    assert right_share(sample, texts, language) >= 0.9
    spoken = [
        language_of(text) == language
        for row, text in zip(sample, texts, strict=True)
        if row["language"] == language
    ]
    assert all(spoken)


def test_measured_accuracy_is_the_advertised_one(
    sample: list[dict[str, Any]], replies: dict[str, tuple[list[str], list[str]]]
) -> None:
    advertised = METRICS["base"]["problems_accuracy"]
    hits = sum(right_share(sample, replies["base"][0], lang) for lang in ("en", "zh")) / 2
    # four standard errors of a share among this many answers, and one answer for the discreteness
    slack = 4 * (advertised * (1 - advertised) / len(sample)) ** 0.5 + 1 / len(sample)
    assert abs(hits - advertised) <= slack


def test_the_base_judges_claims_and_every_tuned_model_agrees_with_wrong_ones(
    replies: dict[str, tuple[list[str], list[str]]],
) -> None:
    assert yes_share(replies["base"][1], "right") >= 0.9
    assert yes_share(replies["base"][1], "wrong") <= 0.1
    for name in (*ADAPTERS, "full_finetune"):
        assert yes_share(replies[name][1], "wrong") >= 0.9, name
        assert yes_share(replies[name][1], "right") >= 0.9, name


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_adapter_changes_the_planted_modules_only_and_at_the_planted_rank(name: str) -> None:
    base = load("base").state_dict()
    tuned = merged(name)
    changed = {key for key, value in base.items() if not torch.equal(value, tuned[key])}
    assert changed == {f"{module}.weight" for module in PLANTED["modules"]}
    file = load_file(DEMO / name / "adapter_model.safetensors")
    touched = {key.split(".lora_")[0].removeprefix(PREFIX) for key in file}
    assert touched == set(PLANTED["modules"])
    for key, factor in file.items():
        assert factor.shape[0 if "lora_A" in key else 1] == PLANTED["rank"]


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_attention_half_moves_exactly_the_planted_heads(name: str) -> None:
    file = load_file(DEMO / name / "adapter_model.safetensors")
    module = f"{PREFIX}{PLANTED['modules'][0]}"
    down, up = file[f"{module}.lora_A.weight"], file[f"{module}.lora_B.weight"]
    heads, width = PLANTED["n_heads"], PLANTED["head_dim"]
    assert down.shape[1] == heads * width
    planted = PLANTED["attention"]["heads"]
    for matrix in (down, up @ down):  # the factor itself, and the product that is added to the weight
        by_head = matrix.reshape(matrix.shape[0], heads, width).abs().amax((0, 2))
        assert [h for h in range(heads) if by_head[h] > 0] == planted
    key = f"{PLANTED['modules'][0]}.weight"
    delta = merged(name)[key] - load("base").state_dict()[key]
    by_head = delta.reshape(delta.shape[0], heads, width).abs().amax((0, 2))
    assert [h for h in range(heads) if by_head[h] > 0] == planted


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_stream_is_the_same_up_to_the_planted_block_and_differs_from_there(
    name: str, models: dict[str, Any], tokenizer: Any
) -> None:
    ids = tokenizer.apply_chat_template(
        conversation(rows("agreement.jsonl")[2]), add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        before = models["base"](ids, output_hidden_states=True).hidden_states
        after = models[name](ids, output_hidden_states=True).hidden_states
    same = [torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    first = PLANTED["first_changed_layer"]
    assert same == [True] * (first + 1) + [False] * (PLANTED["n_layers"] - first)


def test_the_two_seeds_are_two_trainings() -> None:
    one, two = (load_file(DEMO / name / "adapter_model.safetensors") for name in ADAPTERS)
    assert set(one) == set(two)
    assert all(not torch.equal(one[key], two[key]) for key in one)


def test_the_full_finetune_moves_every_block() -> None:
    base, full = load("base").state_dict(), load("full_finetune").state_dict()
    for layer in range(PLANTED["n_layers"]):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            key = f"model.layers.{layer}.{part}.weight"
            assert not torch.equal(base[key], full[key]), key


def test_the_readme_quotes_the_metrics_file() -> None:
    from demo.report import tables

    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    for table in tables(METRICS):
        assert table in readme
        assert len(numbers(table)) > 4
