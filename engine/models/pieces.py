"""Parts of a model's weights that analyses need later, when no model is loaded.

Each piece is made entry by entry, one block at a time, so that nothing but a block is held in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.geometry.z import head_kernel_svd, key_frame, key_side
from engine.models.sites import LayerTaps, ModelTaps

__all__ = ["GATE_PIECES", "PIECES", "Entry", "Piece", "gate_weight", "model_pieces", "piece_names"]

PIECES = (
    "w_k",
    "kernel_right",
    "kernel_sigma",
    "folded_right",
    "folded_sigma",
    "attn_norm_gain",
    "q_norm_gain",
    "k_norm_gain",
    "mlp_norm_gain",
    "final_norm_gain",
    "unembedding",
)
"""Names of what `model_pieces` gives, in its order."""
UNKEYED = ("attn_norm_gain", "mlp_norm_gain", "final_norm_gain", "unembedding")
"""What it gives of a model some of whose blocks have no key projection of the stream: latent or linear
attention."""
GATE_PIECES = ("gate_gram", "gate_moments")
"""What follows for models whose MLPs have a gate."""
GRAM_BITS = 14
"""Bits after the leading one that a Gram matrix keeps, 3e-5 of each number: the rest doesn't compress."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Entry:
    """One entry of a piece, usually a block's.

    Attributes:
        values: as the model has them, or an array.
        factor: they are factors of the same entry K of `w_k` (g, m, d): head i has K[group]ᵀ @ values[i].
    """

    values: Tensor | Array
    factor: bool = False


