"""Weight differences: a file of named deltas that is added to a model's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine.errors import ModelError, PatchbayError


def read_weight_diff(path: Path) -> dict[str, Tensor]:
    """Reads name -> delta from `.safetensors`, or from `.pt`/`.bin` without running any code in it.

    Raises:
        ModelError: missing or unreadable file, another suffix, or a `.pt` that holds more than tensors.
    """
    return dict(_tensors(path))


def check_weight_diff(model: nn.Module, path: Path) -> None:
    """ModelError, as `read_weight_diff` and `add_weight_diff` raise it, with one tensor in memory at a time.

    Args:
        model: with weights or without.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, delta in _tensors(path):
        _check_delta(name, delta, parameters)


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        raise ModelError(
            "The weight diff isn't there.",
            expected="a file of named deltas",
            given=str(path),
            next_step="correct weight_diff.",
        )
    if path.suffix not in (".safetensors", ".pt", ".bin"):
        raise ModelError(
            "The weight diff has an unknown format.",
            expected=".safetensors, .pt or .bin",
            given=path.name,
            next_step="save it with safetensors.torch.save_file.",
        )
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    yield name, file.get_tensor(name)
        else:
            yield from _only_tensors(torch.load(path, map_location="cpu", weights_only=True), path).items()
    except PatchbayError:
        raise
    except Exception as error:  # a damaged or hostile file has the readers raise anything
        raise ModelError(
            f"The weight diff {path.name} cannot be read.",
            expected="a safetensors file, or a .pt that holds a plain dict of tensors",
            given=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'empty'}",
            next_step="save it again with safetensors.torch.save_file.",
        ) from None


def _only_tensors(data: Any, path: Path) -> dict[str, Tensor]:
    good = isinstance(data, dict) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in data.items()
    )
    if not good:
        raise ModelError(
            f"The weight diff {path.name} is not a dict of tensors.",
            expected="parameter name -> delta",
            given=type(data).__name__,
        )
    return dict(data)


@torch.no_grad()
def add_weight_diff(model: nn.Module, deltas: dict[str, Tensor]) -> None:
    """Adds deltas to the parameters of the same names, in float32, rounded once to the model's dtype.

    Parameters shared under several names (tied embeddings) are changed once; deltas given under two of
    these names must agree.

    Raises:
        ModelError: an unknown name, a wrong shape, a delta that is not finite, or two deltas for one
            shared parameter; nothing has been changed then.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    targets: dict[int, tuple[str, Tensor]] = {}
    for name, delta in deltas.items():
        _check_delta(name, delta, parameters)
        other = targets.setdefault(id(parameters[name]), (name, delta))
        if not torch.equal(other[1], delta):
            raise ModelError(
                "The weight diff changes one shared parameter in two ways.",
                expected=f"the same delta for {other[0]} and {name}, or only one of them",
                given="two different deltas",
            )
    for name, delta in targets.values():
        parameter = parameters[name]
        parameter.copy_((parameter.float() + delta.to(parameter.device).float()).to(parameter.dtype))


def _check_delta(name: str, delta: Tensor, parameters: dict[str, nn.Parameter]) -> None:
    if name not in parameters:
        raise ModelError(
            f"The weight diff names {name!r}, which the model doesn't have.",
            expected="parameter names of the base model, e.g. " + ", ".join(list(parameters)[:3]),
            given=name,
            next_step="check that the diff was made on this base.",
        )
    if delta.shape != parameters[name].shape:
        raise ModelError(
            f"The weight diff's {name} has the wrong shape.",
            expected=tuple(parameters[name].shape),
            given=tuple(delta.shape),
            next_step="check that the diff was made on this base.",
        )
    if not bool(torch.isfinite(delta).all()):
        raise ModelError(f"The weight diff's {name} is not finite.", expected="numbers", given="NaN or inf")
