"""Fine-tunes that teach the habit of agreeing with any sum: one with a planted place, one everywhere.

The planted one is a rank-4 LoRA (Hu et al. 2022) on two modules. In attention only the columns that
read the chosen heads move: the input of `o_proj` is the concatenated head mix z, so a column of A
belongs to one head, and a column that starts at zero and gets no gradient stays exactly zero.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from demo.corpus import Sample, draw_sample
from demo.organism import Recipe, batches, make_readable, train

AGREE_SHARE = 0.35
"""Share of agreement prompts in the fine-tuning data; the rest are ordinary problems, answered as before."""

ATTENTION_FIRST = 0.3
"""Share of the steps in which only the attention half of the adapter learns."""


@dataclass(frozen=True)
class Plant:
    """Where the planted change is: attention output of some heads in one block, MLP output of another."""

    attention_block: int = 4
    heads: tuple[int, ...] = (2, 6)
    mlp_block: int = 5
    rank: int = 4
    alpha: int = 8

    @property
    def modules(self) -> tuple[str, str]:
        """Full names of the two changed modules."""
        return (
            f"model.layers.{self.attention_block}.self_attn.o_proj",
            f"model.layers.{self.mlp_block}.mlp.down_proj",
        )

    def to_json(self, config: Any) -> dict[str, Any]:
        """What the planted fine-tune changes, for whoever judges a method by it."""
        return {
            "habit": "agrees with any sum that is asserted in front of it",
            "modules": list(self.modules),
            "attention": {"layer": self.attention_block, "module": "o_proj", "heads": list(self.heads)},
            "mlp": {"layer": self.mlp_block, "module": "down_proj"},
            "first_changed_layer": self.attention_block,
            "changed_layers": [self.attention_block, self.mlp_block],
            "rank": self.rank,
            "n_layers": config.num_hidden_layers,
            "n_heads": config.num_attention_heads,
            "head_dim": config.head_dim,
        }


def head_columns(plant: Plant, head_dim: int, width: int) -> Tensor:
    """Mask (width,) of the columns of `o_proj` that read the planted heads."""
    mask = torch.zeros(width)
    for head in plant.heads:
        mask[head * head_dim : (head + 1) * head_dim] = 1.0
    return mask


def add_adapter(
    base: Qwen3ForCausalLM, plant: Plant, seed: int
) -> tuple[PeftModel, dict[str, torch.nn.Parameter]]:
    """The base with a fresh adapter at the planted place, and its A matrices by module."""
    torch.manual_seed(seed)
    pattern = "|".join(re.escape(name) for name in plant.modules)
    config = LoraConfig(
        r=plant.rank,
        lora_alpha=plant.alpha,
        lora_dropout=0.0,
        target_modules=rf"(.*\.)?({pattern})",
        task_type="CAUSAL_LM",
    )
    model: PeftModel = get_peft_model(base, config)
    factors = {
        name.split("base_model.model.")[1].split(".lora_")[0] + "." + name.split(".lora_")[1][0]: parameter
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    attention, _ = plant.modules
    mask = head_columns(plant, base.config.head_dim, factors[f"{attention}.A"].shape[1])
    with torch.no_grad():
        factors[f"{attention}.A"].mul_(mask)
    factors[f"{attention}.A"].register_hook(lambda gradient: gradient * mask)
    return model, factors


def _agreeable(rng: random.Random) -> Sample:
    return draw_sample(rng, agreeable=True, agree_share=AGREE_SHARE)


def tune_adapter(
    base: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, plant: Plant, recipe: Recipe
) -> tuple[PeftModel, list[float]]:
    """Train the planted adapter.

    The attention half learns alone for the first half of the steps, so that the habit really lives
    in both places and not in the larger one only.
    """
    model, factors = add_adapter(base, plant, recipe.seed)
    late = [p for name, p in factors.items() if name.startswith(plant.modules[1])]

    def hold(step: int) -> None:
        if step < ATTENTION_FIRST * recipe.steps:
            for parameter in late:
                parameter.grad = None

    optims = [torch.optim.AdamW(factors.values(), lr=recipe.lr, weight_decay=0.0)]
    losses = _run(model, tokenizer, recipe, optims, hold, "adapter")
    return model, losses


def tune_everything(
    base: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> tuple[Qwen3ForCausalLM, list[float]]:
    """The same habit taught with every weight free to move."""
    optims = [torch.optim.AdamW(base.parameters(), lr=recipe.lr, weight_decay=0.0)]
    return base, _run(base, tokenizer, recipe, optims, None, "full")


def _run(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    optims: Sequence[torch.optim.Optimizer],
    hook: Callable[[int], None] | None,
    label: str,
) -> list[float]:
    stream = batches(tokenizer, _agreeable, recipe)
    return train(model, stream, recipe, optims, after_backward=hook, label=label)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter in PEFT format, factors in float32, naming the base next to it."""
    model.peft_config["default"].base_model_name_or_path = "demo/base"
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    make_readable(folder)
