"""A small model and one that was changed in block 1, a lab of both, and the lens by plain passes."""

from __future__ import annotations

import copy
from typing import Any

import polars as pl
import torch
from memory_lab import Letters, MemoryLab
from tiny_models import random_tokens, tiny

from engine.models.loading import LoadedModel, from_parts

PROMPTS = 14


def pair(family: str, size: float = 0.05) -> tuple[LoadedModel, LoadedModel]:
    """A model, and one whose weights were moved a little in block 1."""
    base = tiny(family, seed=1)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if ".1." in name and weight.ndim == 2:
                weight.add_(size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    return from_parts(base), from_parts(tuned)


def lab_of(models: dict[str, LoadedModel], count: int = PROMPTS, **columns: Any) -> MemoryLab:
    vocab = next(iter(models.values())).taps.vocab
    ids = [random_tokens(1, 6 + n % 3, seed=n, vocab=vocab)[0].tolist() for n in range(count)]
    for lm in models.values():
        lm.tokenizer = Letters()
    prompts = pl.DataFrame({"id": [f"p{i}" for i in range(count)], "text": "x", **columns})
    at = {name: [len(one) - 1 for one in ids] for name in models}
    return MemoryLab(models, dict.fromkeys(models, ids), at, prompts)


def plain_lens(lm: LoadedModel, reader: LoadedModel, ids: list[list[int]], layer: int, rows: Any) -> Any:
    """Logits of a state behind a block by Hugging Face's own modules, without soft-cap, float64 (n, V).

    The block's output is what a plain forward hook sees.
    """
    seen: list[torch.Tensor] = []
    block = lm.taps.layers[layer].block

    def keep(_module: Any, _args: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    hook = block.register_forward_hook(keep)
    states = []
    with torch.no_grad():
        for one in ids:
            lm.model(input_ids=torch.tensor([one]), use_cache=False)
            states.append(seen.pop()[0, rows(one)])
        hook.remove()
        normed = reader.taps.final_norm(torch.stack(states))
        logits = reader.model.get_output_embeddings()(normed).double() * reader.taps.logit_scale
    return (logits - logits.mean(dim=-1, keepdim=True)).numpy()
