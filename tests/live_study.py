"""A study of three tiny models on disk, with everything live work needs, and its store.

`base` and `tuned` are Qwen3 models that differ in the MLP of one block; `other` is a Llama of the same width
with another tokenizer. Prompts are pairs of an English and a Chinese question.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import tiny
from tiny_tokenizers import chatml, llama3

from app.build.prepare import Prepared
from engine.models.loading import load
from engine.passes.capture import capture_unit
from engine.study.fingerprints import diff_studies
from engine.study.study import Study
from store.writer import StoreWriter

BLOCKS, CHANGED, PAIRS = 4, 2, 10
ENGLISH = "Tom has {a} apples and buys {b} more. How many apples does Tom have now?"
CHINESE = "小明有{a}个苹果，又买了{b}个苹果。他一共有几个苹果？"


def save_models(folder: Path) -> None:
    """Writes models/base, models/tuned and models/other with their tokenizers."""
    qwen, llama = chatml(), llama3()
    base = tiny("qwen3", seed=3, num_hidden_layers=BLOCKS, vocab_size=len(qwen), max_position_embeddings=256)
    tuned = copy.deepcopy(base)
    weight = tuned.model.layers[CHANGED].mlp.down_proj.weight
    with torch.no_grad():
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    other = tiny(
        "llama", seed=5, num_hidden_layers=BLOCKS, vocab_size=len(llama), max_position_embeddings=256
    )
    for name, model, tokenizer in (("base", base, qwen), ("tuned", tuned, qwen), ("other", other, llama)):
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)


def write_prompts(path: Path) -> None:
    """Writes the pairs: id, pair_id, language, category, text."""
    with open(path, "w", encoding="utf-8") as out:
        for pair in range(PAIRS):
            for language, text in (("en", ENGLISH), ("zh", CHINESE)):
                row = {"id": f"p{pair}-{language}", "pair_id": f"p{pair}", "language": language}
                row |= {"category": ("add", "buy")[pair % 2], "text": text.format(a=pair + 3, b=2 * pair + 5)}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


def make_study(folder: Path, dtype: str = "float32", **capture: Any) -> Study:
    """Saves the models and prompts below `folder` and returns the study (date fixed, split by pair)."""
    if not (folder / "models").exists():
        save_models(folder)
        write_prompts(folder / "prompts.jsonl")
    names = ("base", "tuned", "other")
    settings = {"positions": ("last_content", "decision"), "unit_prompts": 8, "dtype": dtype, **capture}
    data = {
        "name": "tiny",
        "models": {name: {"path": f"models/{name}", "device": "cpu"} for name in names},
        "prompts": {"files": ["prompts.jsonl"], "validation": 0.5, "date": "2024-07-26"},
        "capture": settings,
    }
    return Study.from_dict(data, folder)


def make_store(folder: Path, dtype: str = "float32", **capture: Any) -> Path:
    """Captures the study into folder/store-<dtype> (activations and tables, no Grams); returns its path."""
    study = make_study(folder, dtype, **capture)
    prepared, path = Prepared.of(study), folder / f"store-{dtype}"
    with StoreWriter.create_or_resume(
        path, prepared.store_plan(), study.to_json(), study.fingerprint(), describe=diff_studies
    ) as writer:
        writer.write_table("prompts", prepared.table)
        for name, spec in study.models.items():
            writer.write_table(f"tokens-{name}", prepared.encoded[name])
            writer.write_table(f"positions-{name}", prepared.position_table(name))
            lm = load(spec, name)
            for unit in writer.pending(name):
                values = capture_unit(
                    lm,
                    prepared.token_ids(name),
                    list(writer.plan.prompts_of(unit)),
                    prepared.positions[name],
                    components=study.capture.components,
                    layers=study.capture.blocks(lm.taps.n_layers),
                    batch_tokens=study.capture.batch_tokens,
                )
                writer.commit(name, unit, values)
        writer.finish({})
    return path
