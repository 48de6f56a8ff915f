"""Checkpoints with packed weights, written number by number, and what their codes mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tiny_study import save_model


def _e4m3(code: int) -> float:
    sign, exponent, mantissa = -1.0 if code >> 7 else 1.0, (code >> 3) & 15, (code & 7) / 8
    return sign * (mantissa * 2.0**-6 if exponent == 0 else (1 + mantissa) * 2.0 ** (exponent - 7))


E4M3 = np.array([_e4m3(code) for code in range(256)])
"""What the codes of FP8 E4M3 mean (Micikevicius et al. 2022); 127 and 255 are NaN."""


def with_settings(folder: Path, settings: dict[str, Any]) -> None:
    place = folder / "config.json"
    config = json.loads(place.read_text(encoding="utf-8"))
    place.write_text(json.dumps(config | {"quantization_config": settings}), encoding="utf-8")


def fp8(folder: Path, block: tuple[int, int] | None, static: bool = False) -> dict[str, np.ndarray]:
    """A llama's projections as FP8 with a scale per block; what they mean, by numpy."""
    save_model(folder, "llama")
    place, meant = folder / "model.safetensors", {}
    tensors = load_file(place)
    for name, weight in list(tensors.items()):
        if weight.ndim != 2 or "proj" not in name:
            meant[name] = weight.double().numpy()
            tensors[name] = weight.bfloat16()  # as published: what isn't quantised is in bfloat16
            meant[name] = tensors[name].double().numpy()
            continue
        sides = block or weight.shape
        grid = tuple(-(-size // side) for size, side in zip(weight.shape, sides, strict=True))
        scales = torch.rand(grid, generator=torch.Generator().manual_seed(len(name))) * 0.01 + 0.002
        spread = scales.repeat_interleave(sides[0], 0).repeat_interleave(sides[1], 1)
        spread = spread[: weight.shape[0], : weight.shape[1]]
        codes = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[name] = codes
        tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(())
        if static:
            tensors[name.replace("weight", "activation_scale")] = torch.ones(())
        meant[name] = E4M3[codes.view(torch.uint8).numpy()] * spread.double().numpy()
    save_file(tensors, place, metadata={"format": "pt"})
    scheme = "static" if static else "dynamic"
    with_settings(
        folder,
        {"quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": block and list(block)},
    )
    return meant


def compressed(folder: Path) -> dict[str, np.ndarray]:
    """A llama's projections as compressed-tensors packs them, and what they mean.

    Four bits, eight to an int32, least significant first, offset by 8, a scale for 16.
    """
    save_model(folder, "llama")
    place = folder / "model.safetensors"
    meant: dict[str, np.ndarray] = {}
    tensors = load_file(place)
    for name, weight in list(tensors.items()):
        if weight.ndim == 2 and "proj" in name:
            rows, columns = weight.shape
            codes = np.random.default_rng(len(name)).integers(-8, 8, (rows, columns))
            scales = torch.rand(rows, columns // 16) * 0.01
            nibbles = (codes + 8).astype(np.uint32).reshape(rows, -1, 8) << np.arange(
                0, 32, 4, dtype=np.uint32
            )
            packed = nibbles.sum(-1, dtype=np.uint32).view(np.int32)
            del tensors[name]
            tensors |= {f"{name}_packed": torch.from_numpy(packed), f"{name}_scale": scales}
            tensors[f"{name}_shape"] = torch.tensor([rows, columns])
            meant[name] = codes * np.repeat(scales.numpy(), 16, axis=1)
    save_file(tensors, place, metadata={"format": "pt"})
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights}
    how = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"]}
    with_settings(folder, how | {"quantization_status": "compressed", "config_groups": {"group_0": group}})
    return meant
