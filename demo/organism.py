"""The demo model and its training loop: Qwen3, Muon on matrices, AdamW on the rest.

Recipe: loss weight 0.02 on the prompt, 96 samples a step in length-bucketed batches, learning rate
2.5e-3 with linear decay. Muon: Jordan et al. 2024 (`torch.optim.Muon`), its step scaled to the size
of an AdamW step (Liu et al. 2025), so that one learning rate serves both.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from demo.corpus import Sample

TOKENIZER_SETTINGS = (
    "clean_up_tokenization_spaces",
    "eos_token",
    "model_max_length",
    "pad_token",
    "padding_side",
)
"""Entries of tokenizer_config.json that every release of transformers from 4.57 on reads alike."""

Draw = Callable[[random.Random], Sample]


@dataclass(frozen=True)
class Recipe:
    """Everything about a run but its data. `lr` peaks after `warmup` steps and falls to zero linearly."""

    steps: int = 1200
    batch: int = 96
    lr: float = 2.5e-3
    warmup: int = 30
    prompt_weight: float = 0.02
    seed: int = 0
    pool: int = 16
    clip: float = 1.0


def config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """Eight blocks of width 128, eight query heads of width 16 on two key/value heads."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A freshly initialised model, its weights given by the seed."""
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config(tokenizer)).float()


def encode(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> tuple[list[int], int]:
    """Token ids of the whole conversation and the index at which the answer begins."""
    head = tokenizer.apply_chat_template(sample.messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(head, add_special_tokens=False)["input_ids"]
    answer = tokenizer(sample.reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return prompt + answer, len(prompt)


def batches(
    tokenizer: PreTrainedTokenizerFast, draw: Draw, recipe: Recipe
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: token ids (b, t), right-padded, and loss weights (b, t) of each token.

    A pool of `pool` batches is drawn, sorted by length, cut and shuffled, so that little is padding.
    """
    rng = random.Random(f"batches-{recipe.seed}")
    pad = int(tokenizer.pad_token_id or 0)
    while True:
        rows = [encode(tokenizer, draw(rng)) for _ in range(recipe.batch * recipe.pool)]
        rows.sort(key=lambda row: len(row[0]))
        cuts = [rows[i : i + recipe.batch] for i in range(0, len(rows), recipe.batch)]
        rng.shuffle(cuts)
        for cut in cuts:
            width = len(cut[-1][0])
            ids = torch.full((len(cut), width), pad)
            weight = torch.zeros(len(cut), width)
            for i, (tokens, start) in enumerate(cut):
                ids[i, : len(tokens)] = torch.tensor(tokens)
                weight[i, :start] = recipe.prompt_weight
                weight[i, start : len(tokens)] = 1.0
            yield ids, weight


def loss_of(model: torch.nn.Module, ids: Tensor, weight: Tensor) -> Tensor:
    """Weighted next-token cross entropy in nats. Right padding needs no mask under causal attention."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    w = weight[:, 1:].flatten()
    return (each * w).sum() / w.sum()


def optimisers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the blocks, AdamW for embeddings and gains."""
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (matrices if parameter.ndim == 2 and "embed" not in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    model: torch.nn.Module,
    stream: Iterable[tuple[Tensor, Tensor]],
    recipe: Recipe,
    optims: Sequence[torch.optim.Optimizer],
    *,
    after_backward: Callable[[int], None] | None = None,
    label: str = "train",
) -> list[float]:
    """Run `recipe.steps` steps and return the loss of each. `after_backward(step)` may edit gradients."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    losses: list[float] = []
    began = time.process_time()
    for step, (ids, weight) in zip(range(recipe.steps), stream, strict=False):
        share = min((step + 1) / max(recipe.warmup, 1), (recipe.steps - step) / recipe.steps)
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = recipe.lr * share
        loss = loss_of(model, ids, weight)
        loss.backward()
        if after_backward is not None:
            after_backward(step)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if step % 50 == 0 or step == recipe.steps - 1:
            seconds = time.process_time() - began
            print(f"{label} {step:5d} loss {losses[-1]:.4f} cpu {seconds:.0f} s", file=sys.stderr, flush=True)
    return losses


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder in Hugging Face format, weights rounded to bfloat16."""
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(settings.read_text()).items() if k in TOKENIZER_SETTINGS}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(kept, indent=2) + "\n")
    make_readable(folder)


def make_readable(folder: Path) -> None:
    """Give every file of a folder the permissions of an ordinary file (safetensors writes 0600)."""
    for file in folder.iterdir():
        file.chmod(0o644)


def load(folder: Path) -> Qwen3ForCausalLM:
    """The saved weights as float32, on the CPU."""
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def write_log(stages: Mapping[str, tuple[Recipe, list[float]]], path: Path) -> None:
    """Recipe and every 10th loss of each stage, as JSON."""
    log = {
        name: {"recipe": asdict(recipe), "losses": losses[::10]} for name, (recipe, losses) in stages.items()
    }
    path.write_text(json.dumps(log, indent=1) + "\n")
