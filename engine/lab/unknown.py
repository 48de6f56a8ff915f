"""Tokens that a model doesn't know in the prompts that it reads."""

from __future__ import annotations

from collections.abc import Sequence

from engine.lab.experiment import Lab

__all__ = ["tell_unknown", "unknown_id"]


def unknown_id(lab: Lab, model: str) -> int | None:
    """Id of a model's unknown token; None where it has none, or one that begins or ends texts as well."""
    tokenizer = lab.tokenizer(model)
    found, *others = (getattr(tokenizer, f"{kind}_token_id", None) for kind in ("unk", "bos", "eos"))
    return None if found is None or found in others else int(found)


def tell_unknown(lab: Lab, model: str, ids: Sequence[Sequence[int]]) -> None:
    """Notes how many tokens of the prompts are the model's unknown token, where any is."""
    unknown = unknown_id(lab, model)
    counts = [sum(token == unknown for token in own) for own in ids]
    if unknown is None or not any(counts):
        return
    note = (
        f"{sum(counts):,} of {sum(map(len, ids)):,} tokens that {model} reads, in "
        f"{sum(count > 0 for count in counts)} of {len(ids)} prompts, are its token for what it doesn't know."
    )
    lab.notes.extend([] if note in lab.notes else [note])
