"""Head kernels of one block, read from wherever a model's stored weights are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Read = Callable[..., np.ndarray]
"""`read(name, first=i)`: entry i of a stored array, as `store.reader.Store.array` and `Lab.array` give it."""


def head_kernels(read: Read, model: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Key-side singular vectors (h, d, d_h) and values (h, d_h) of a block's head kernels.

    Only this block is read: of a 7B model 67 MB of 2 GB.
    """
    right, sigma = (read(f"weights/{model}/{name}", first=layer) for name in ("kernel_right", "kernel_sigma"))
    return right, sigma
