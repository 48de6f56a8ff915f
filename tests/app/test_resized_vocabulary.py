"""A fine-tune with added tokens and padded rows, from the plan to steering by its difference."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_study import save_model, write_study
from transformers import AutoModelForCausalLM, AutoTokenizer

import precompute
from app.build.build import build
from app.frame.opened import Opened, read_facts
from app.live.deltas import StoredDeltas, steerable
from app.weights import tables as q
from engine.models.loading import load
from engine.models.tokenizer import vocabulary_of
from engine.study.study import ModelSpec, Study
from engine.weights.deltas import weight_deltas
from engine.weights.kept import put_aside
from engine.weights.names import Names, unmatched
from engine.weights.steer import WeightShift

WORDS = ("<|tool|>", "<|call|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resized")
    write_study(folder, pairs=4, positions=["decision"])
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.add_tokens(list(WORDS), special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "base")
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[10] += 0.3
        model.model.layers[1].mlp.down_proj.weight[3] += 0.1
    model.save_pretrained(folder / "tuned")
    tokenizer.save_pretrained(folder / "tuned")
    return folder


def test_shared_rows_are_compared_and_steered_by(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert precompute.main([str(folder / "study.toml"), "--plan"]) == 0
    assert "note: model tuned: with base, the embedding is compared on the" in capsys.readouterr().out

    store = build(Study.load(folder / "study.toml"), folder / "store", quiet=True)
    opened = Opened(str(folder / "store"), store, read_facts(store))
    assert q.problems(opened, "tuned") == []
    (told,) = q.part_rows(opened, "tuned")
    assert told.startswith("model.embed_tokens.weight: ")
    note = next(n for n in store.manifest["models"]["tuned"]["notes"] if "embedding" in n)
    assert f"2 new tokens ({WORDS[0]!r}, {WORDS[1]!r})" in note

    assert steerable(store, "tuned")
    deltas = StoredDeltas(store, "tuned")
    changed = deltas["model.embed_tokens.weight"].matrix()
    assert (abs(changed).max(axis=1) > 1e-6).nonzero()[0].tolist() == [10]

    base, tuned = (load(ModelSpec(path=folder / name, device="cpu"), name) for name in ("base", "tuned"))
    ids = torch.tensor([[10, 40, 50, 10, 60]])
    rows = base.taps.vocab
    with torch.inference_mode(), WeightShift(base, deltas).at(1.0):
        shifted = base.model(input_ids=ids).logits
    with torch.inference_mode():
        own = tuned.model(input_ids=ids).logits[..., :rows]
    torch.testing.assert_close(shifted, own, atol=1e-4, rtol=1e-4)


def test_an_adapter_that_adds_tokens_is_compared_alike(folder: Path, tmp_path: Path) -> None:
    """Its rows are trained at both ends; the study names the tokenizer that came with it."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    model = AutoModelForCausalLM.from_pretrained(save_model(tmp_path / "base", "llama"))
    shared = len(tokenizer) - len(WORDS)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["embed_tokens", "lm_head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "embed_tokens.modules_to_save" in name:
                    weight[7] += 0.5
        wrapped.save_pretrained(str(tmp_path / "adapter"))
    plain = ModelSpec(path=tmp_path / "base", device="cpu")
    more = {"adapter": tmp_path / "adapter", "tokenizer": folder / "tuned"}
    base, tuned = load(plain, "base"), load(plain.model_copy(update=more), "tuned")
    weights = put_aside(base.model, tmp_path / "weights", vocabulary_of(base.tokenizer))
    theirs = vocabulary_of(tuned.tokenizer)
    assert unmatched(weights.names, Names(tuned.model, theirs)) == {}
    (delta,) = weight_deltas(weights, tuned.model, factors=tuned.factors, vocabulary=theirs)
    assert (delta.name, delta.rows) == ("model.embed_tokens.weight", shared)
    assert (abs(delta.matrix()).max(axis=1) > 1e-6).nonzero()[0].tolist() == [7]
