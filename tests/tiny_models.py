"""Tiny random models of every supported family, built from a config without any download."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoConfig

from engine.models.families import attention_of, loader_of

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
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "ministral3": {"head_dim": 8, "sliding_window": 6},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 24,
    },
    "starcoder2": {"use_bias": True},
    "glm": {"head_dim": 8, "attention_bias": True},
    "glm4": {"head_dim": 8, "attention_bias": True},
    "nemotron": {"partial_rotary_factor": 0.5},
    "stablelm": {"use_qkv_bias": True, "partial_rotary_factor": 0.5},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "clip_qkv": 0.9},
    "gemma": {"head_dim": 16},
    "granitemoe": {
        "residual_multiplier": 0.3,
        "embedding_multiplier": 6.0,
        "logits_scaling": 4.0,
        "attention_multiplier": 0.4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}

FAMILY_NAMES = tuple(_FAMILY)
"""Every text-only family; "gemma3" (with a vision tower beside the text model) can be built as well."""
VARIED = (
    *("qwen3", "llama", "gemma2", "gpt2", "gpt_neox", "opt", "olmo2", "phi3", "cohere", "granite", "bloom"),
)
"""Families that differ in norms, positions, scales and layout of blocks: where one of each kind is enough."""

_LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 12,
    "q_lora_rank": 20,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 10,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_UNLISTED: dict[str, dict[str, Any]] = {
    "arcee": {"attention_bias": True},
    "apertus": {},
    "ernie4_5": {"head_dim": 8},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24},
    "exaone4": {**_WINDOW, "sliding_window_pattern": "LLG"},
    "gpt_bigcode": {"num_key_value_heads": None},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "minicpm3": {**_LATENT, "dim_model_base": 32},
    "persimmon": {"num_key_value_heads": None, "partial_rotary_factor": 0.5},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "seed_oss": {"head_dim": 8},
    "glm4_moe_lite": {**_LATENT, "head_dim": None},
    "youtu": _LATENT,
}
UNLISTED_NAMES = tuple(_UNLISTED)
"""Families without an entry, whose parts are found by their names."""

_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_GPT_NAMES: dict[str, str | None] = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "num_key_value_heads": None,
}
_LINEAR = {
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
}
_FALCON = {"num_key_value_heads": None, "bias": True}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}
_GRANITE = {**_FAMILY["granitemoe"], "shared_intermediate_size": 24}
_ONE_ATTENDS = {"layer_types": ["mamba", "attention", "mamba"]}

_LATER: dict[str, dict[str, Any]] = {
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 6,
        "num_key_value_heads": None,
    },
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None},
    "bloom": {"num_key_value_heads": None},
    "falcon 1B": {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False},
    "falcon 7B": {**_FALCON, "multi_query": True, "parallel_attn": True},
    "falcon 40B": {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon 11B": {
        **_FALCON,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "gpt_oss": {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_bias": True,
        "attn_implementation": "eager",
        **_WINDOW,
    },
    "glm4_moe": {
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
    },
    "deepseek_v2": {**_LATENT, "topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "llama4_text": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "moe_layers": [1],
        "no_rope_layers": [1, 1, 0],
        "attention_chunk_size": 6,
    },
    "qwen3_next": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24, "decoder_sparse_step": 2},
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe_text": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "qwen3_5_moe": {**_LINEAR, **_EXPERTS, "shared_expert_intermediate_size": 24},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention", "conv"],
        **_EXPERTS,
        "num_dense_layers": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 48},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "use_mamba_kernels": False,
    },
    "bamba": {"attn_layer_indices": [1], **_MAMBA},
    "mpt": {"num_key_value_heads": None},
    "afmoe": {"head_dim": 8, **_EXPERTS, "num_dense_layers": 1, **_WINDOW},
    "qwen3_5": _LINEAR,
    "llama4": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "moe_layers": [1],
        "no_rope_layers": [1, 1, 0],
        "attention_chunk_size": 6,
    },
    "mllama": {"num_hidden_layers": 4, "cross_attention_layers": [1]},
    "mistral3": {"head_dim": 8},
    "qwen2_vl": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    "qwen3_vl": {"head_dim": 8, "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]}},
    "llava": {},
    "granitemoeshared": _GRANITE,
    "granitemoehybrid": {**_GRANITE, **_MAMBA, **_ONE_ATTENDS},
    "granitemoehybrid dense": {**_GRANITE, **_MAMBA, **_ONE_ATTENDS, "num_local_experts": 0},
    "olmo_hybrid": {key: value for key, value in _LINEAR.items() if key != "head_dim"},
    "lfm3": {"head_dim": 8, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm3 plain": {
        "head_dim": 8,
        "layer_types": ["conv", "full_attention", "conv"],
        "use_sandwich_norm": False,
        "use_attention_gate": False,
    },
    "bitnet": {},
    "codegen": {"rotary_dim": 4, "num_attention_heads": 8, "num_key_value_heads": None},
}
LATER_NAMES = tuple(_LATER)
"""Families beside Llama's kind: other attention, blocks of several kinds, text parts of wrappers."""
ALIKE = (
    "falcon 11B",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "lfm2_moe",
    "qwen2_vl",
    "llava",
    "llama4",
    "granitemoehybrid dense",
    "lfm3 plain",
)
"""Those of them whose blocks are another's."""
_TEXT = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen2_vl": "qwen2_vl_text",
    "mllama": "mllama_text_model",
    "mistral3": "mistral",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "llava": "llama",
}
"""Wrappers: the kind of their text part."""

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
    if family in _TEXT:
        own = _settings("gemma3_text" if family == "gemma3" else family, **overrides)
        text = AutoConfig.for_model(_TEXT[family], **own).to_dict()
        more = {"gemma3": {"mm_tokens_per_image": 4}}.get(family, {})
        return AutoConfig.for_model(family, text_config=text, vision_config=_vision(family), **more)
    settings = _settings(family, **overrides)
    names = dict.fromkeys(("gpt2", "gptj", "codegen"), _GPT_NAMES).get(family, {})
    renamed = {names.get(key, key): value for key, value in settings.items() if names.get(key, key)}
    return AutoConfig.for_model(family.split(maxsplit=1)[0], **renamed)


