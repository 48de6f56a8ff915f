"""Tiny random models of every supported family, built from a config without any download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 101
LAYERS = 3

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "decoder_sparse_step": 1,
    },
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "attn_implementation": "eager",
        **_WINDOW,
    },
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOW},
    "phi": {"partial_rotary_factor": 0.5, "qk_layernorm": True, "num_key_value_heads": 4},
    "phi3": {"sliding_window": None},
    "olmo": {"clip_qkv": 0.9},
    "olmo2": {},
    "olmo3": _WINDOW,
    "granite": {
        "residual_multiplier": 0.3,
        "embedding_multiplier": 6.0,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.4,
        "attention_bias": True,
    },
    "cohere": {"use_qk_norm": True, "logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5, **_WINDOW},
    "gpt_neox": {"attention_bias": True, "num_key_value_heads": None},
    "gpt2": {},
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}

FAMILY_NAMES = tuple(_FAMILY)
"""Every text-only family; "gemma3" (with a vision tower beside the text model) can be built as well."""

_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def tiny_config(family: str, **overrides: Any) -> Any:
    """A small config of the family: 3 blocks, width 32, 4 heads, vocabulary 101."""
    if family == "gemma3":
        text = tiny_config("gemma3_text", **overrides).to_dict()
        return AutoConfig.for_model(family, text_config=text, vision_config=_VISION, mm_tokens_per_image=4)
    settings = {**_COMMON, **_FAMILY[family], **overrides}
    settings = {key: value for key, value in settings.items() if value is not None or key == "sliding_window"}
    if family == "gpt2":
        width = settings.pop("hidden_size")
        settings |= {
            "n_embd": width,
            "n_layer": settings.pop("num_hidden_layers"),
            "n_head": settings.pop("num_attention_heads"),
            "n_positions": settings.pop("max_position_embeddings"),
            "n_inner": settings.pop("intermediate_size"),
        }
        settings.pop("num_key_value_heads", None)
    return AutoConfig.for_model(family, **settings)


def tiny(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A random model of the family in eval mode, float32, gradients off.

    Every parameter is drawn at a size that makes all parts matter: matrices with standard deviation
    1/sqrt(fan-in), norm gains scattered around their neutral value, biases and embeddings well off zero.
    """
    config = tiny_config(family, **overrides)
    attention = (
        overrides.get("attn_implementation") or _FAMILY.get(family, {}).get("attn_implementation") or "sdpa"
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and "norm" not in name:
                fan_in = parameter.shape[0] if family == "gpt2" and "wte" not in name else parameter.shape[-1]
                scale = 0.5 if "emb" in name or "wte" in name or "wpe" in name else fan_in**-0.5
                parameter.copy_(noise * scale)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.1)
            else:
                parameter.add_(noise * 0.2)
    return model.eval().requires_grad_(False)


def random_tokens(batch: int, length: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    """Token ids (batch, length) without the special ones 0..2."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))
