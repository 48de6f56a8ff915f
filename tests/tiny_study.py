"""A complete small study on disk: two tiny models with a tokenizer, prompts in pairs, and the TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tiny_models import tiny
from tiny_tokenizers import chatml

NOUNS = ("apples", "cups", "coins", "books", "pens", "cards", "boats", "stones")


def prompt_rows(pairs: int) -> list[dict[str, Any]]:
    """Word problems, two per pair, of very different lengths."""
    rows = []
    for i in range(pairs):
        noun, more = NOUNS[i % len(NOUNS)], " and then some more" * (i % 5)
        common = {"pair_id": f"p{i}", "category": f"c{i % 3}", "answer": str(2 * i)}
        english = f"Tom has {i} {noun} and buys {i}{more}. How many {noun} does Tom have now?"
        rows.append(common | {"id": f"p{i}-en", "language": "en", "text": english})
        rows.append(common | {"id": f"p{i}-zh", "language": "zh", "text": f"小明有{i}个苹果，又买了{i}个。"})
    return rows


def save_model(folder: Path, family: str = "qwen3", seed: int = 0, **overrides: Any) -> Path:
    """A tiny random model and its chat tokenizer, as save_pretrained leaves them."""
    tokenizer = chatml()
    model = tiny(family, seed=seed, vocab_size=len(tokenizer), **overrides)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_study(folder: Path, *, pairs: int = 8, extra: str = "", **capture: Any) -> Path:
    """Writes models, prompts and study.toml into `folder`; returns the study file."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("base", "tuned")):
        if not (folder / name).exists():
            save_model(folder / name, seed=seed)
    lines = [json.dumps(row, ensure_ascii=False) for row in prompt_rows(pairs)]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    capture = {"unit_prompts": 4, "batch_tokens": 256} | capture
    text = [
        'name = "tiny"\n[models.base]\npath = "base"\n[models.tuned]\npath = "tuned"',
        '[prompts]\nfiles = ["prompts.jsonl"]\n[capture]',
        *(f"{key} = {json.dumps(value)}" for key, value in capture.items()),
        extra,
    ]
    study = folder / "study.toml"
    study.write_text("\n".join(text), encoding="utf-8")
    return study