def _settings(family: str, **overrides: Any) -> dict[str, Any]:
    settings = {**_COMMON, **(_FAMILY | _UNLISTED | _LATER)[family], **overrides}
    return {key: value for key, value in settings.items() if value is not None or key == "sliding_window"}


def _vision(family: str) -> dict[str, Any]:
    if family == "mllama":
        return _VISION | {"num_global_layers": 1, "supported_aspect_ratios": [[1, 1]], "max_num_tiles": 1}
    if family == "llama4":
        return _VISION | dict.fromkeys(
            ("vision_output_dim", "projector_input_dim", "projector_output_dim"), 16
        )
    if family == "qwen2_vl":
        return {"depth": 1, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 1, "num_heads": 2}
    if family.startswith("qwen"):
        return {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return _VISION


def tiny(family: str, seed: int = 0, **overrides: Any) -> Any:
    """A random model of the family in eval mode, float32, gradients off.

    Every parameter is drawn at a size that makes all parts matter: matrices with standard deviation
    1/sqrt(fan-in), norm gains scattered around their neutral value, biases and embeddings well off zero.
    """
    config = tiny_config(family, **overrides)
    attention = (
        overrides.get("attn_implementation")
        or (_FAMILY | _LATER).get(family, {}).get("attn_implementation")
        or attention_of(config, "sdpa")
    )
    model = loader_of(config).from_config(config, attn_implementation=attention)
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


def fresh_jamba(seed: int) -> Any:
    """A small recurrent model as its own initialisation leaves it: A_log is the same with every seed."""
    torch.manual_seed(seed)
    config = tiny_config("jamba")
    return loader_of(config).from_config(config).eval().requires_grad_(False)


def random_tokens(batch: int, length: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    """Token ids (batch, length) without the special ones 0..2."""
    return torch.randint(3, vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def changed(base: Any, scale: float = 0.05) -> Any:
    """Another model: some matrices changed in rank 2, some fully, norms and biases too."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(3)
    for number, parameter in enumerate(tuned.parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2 and number % 2:
            noise = noise[:, :2] @ noise[:2]
        parameter.data += scale * parameter.abs().mean() * noise
    return tuned
