"""The demo's base and tuned models on its claims and some of its problems, as a lab."""

from __future__ import annotations

from functools import cache

import polars as pl
from demo_files import DEMO, conversation, rows
from memory_lab import MemoryLab

from engine.models.loading import load
from engine.study.study import ModelSpec

CLAIMS, EVERY = 48, 20
"""How many claims, and every how many-th problem."""


@cache
def demo_lab() -> MemoryLab:
    """Row i of `prompts` is prompt i in both models; everything is in the validation split."""
    specs = {
        "base": ModelSpec(path=DEMO / "base", device="cpu"),
        "tuned": ModelSpec(path=DEMO / "base", adapter=DEMO / "tuned_adapter", device="cpu"),
    }
    models = {name: load(spec, name) for name, spec in specs.items()}
    said = rows("agreement.jsonl")[:CLAIMS] + rows("problems.jsonl")[::EVERY]
    tokenizer = models["base"].tokenizer
    turns = [conversation(row) for row in said]
    texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    kept = ("id", "pair_id", "language", "category", "answer", "choices", "label")
    table = pl.DataFrame(
        [
            {name: row.get(name) for name in kept} | {"text": text, "split": "validation"}
            for row, text in zip(said, texts, strict=True)
        ]
    )
    last = [len(i) - 1 for i in ids]
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, last), table)