@dataclass(frozen=True)
class Piece:
    """One named array of weights.

    Attributes:
        name: under the model's weights in the store.
        dims: a name per axis. shape: of the array.
        meaning: one line for whoever opens the store without this code.
        entry: entry i of the first axis; of a `whole` piece the array itself.
        exact: weights as they are: bfloat16 where it holds them exactly, not float32.
        made_of: hash of the weights that entry i is computed from, where computing it is work: equal ones
            give equal entries.
        keys: entry i of `w_k`, where entries may be factors.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    meaning: str
    entry: Callable[[int], Entry]
    whole: bool = False
    exact: bool = False
    made_of: Callable[[int], str] | None = None
    keys: Callable[[int], Tensor] | None = None

    @cached_property
    def values(self) -> Array:
        """The array in memory, float32 (float64 where float32 would not do)."""
        if self.whole:
            return _array(self.entry(0).values)
        return np.stack([self.at(i) for i in range(self.shape[0])])

    def at(self, i: int) -> Array:
        """Entry i of the first axis in memory, as it reads."""
        found = self.entry(i)
        values = _array(found.values)
        return _times_keys(self.keys(i).numpy(), values) if found.factor and self.keys else values


def _array(values: Tensor | Array) -> Array:
    if isinstance(values, Tensor):
        return np.ascontiguousarray(values.detach().float().cpu().numpy())
    return values


def _times_keys(keys: Array, factor: Array) -> Array:
    """(g, m, d), (h, m, r) -> (h, d, r)."""
    group = np.arange(len(factor)) // (len(factor) // len(keys))
    return np.ascontiguousarray(np.matmul(keys[group].transpose(0, 2, 1), factor))


def model_pieces(model: ModelTaps) -> Iterator[Piece]:
    """Key projections per head, head-kernel singular vectors, norms, unembedding, gates.

    The head kernel of head i is K_i = W_Q,iᵀ W_K,g(i), at relative position 0 (without RoPE) and
    without biases; its right singular vectors are the key side. `folded` ones have the gains of the norms
    in front of the attention, of queries and of keys in them. What is about keys is left out where the model
    isn't `keyed`.
    """
    if not model.keyed:
        yield from (piece for piece in (*_norms(model), _unembedding(model)) if piece.name in UNKEYED)
        return
    layers, d = model.layers, model.d
    count, heads, groups, width = len(layers), model.n_heads, model.n_kv_heads, model.head_dim
    kernels = _Kernels(model)
    yield Piece(
        "w_k",
        ("layer", "kv_head", "head_feature", "feature"),
        (count, groups, width, d),
        "key projection of every key head",
        lambda i: Entry(layers[i].w_k()),
        exact=True,
    )
    for name, folded, told in (
        ("kernel", False, "every head kernel W_Qᵀ W_K"),
        ("folded", True, "every head kernel with the gains of the norms in it, over attn_norm_gain"),
    ):
        yield Piece(
            f"{name}_right",
            ("layer", "head", "feature", "rank"),
            (count, heads, d, width),
            f"right singular vectors (key side) of {told}, columns by singular value",
            partial(kernels.right, folded),
            made_of=partial(kernels.made_of, folded),
            keys=lambda i: layers[i].w_k().cpu(),
        )
        yield Piece(
            f"{name}_sigma",
            ("layer", "head", "rank"),
            (count, heads, width),
            f"singular values of {told.removesuffix(', over attn_norm_gain')}",
            partial(kernels.sigma, folded),
            made_of=partial(kernels.made_of, folded),
        )
    yield from _norms(model)
    yield _unembedding(model)
    if any(gate_weight(layer) is not None for layer in layers):
        yield from _gate_pieces(model, kernels)


def piece_names(model: ModelTaps) -> tuple[str, ...]:
    """Names of what `model_pieces` gives for this model, in its order."""
    if not model.keyed:
        return UNKEYED
    gated = any(gate_weight(layer) is not None for layer in model.layers)
    return PIECES + GATE_PIECES if gated else PIECES


class _Kernels:
    """The head kernels of every block, each decomposed once."""

    def __init__(self, model: ModelTaps) -> None:
        self.model = model
        self._found: dict[tuple[bool, int], tuple[Entry, Array]] = {}
        self._hashes: dict[tuple[bool, int], str] = {}

    def made_of(self, folded: bool, i: int) -> str:
        if (folded, i) not in self._hashes:
            layer = self.model.layers[i]
            gains = (layer.input_norm, layer.q_norm, layer.k_norm) if folded else ()
            used = layer.w_q(), layer.w_k(), *(self.model.gain(norm) for norm in gains)
            self._hashes[folded, i] = content(*used)
        return self._hashes[folded, i]

    def right(self, folded: bool, i: int) -> Entry:
        return self._decomposed(folded, i)[0]

    def sigma(self, folded: bool, i: int) -> Entry:
        return Entry(self._decomposed(folded, i)[1])

    def keys(self, i: int) -> Array:
        """kernel_right of a block, multiplied out (h, d, d_h)."""
        found = self.right(False, i)
        values = _array(found.values)
        return _times_keys(self.model.layers[i].w_k().cpu().numpy(), values) if found.factor else values

    def _decomposed(self, folded: bool, i: int) -> tuple[Entry, Array]:
        if (folded, i) not in self._found:
            self._found[folded, i] = self._decompose(folded, i)
        return self._found[folded, i]

    def _decompose(self, folded: bool, i: int) -> tuple[Entry, Array]:
        model, layer = self.model, self.model.layers[i]
        w_q, w_k = (w.cpu().double().numpy() for w in (layer.w_q(), layer.w_k()))
        gain, of_k = None, np.ones((model.n_kv_heads, model.head_dim))
        if folded:
            gain = model.gain(layer.input_norm).cpu().double().numpy()
            of_q = _head_gains(model, layer.q_norm, model.n_heads).double().numpy()
            of_k = _head_gains(model, layer.k_norm, model.n_kv_heads).double().numpy()
            w_q, w_k = w_q * of_q[..., None], w_k * of_k[..., None]
        found = key_side(w_q, w_k, input_gain=gain)
        if found.factor is not None:
            group = np.arange(model.n_heads) // (model.n_heads // model.n_kv_heads)
            return Entry(_f32(of_k[group][..., None] * found.factor), factor=True), _f32(found.sigma)
        whole = head_kernel_svd(w_q, w_k, input_gain=gain)
        safe = 1.0 if gain is None else np.where(gain == 0, 1.0, gain)[:, None]
        return Entry(_f32(whole.right / safe)), _f32(whole.sigma)


def content(*values: Tensor) -> str:
    """Hash of some tensors' values, in float32."""
    found = hashlib.sha256()
    for value in values:
        array = _array(value)
        found.update(f"{array.shape}".encode())
        found.update(array.data)
    return found.hexdigest()[:40]


def _norms(model: ModelTaps) -> Iterator[Piece]:
    layers, count = model.layers, len(model.layers)
    none = "ones where there is no such norm"
    features, each = ("layer", "feature"), (count, model.d)
    yield Piece(
        "attn_norm_gain",
        features,
        each,
        "gain of the norm before the attention",
        lambda i: Entry(model.gain(layers[i].input_norm)),
        exact=True,
    )
    yield Piece(
        "q_norm_gain",
        ("layer", "head", "head_feature"),
        (count, model.n_heads, model.head_dim),
        f"gain of the norm of every head's queries; {none}",
        lambda i: Entry(_head_gains(model, layers[i].q_norm, model.n_heads)),
        exact=True,
    )
    yield Piece(
        "k_norm_gain",
        ("layer", "kv_head", "head_feature"),
        (count, model.n_kv_heads, model.head_dim),
        f"gain of the norm of every key head's keys; {none}",
        lambda i: Entry(_head_gains(model, layers[i].k_norm, model.n_kv_heads)),
        exact=True,
    )
    yield Piece(
        "mlp_norm_gain",
        features,
        each,
        "gain of the norm before the MLP",
        lambda i: Entry(model.gain(layers[i].mlp_norm)),
        exact=True,
    )
    yield Piece(
        "final_norm_gain",
        ("feature",),
        (model.d,),
        "final norm's gain",
        lambda _: Entry(model.gain(model.final_norm)),
        whole=True,
        exact=True,
    )


