"""Random adapters of many kinds, saved as PEFT saves them, on a tiny Qwen3."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    VeraConfig,
    get_peft_model,
)
from tiny_models import tiny

ROWS = 455
ON = {"target_modules": ["o_proj", "down_proj"]}
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 6, "init_lora_weights": False, **ON}
KINDS: dict[str, Any] = {
    "lora": LoraConfig(**LORA),
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "rank_pattern": LoraConfig(**LORA, rank_pattern={"o_proj": 4}, alpha_pattern={"o_proj": 2}),
    "dora": LoraConfig(**LORA, use_dora=True),
    "loha": LoHaConfig(r=2, alpha=4, init_weights=False, **ON),
    "lokr": LoKrConfig(r=2, alpha=4, init_weights=False, **ON),
    "ia3": IA3Config(feedforward_modules=["down_proj"], init_ia3_weights=False, **ON),
    "vera": VeraConfig(r=4, target_modules=["o_proj"], init_weights=False, projection_prng_key=1),
}
OTHER_MODULES: dict[str, Any] = {
    "every projection": LoraConfig(**LORA | {"target_modules": "all-linear"}),
    "one block": LoraConfig(**LORA, layers_to_transform=[1]),
    "norms": LNTuningConfig(target_modules=["input_layernorm"], task_type="CAUSAL_LM"),
    "a saved norm": LoraConfig(**LORA, modules_to_save=["norm"]),
    "rows of a tied embedding": LoraConfig(**LORA, trainable_token_indices=[3, 5]),
    "keys, values and hidden units": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    ),
}
KINDS |= {
    "adalora": AdaLoraConfig(init_r=4, target_r=2, total_step=10, init_lora_weights=False, **ON),
    "oft": OFTConfig(r=4, oft_block_size=0, init_weights=False, **ON),
    "hra": HRAConfig(r=4, init_weights=False, **ON),
    "fourierft": FourierFTConfig(n_frequency=50, init_weights=False, **ON),
}
KINDS |= OTHER_MODULES


def adapter(folder: Path, config: Any, **overrides: Any) -> Path:
    """A random adapter of a kind, saved as PEFT saves it."""
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(tiny("qwen3", vocab_size=ROWS, **overrides), copy.deepcopy(config))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
                if "magnitude" in name:
                    parameter.mul_(1.3)
        model.save_pretrained(str(folder))
    return folder
