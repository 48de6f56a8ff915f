"""Continuations of prompts as trees that are read behind them, in the same forward pass.

What two continuations begin with alike is one node. A node sees its prompt and the nodes that lead to it, and
stands where it would stand in its own text: its state is that of the plain pass over prompt and continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from engine.models.loading import LoadedModel

__all__ = ["Branches", "Tree", "branches_fit", "laid_out", "tree_of"]


@dataclass(frozen=True)
class Tree:
    """The continuations of one prompt, without their last tokens, which nothing has to be read of.

    Attributes:
        tokens: of each node. parents: the node before it, −1 where that is the prompt.
        ends: per continuation, for each of its tokens the node that predicts it, −1 for the prompt.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]


def tree_of(continuations: Sequence[Sequence[int]]) -> Tree:
    """The tree of some continuations, none of them empty."""
    known: dict[tuple[int, int], int] = {}
    ends = []
    for ids in continuations:
        at, own = -1, [-1]
        for token in ids[:-1]:
            at = known.setdefault((at, int(token)), len(known))
            own.append(at)
        ends.append(tuple(own))
    parents, tokens = zip(*known, strict=True) if known else ((), ())
    return Tree(tokens, parents, tuple(ends))


def branches_fit(lm: LoadedModel) -> bool:
    """Whether a model's attention takes a mask of one's own: attention over all tokens by positions that are
    given to it, in every block."""
    config = lm.model.config
    text = config.get_text_config()
    plain = all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)
    usual = text._attn_implementation in ("sdpa", "eager") and not getattr(text, "alibi", False)
    return lm.taps.family.packs and plain and usual and lm.taps.rotary_switch is None


@dataclass(frozen=True)
class Branches:
    """The trees of some rows, padded to the largest.

    Attributes:
        ids, depths: (B, K), depth 0 being the first token behind the prompt. seen: (B, K, K), which nodes
            each node sees, itself included.
    """

    ids: Tensor
    depths: Tensor
    seen: Tensor

    def select(self, rows: Tensor) -> Branches:
        """Only these rows, in this order; a row may come more than once."""
        return Branches(self.ids[rows], self.depths[rows], self.seen[rows])

    def behind(self, ids: Tensor, index: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens and places of prompts (B, T), padded on the left with places below 0, and of their nodes
        behind them, (B, T + K); and the mask (B, 1, T + K, T + K), to be added to attention scores."""
        (b, t), k = ids.shape, self.ids.shape[1]
        places = torch.cat([index, index[:, -1:] + 1 + self.depths], dim=1)
        order = torch.arange(t, device=ids.device)
        sees = torch.zeros(b, t + k, t + k, dtype=torch.bool, device=ids.device)
        real = index >= 0
        sees[:, :t, :t] = (order[:, None] >= order) & real[:, None]
        sees[:, t:, :t] = real[:, None]
        sees[:, t:, t:] = self.seen
        mask = torch.zeros(sees.shape, dtype=dtype, device=ids.device)
        mask = mask.masked_fill(~sees, torch.finfo(dtype).min)[:, None]
        return torch.cat([ids, self.ids], dim=1), places, mask

    def cut(self, cache: DynamicCache) -> None:
        """Takes the nodes out of a cache again."""
        cache.crop(-self.ids.shape[1])


def laid_out(trees: Sequence[Tree], device: torch.device) -> Branches | None:
    """The trees of some rows side by side; None where none of them has a node."""
    width = max((len(tree.tokens) for tree in trees), default=0)
    if width == 0:
        return None
    ids, depths = torch.zeros(2, len(trees), width, dtype=torch.long)
    seen = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            ids[row, node] = token
            if parent >= 0:
                depths[row, node] = depths[row, parent] + 1
                seen[row, node] |= seen[row, parent]
    return Branches(ids.to(device), depths.to(device), seen.to(device))
