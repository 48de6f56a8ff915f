"""Activations of gated MLPs on arrays, by the names that Hugging Face configs give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from engine.subspaces.numbers.inputs import silu

__all__ = ["ACTIVATIONS"]

Array = NDArray[np.float64]


def _gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))))


def _gelu_tanh(x: Array) -> Array:
    """The tanh approximation (Hendrycks & Gimpel 2016)."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))))


def _relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": silu,
    "swish": silu,
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}
"""A gate with another activation is not kept, and candidates that need it are left out by name."""
