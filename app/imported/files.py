"""Arrays from files: .npz, safetensors, a folder of .npy, or a cache that torch has saved."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import StoreError

__all__ = ["Arrays", "plain", "read_arrays"]

Arrays = dict[str, NDArray[Any]]


def read_arrays(path: Path) -> Arrays:
    """Name -> array. Nothing in a file is run: pickled objects are refused.

    Raises:
        StoreError: no such file, another format, damaged, or something that is no array.
    """
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: held[name] for name in held.files}
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return {name: plain(tensor) for name, tensor in load_file(path).items()}
        if path.suffix in (".pt", ".pth"):
            import torch

            try:
                held = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # its message advises to run what is in the file
                raise _unreadable(path, "objects other than tensors, which are not unpickled") from None
            return _of_cache(held)
    except StoreError:
        raise
    except Exception as error:  # each format's reader has errors of its own
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    raise _unreadable(path, f"a file named *{path.suffix}" if path.exists() else "nothing there")


def plain(value: Any) -> NDArray[Any]:
    """A numpy array of what may be a torch tensor, of any dtype, on any device; of a tuple its first one."""
    if isinstance(value, tuple) and value and hasattr(value[0], "shape"):
        value = value[0]
    if hasattr(value, "detach"):
        value = value.detach().to("cpu")
        value = value.float() if value.is_floating_point() and value.element_size() < 4 else value
        return np.asarray(value.numpy())
    return np.asarray(value)


def _of_cache(found: Any) -> Arrays:
    """The tensors of a saved dictionary; a tuple's first one, as a block's output has."""
    if not isinstance(found, Mapping):
        raise TypeError(f"a dictionary of tensors by name was expected, not {type(found).__name__}")
    first = {str(name): value[0] if isinstance(value, tuple) else value for name, value in found.items()}
    return {name: plain(value) for name, value in first.items() if hasattr(value, "shape")}


def _unreadable(path: Path, given: str) -> StoreError:
    return StoreError(
        f"No arrays can be read from {path}.",
        expected="*.npz, *.safetensors, *.pt (a dictionary of tensors), or a folder of *.npy",
        given=given,
        next_step="save the activations in one of these, each array named after its site.",
    )
