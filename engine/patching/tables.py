"""Per-prompt tables of patched runs: the prompt, the patched tokens, and the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.errors import ModelError, PatchError
from engine.lab.experiment import Lab
from engine.passes.sweep import SweepResult


def prompt_table(lab: Lab, rows: np.ndarray, position: str, models: Mapping[str, str]) -> pl.DataFrame:
    """Prompts with the token that stands at a position in each model.

    Args:
        models: column stem -> model, e.g. {"target": "tuned", "source": "base"}.

    Returns:
        The prompts' columns (without `messages`), their row as `row`, and <stem>_token (text; a number
        where the tokenizer is not on this machine) and <stem>_index (its place in the prompt).
    """
    table = lab.prompts[rows].drop("messages", strict=False)
    table = table.insert_column(0, pl.Series("row", rows, dtype=pl.Int64))
    for stem, name in models.items():
        places, ids = lab.places(name, position, rows), lab.token_ids(name, rows)
        try:
            tokenizer = lab.tokenizer(name)
        except ModelError:
            tokenizer = None
        shown = [token_text(tokenizer, row[place]) for row, place in zip(ids, places, strict=True)]
        table = table.with_columns(
            pl.Series(f"{stem}_token", shown, dtype=pl.String),
            pl.Series(f"{stem}_index", places, dtype=pl.Int64),
        )
    return table


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as a person reads it; one that holds part of a character as its bytes, "⟨E5 9B⟩"."""
    if tokenizer is None:
        return f"#{token_id}"
    text = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if text and "\ufffd" not in text:
        return text
    raw = tokenizer.convert_ids_to_tokens(int(token_id))
    if raw is None:
        return f"#{token_id}"
    if text and all(character in _BYTES for character in raw):
        return "⟨" + " ".join(f"{_BYTES[character]:02X}" for character in raw) + "⟩"
    return str(raw)


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE's spelling of bytes: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def per_prompt_table(
    alphas: Sequence[float], prompts: pl.DataFrame, swept: SweepResult, tokenizer: Any
) -> pl.DataFrame:
    """One row per (alpha, prompt): the prompts' columns, alpha, kl, and the target's next tokens.

    `top_before`/`top_after` are lists of strings, `p_before`/`p_after` their probabilities;
    `top1_changed` compares token ids of the one target tokenizer.
    """
    parts = []
    for c, alpha in enumerate(alphas):
        columns: list[pl.Series] = [
            pl.Series("alpha", np.full(prompts.height, alpha)),
            pl.Series("kl", swept.kl[c]),
        ]
        if swept.top_ids is not None:
            columns += token_columns(swept, c, tokenizer)
        parts.append(prompts.with_columns(columns))
    return pl.concat(parts)


def token_columns(swept: SweepResult, c: int, tokenizer: Any) -> list[pl.Series]:
    """Columns of one condition of a sweep: the likeliest next tokens and their probabilities.

    `top_before`/`top_after` are lists of strings, `p_before`/`p_after` their probabilities; `top1_changed`
    compares token ids of the one target tokenizer.
    """
    if swept.top_ids is None or swept.top_log_probs is None:
        raise PatchError("The sweep kept no next tokens.", expected="top_k > 0", given="none")
    before, after = np.asarray(swept.unpatched_top_ids), np.asarray(swept.top_ids[c])
    names = {int(t): token_text(tokenizer, int(t)) for t in np.union1d(before, after)}
    strings, floats = pl.List(pl.String), pl.List(pl.Float64)

    def tokens(name: str, ids: np.ndarray) -> pl.Series:
        return pl.Series(name, [[names[int(t)] for t in row] for row in ids], dtype=strings)

    def chances(name: str, log_probs: Any) -> pl.Series:
        return pl.Series(name, np.exp(np.asarray(log_probs, dtype=np.float64)).tolist(), dtype=floats)

    return [
        tokens("top_before", before),
        chances("p_before", swept.unpatched_top_log_probs),
        tokens("top_after", after),
        chances("p_after", swept.top_log_probs[c]),
        pl.Series("top1_changed", before[:, 0] != after[:, 0]),
    ]
