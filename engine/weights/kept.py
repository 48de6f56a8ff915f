"""A model's parameters put aside in a file, so that another model can be compared with them after it is gone.

    weights = put_aside(model, folder / "weights")
    del model
    for delta in weight_deltas(weights, other): ...

The file is a safetensors file. It is written and read tensor by tensor: beside the model nothing but one
tensor is in memory at a time, and reading opens the file anew for each, so that nothing stays mapped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.weights.names import Names

__all__ = ["KeptWeights", "put_aside"]

DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
CHUNK = 1 << 24
"""Bytes of a tensor that are copied to the file at a time."""


class KeptWeights(Mapping[str, Tensor]):
    """Parameters by name, each once; one is read when it is asked for, and held by nobody but who asked.

    Attributes:
        names: of the model that they come from, with its shared parameters.
    """

    def __init__(self, path: Path, names: Names) -> None:
        self.path, self.names = path, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names.shapes:
            raise KeyError(name)
        with safe_open(self.path, framework="pt", device="cpu") as file:
            found: Tensor = file.get_tensor(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.names.shapes)

    def __len__(self) -> int:
        return len(self.names.shapes)


def put_aside(model: nn.Module, path: Path, vocabulary: Mapping[str, int] | None = None) -> KeptWeights:
    """Writes a model's parameters to a file, which is the caller's to remove.

    Args:
        vocabulary: token string -> row of the embedding, for the names of what was put aside.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    try:
        with path.open("wb") as file:
            _write(model, file)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return KeptWeights(path, Names(model, vocabulary))


def _write(model: nn.Module, file: BinaryIO) -> None:
    parameters, header, start = dict(model.named_parameters()), {}, 0
    for name, parameter in parameters.items():
        size = parameter.numel() * parameter.element_size()
        header[name] = {
            "dtype": DTYPES[parameter.dtype],
            "shape": list(parameter.shape),
            "data_offsets": [start, start + size],
        }
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for parameter in parameters.values():
        flat = parameter.detach().reshape(-1)
        for part in flat.split(CHUNK // flat.element_size()):
            file.write(part.cpu().contiguous().view(torch.uint8).numpy().data)
