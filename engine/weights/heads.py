"""How much of a weight difference lies in each attention head, beside what chance would put there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.models.taps import LayerTaps, ModelTaps
from engine.stats.uncertainty import energy_p_value, energy_range, random_subspace_moments
from engine.weights.deltas import WeightDelta

__all__ = ["HeadShare", "head_shares"]


@dataclass(frozen=True)
class HeadShare:
    """One head's part of one tensor's difference.

    Attributes:
        name: of the tensor. layer: its block.
        part: "o": the columns that read the head; "q", "k", "v": the rows that write it (key/value heads for
            the latter two).
        share: ‖ΔW_head‖² / ‖ΔW_part‖². Over heads they add up to 1.
        low, high: 95 % range of that share when the difference's directions on the heads' side are turned
            at random, its singular values kept: the energy of a random subspace as wide as the head, by its
            exact first two moments. p: one-sided, for a share as large.
    """

    name: str
    layer: int
    part: str
    head: int
    share: float
    low: float
    high: float
    p: float


def head_shares(model: ModelTaps, delta: WeightDelta) -> Iterator[HeadShare]:
    """Shares of all heads in a difference of an attention projection; none for another tensor.

    Args:
        model: whose parameter the difference is about.
    """
    for layer in model.layers:
        for part, heads in _parts(model, layer, delta).items():
            yield from _shares(delta.name, layer.index, part, heads.double())


def _parts(model: ModelTaps, layer: LayerTaps, delta: WeightDelta) -> dict[str, Tensor]:
    """part -> the difference, heads first (heads, d_h, other side); empty where it isn't this layer's."""
    family = layer.family
    if not layer.has_heads:
        return {}
    maps = () if family.qkv == "latent" else family.qkv_names
    places = {"o": layer.o_proj} | {name: getattr(layer.attn, name) for name in maps}
    parameter = dict(model.model.named_parameters()).get(delta.name)
    found = [part for part, module in places.items() if getattr(module, "weight", None) is parameter]
    if parameter is None or not found:
        return {}
    matrix = torch.from_numpy(delta.matrix())
    matrix = matrix.T if family.transposed else matrix
    if found[0] == "o":
        return {"o": matrix.T.reshape(layer.n_heads, layer.head_dim, -1)}
    if family.qkv != "separate":
        return dict(zip("qkv", layer.split_qkv(matrix), strict=True))
    part = "qkv"[family.qkv_names.index(found[0])]
    heads = matrix.reshape(-1, layer.head_dim, matrix.shape[1])
    gates = len(heads) // layer.n_heads if part == "q" else 1  # behind every query, as in `w_q`
    return {part: heads[::gates]}


def _shares(name: str, layer: int, part: str, heads: Tensor) -> Iterator[HeadShare]:
    count, width, _ = heads.shape
    rows = heads.reshape(count * width, -1)
    total = float((rows**2).sum())
    if count < 2 or total == 0.0:
        return
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    square = float((gram**2).sum()) / total**2
    mean, variance = random_subspace_moments(count * width, width, 1.0, square)
    low, high = (float(end) for end in energy_range(mean, variance))  # type: ignore[arg-type]
    for head, energy in enumerate((heads**2).sum(dim=(1, 2)).tolist()):
        share = energy / total
        yield HeadShare(name, layer, part, head, share, low, high, energy_p_value(share, mean, variance))