def _unembedding(model: ModelTaps) -> Piece:
    unembedding: Any = model.unembedding
    return Piece(
        "unembedding",
        ("token", "feature"),
        tuple(unembedding.weight.shape),
        "unembedding, one row a token",
        lambda _: Entry(unembedding.weight.detach()),
        whole=True,
        exact=True,
    )


def gate_weight(layer: LayerTaps) -> Tensor | None:
    """The MLP's gate projection W_gate, (width of the MLP, d), or None: no gate, or one for each expert."""
    gate = getattr(layer.mlp, "gate_proj", None)
    if gate is not None:
        weight: Tensor = gate.weight.detach()
        return weight
    fused = getattr(layer.mlp, "gate_up_proj", None)  # Phi-3: the gate's rows come first
    return None if not hasattr(fused, "weight") else fused.weight.detach().chunk(2)[0]  # type: ignore[union-attr]


def _gate_pieces(model: ModelTaps, kernels: _Kernels) -> Iterator[Piece]:
    """What W_gate reads, seen only from where the same layer's keys read.

    Every Z of a layer lies in the span of its keys, so ‖W_gate Z‖² follows from one Gram matrix on key
    directions F: (g·d_h)² numbers a layer (4 MB for 8 key heads of 128), d² where that is not fewer. Of a
    symmetric G only the upper triangle is kept, off the diagonal twice: xᵀGx is the same.
    """
    full = model.n_kv_heads * model.head_dim >= model.d
    size = model.d if full else model.n_kv_heads * model.head_dim

    def made_of(i: int) -> str:
        found = gate_weight(model.layers[i])
        gate = "none" if found is None else content(found)
        return gate if full else gate + kernels.made_of(False, i)

    def gram(i: int) -> Entry:
        found = gate_weight(model.layers[i])
        if found is None:
            return Entry(np.zeros((size, size), dtype=np.float32))
        weight = found.float()
        if not full:
            frame = key_frame(kernels.keys(i), model.n_kv_heads)
            weight = weight @ torch.from_numpy(_f32(frame)).to(weight.device)
        square = (weight.T @ weight).cpu()
        upper = 2 * torch.triu(square, 1) + torch.diag(square.diagonal())
        return Entry(rounded(_f32(upper.numpy()), GRAM_BITS))

    def moments(i: int) -> Entry:
        found = gate_weight(model.layers[i])
        if found is None:
            return Entry(np.full(2, np.nan))
        weight = found.float()
        small = weight.T @ weight if weight.shape[1] <= weight.shape[0] else weight @ weight.T
        return Entry(np.array([float(small.diagonal().double().sum()), float(small.double().square().sum())]))

    what = "input coordinates" if full else "key directions: kernel_right of each key head's first query head"
    yield Piece(
        "gate_gram",
        ("layer", "direction", "other_direction"),
        (model.n_layers, size, size),
        f"Gram matrix G of the MLP's gate projection on {what}, as a triangle U with xᵀUx = xᵀGx; zero where "
        "a layer has no single gate",
        gram,
        made_of=made_of,
    )
    yield Piece(
        "gate_moments",
        ("layer", "moment"),
        (model.n_layers, 2),
        "tr WᵀW and ‖WᵀW‖² of the gate projection W; NaN where a layer has no single gate",
        moments,
        made_of=made_of,
    )


def rounded(values: Array, bits: int) -> Array:
    """float32 rounded to so many bits after the leading one (ties to even): 2^−(bits+1) of each number."""
    drop = np.uint32(23 - bits)
    words = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (words >> drop) & np.uint32(1)
    words = words + (np.uint32(1) << (drop - np.uint32(1))) - np.uint32(1) + odd
    return np.asarray((words >> drop << drop).view(np.float32))


def _head_gains(model: ModelTaps, norm: Any, heads: int) -> Tensor:
    """The gain of a query or key norm, (heads, d_h): its own for each head, or one for all."""
    if norm is None:
        return torch.ones(heads, model.head_dim)
    gain = model.gain(norm).cpu().reshape(-1, model.head_dim)
    return gain.expand(heads, model.head_dim)


def _f32(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32)
