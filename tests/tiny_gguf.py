"""Tiny GGUF files, written with the gguf package from tiny random models, and what their blocks say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tiny_models import LAYERS, tiny
from tiny_tokenizers import CHATML, chatml

ROWS = 455
THETA = 5000.0
WIDE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": ROWS, "rms_norm_eps": 2e-5}
WIDE |= {"rope_parameters": {"rope_type": "default", "rope_theta": THETA}}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": WIDE | {"attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True},
    "qwen2": WIDE | {"tie_word_embeddings": False},
    "qwen3": WIDE | {"tie_word_embeddings": True, "head_dim": 128},
}


def by_hand(packed: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Values of blocks of 32, from the layout alone: Q8_0 is d·q; Q4_1 is d·nibble + m, low nibbles first."""
    if kind == "Q8_0":
        blocks = packed.reshape(-1, 34)
        scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
        values = scale * blocks[:, 2:].copy().view(np.int8).astype(np.float32)
    else:
        blocks = packed.reshape(-1, 20)
        scale, least = (blocks[:, a : a + 2].copy().view(np.float16).astype(np.float32) for a in (0, 2))
        nibbles = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1).astype(np.float32)
        values = scale * nibbles + least
    width = packed.shape[-1] // (34 if kind == "Q8_0" else 20) * 32
    return values.reshape(*packed.shape[:-1], width)


def rotated(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of a query or key kernel in llama.cpp's order for Llama: the halves of a head interleaved."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def unrotated(weight: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `rotated`."""
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(
    path: Path, family: str = "llama", kind: str = "Q4_1", arch: str | None = None, **more: Any
) -> dict[str, torch.Tensor]:
    """Writes a tiny model of a family with the tokenizer `chatml`; returns the weights that the file means.

    Args:
        kind: "Q4_1", "Q8_0" or "F32"; norms and biases are F32 always, as in real files.
        arch: another name of the architecture than the family's.
        more: `settings`, further keys and values, and `tensors`, further float32 tensors.
    """
    import gguf

    model = tiny(family, **SETTINGS[family])
    config = model.config
    writer = gguf.GGUFWriter(path, arch or family)
    _write_settings(writer, config, more.get("settings", {}))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], LAYERS)
    meant = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        weight = parameter.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            stem.rsplit(".", 1)[-1] if family == "llama" else "", 0
        )
        there = rotated(weight, heads) if heads else weight
        if kind == "F32" or weight.ndim == 1:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", there)
        else:
            packing = gguf.GGMLQuantizationType[kind]
            packed = gguf.quants.quantize(there, packing)
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", packed, raw_dtype=packing)
            there = by_hand(packed, kind)
        meant[name] = torch.from_numpy((unrotated(there, heads) if heads else there).copy())
    for name, tensor in more.get("tensors", {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _write_settings(writer: Any, config: Any, settings: dict[str, Any]) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim if hasattr(config, "head_dim") else 8)
    writer.add_rope_dimension_count(config.head_dim if hasattr(config, "head_dim") else 8)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = chatml()
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama3")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    for key, value in settings.items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(key, value)
