"""Prompt files with chats, and tokenizers with a template of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
from tiny_tokenizers import chatml, gemma, llama3
from transformers import PreTrainedTokenizerFast

from engine.prompts.spec import PromptsSpec
from engine.prompts.table import read_prompts

FAMILIES = {"chatml": chatml, "llama3": llama3, "gemma": gemma}
TEXT = "What is the capital of France?"
DATE = {"date_string": "26 Jul 2024"}


def prompts(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[pl.DataFrame, PromptsSpec]:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = PromptsSpec(files=(path,), **({"ids": "row"} | settings))
    return read_prompts(spec), spec


def with_template(template: str) -> Any:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chatml().backend_tokenizer, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    return tokenizer


def user(text: str = TEXT) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
