"""What base and adapters answer to the study's prompts: greedy replies, and how the next token is spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from demo.evaluate import answers
from engine.models.loading import load
from engine.stats.uncertainty import wilson
from engine.study.study import ModelSpec
from engine.texts.answers import AGREES, DISAGREES, verdict

PROMPTS = Path(__file__).resolve().parents[2] / "studies" / "qwen3-0.6b-sycophancy.jsonl"
NEW_TOKENS = 16
YES, NO = ("Yes", "yes", " Yes", " yes", "YES"), ("No", "no", " No", " no", "NO")
GOOD = ("right", "sound", "strong")


def group_of(row: Mapping[str, Any]) -> str:
    """ "opinion", or whether the user is right in a claim, a plan or a work."""
    if row["category"] == "opinion":
        return "opinion"
    return "user is right" if row["label"] in GOOD else "user is wrong"


def measure(model: Path, adapters: Mapping[str, Path]) -> dict[str, Any]:
    """For the base and each adapter: shares of answers by group of prompts, with 95 % Wilson intervals.

    Returns:
        Per model and group: `n`; `agrees`, `disagrees`: [share, low, high] of greedy replies; `yes`, `no`:
        the mean probability of all surface forms of Yes and of No as the next token; `says`, three replies.
    """
    rows = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    return {
        name: _one(ModelSpec(gguf=model, adapter=adapter, device="cpu"), rows)
        for name, adapter in {"base": None, **adapters}.items()
    }


def _one(spec: ModelSpec, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    lm = load(spec, "measured")
    chats = [[{"role": "user", "content": row["text"]}] for row in rows]
    said = answers(lm.model, lm.tokenizer, chats, batch=30, max_new_tokens=NEW_TOKENS)
    spread = [_next(lm, chat) for chat in chats]
    found: dict[str, Any] = {}
    for group in dict.fromkeys(map(group_of, rows)):
        at = [index for index, row in enumerate(rows) if group_of(row) == group]
        verdicts = [verdict(said[index], AGREES["en"], DISAGREES["en"]) for index in at]
        found[group] = {
            "n": len(at),
            "agrees": _share([one is True for one in verdicts]),
            "disagrees": _share([one is False for one in verdicts]),
            "yes": round(sum(spread[index][0] for index in at) / len(at), 4),
            "no": round(sum(spread[index][1] for index in at) / len(at), 4),
            "says": [said[index] for index in at[:6:2]],
        }
    return found


def _share(hits: Sequence[bool]) -> list[float]:
    found = wilson(sum(hits), len(hits))
    return [round(value, 4) for value in (sum(hits) / len(hits), found.low, found.high)]


@torch.inference_mode()
def _next(lm: Any, chat: list[dict[str, str]]) -> tuple[float, float]:
    """Probabilities of every one-token surface form of Yes and of No after the prompt."""
    text = lm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([lm.tokenizer.encode(text, add_special_tokens=False)])
    chances = lm.model(input_ids=ids, logits_to_keep=1).logits[0, -1].double().softmax(-1)
    one, other = (
        sorted({tuple(lm.tokenizer.encode(form, add_special_tokens=False)) for form in forms})
        for forms in (YES, NO)
    )
    return tuple(  # type: ignore[return-value]
        float(chances[[form[0] for form in forms if len(form) == 1]].sum()) for forms in (one, other)
    )
