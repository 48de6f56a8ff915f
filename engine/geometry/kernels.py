"""Head kernels of one block, read from wherever a model's stored weights are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from engine.errors import StoreError
from engine.geometry.z import head_kernel_svd

Read = Callable[..., np.ndarray]
"""`read(name, first=i)`: entry i of a stored array, as `store.reader.Store.array` and `Lab.array` give it."""


def head_kernels(
    read: Read, model: str, layer: int, fold_norm: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Key-side singular vectors (h, d, d_h) and values (h, d_h) of a block's head kernels.

    Only this block is read: of a 7B model 34 MB of 1 GB.

    Args:
        fold_norm: kernels of W_Q and W_K with the gains of the norm in front of the attention, and of the
            query and key norms where there are any: what the head reads of the normalised stream itself.
    """

    def stored(*names: str) -> list[np.ndarray]:
        return [read(f"weights/{model}/{name}", first=layer) for name in names]

    if not fold_norm:
        right, sigma = stored("kernel_right", "kernel_sigma")
        return right, sigma
    try:
        right, sigma, gain = stored("folded_right", "folded_sigma", "attn_norm_gain")
        return right * gain[:, None], sigma
    except StoreError:  # a store of an earlier version has the projections instead
        w_q, w_k, gain, of_q, of_k = stored("w_q", "w_k", "attn_norm_gain", "q_norm_gain", "k_norm_gain")
        found = head_kernel_svd(w_q * of_q[..., None], w_k * of_k[..., None], input_gain=gain)
        return found.right, found.sigma
