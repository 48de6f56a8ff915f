"""Random inputs for subspace scores in the shape of a small model with grouped-query attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.subspaces.numbers import Delta, Inputs, Target, per_layer

Array = NDArray[np.float64]


@dataclass
class Arrays:
    """Everything as arrays, one entry for each layer; `inputs()` hands them over."""

    layers: int = 5
    d: int = 48
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 6
    d_ff: int = 80
    vocabulary: int = 90
    fit: int = 14
    evaluation: int = 17
    tokens: tuple[int, int] = (9, 7)
    rank: int = 3
    changed: tuple[int, ...] = (1, 2, 3)
    gains: bool = True
    seed: int = 0
    held: dict[str, list[Array]] = field(default_factory=dict)
    delta: dict[int, dict[str, tuple[Array, Array]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        width, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        shapes = {
            "q_proj": (width, self.d),
            "k_proj": (keys, self.d),
            "v_proj": (keys, self.d),
            "o_proj": (self.d, width),
            "up_proj": (self.d_ff, self.d),
            "gate_proj": (self.d_ff, self.d),
            "down_proj": (self.d, self.d_ff),
            "clean": (self.fit, self.d),
            "positive": (self.fit, self.d),
            "negative": (self.fit, self.d),
            "clean_mlp_input": (self.fit, self.d),
            "positive_mlp_input": (self.fit, self.d),
            "negative_mlp_input": (self.fit, self.d),
            "label": (self.evaluation, self.d),
            "label_fit": (self.fit, self.d),
        }
        for name, shape in shapes.items():
            self.held[name] = [rng.standard_normal(shape) for _ in range(self.layers)]
        for layer in range(self.layers):  # activations with a mean and a shared direction, as in a stream
            shared = rng.standard_normal(self.d)
            for name in ("clean", "positive", "negative", "label", "label_fit"):
                self.held[name][layer] += rng.standard_normal((len(self.held[name][layer]), 1)) * shared + 1
        if self.gains:
            for name in ("attn_norm", "mlp_norm"):
                self.held[name] = [rng.uniform(0.5, 1.5, self.d) for _ in range(self.layers)]
            for name in ("q_norm", "k_norm"):
                self.held[name] = [rng.uniform(0.5, 1.5, self.head_dim) for _ in range(self.layers)]
            self.held["final_norm"] = [rng.uniform(0.5, 1.5, self.d)] * self.layers
        self.held["unembedding"] = [rng.standard_normal((self.vocabulary, self.d))] * self.layers
        self.held["start_embedding"] = [rng.standard_normal(self.d)] * self.layers
        self._tokens(rng)
        for layer in self.changed:
            self.delta[layer] = {
                "o_proj": factors(rng, self.d, self.rank, width),
                "down_proj": factors(rng, self.d, self.rank, self.d_ff, 3.0),
            }

    def _tokens(self, rng: np.random.Generator) -> None:
        for persona, length in zip(("positive", "negative"), self.tokens, strict=True):
            own = rng.integers(length // 2, length + 1, self.fit)
            there = np.arange(length)[None, :] >= length - own[:, None]
            states, attention = [], []
            for _ in range(self.layers):
                states.append(rng.standard_normal((self.fit, length, self.d)) * there[:, :, None])
                weight = rng.exponential(size=(self.fit, length)) * there
                attention.append(weight / weight.sum(axis=1, keepdims=True))
            self.held[f"{persona}_tokens"], self.held[f"{persona}_attention"] = states, attention

    def target(self, dense: bool = False) -> Target:
        def delta(layer: int) -> dict[str, Delta]:
            pairs = self.delta.get(layer, {})
            return {name: Delta(a @ b) if dense else Delta(a, b) for name, (a, b) in pairs.items()}

        return Target(per_layer(self.held["label"]), per_layer(self.held["label_fit"]), delta)

    def inputs(self, dense: bool = False, **changes: Any) -> Inputs:
        items = {
            name: per_layer(arrays)
            for name, arrays in self.held.items()
            if name not in ("label", "label_fit")
        }
        given: dict[str, Any] = {
            "n_layers": self.layers,
            "d": self.d,
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "target": self.target(dense),
            **items,
        }
        return Inputs(**(given | changes))


def factors(
    rng: np.random.Generator, d: int, rank: int, width: int, scale: float = 1.0
) -> tuple[Array, Array]:
    """Factors of a random change of this rank."""
    return scale * rng.standard_normal((d, rank)), rng.standard_normal((rank, width))


def haar(rng: np.random.Generator, d: int, k: int, count: int) -> Array:
    """Bases (count, d, k) of uniformly random subspaces."""
    q, r = np.linalg.qr(rng.standard_normal((count, d, k)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]
