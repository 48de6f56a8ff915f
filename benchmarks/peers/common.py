"""What every peer has to offer, and padded batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar

import torch
from torch import Tensor


class Unavailable(Exception):
    """The library isn't installed, or cannot run this model; the message says which."""


@dataclass(frozen=True)
class Batch:
    """Padded prompts: `members` are their indices; `last` is each one's last token in the padded row."""

    members: list[int]
    ids: Tensor
    mask: Tensor
    last: Tensor

    @property
    def rows(self) -> Tensor:
        """0..len-1, to index with `last`."""
        return torch.arange(len(self.members))


def padded(
    prompts: Sequence[Sequence[int]], order: Sequence[int], size: int, *, left: bool = False
) -> list[Batch]:
    """Batches of `size` prompts in the given order, padded on the right (or left) to the longest of each."""
    batches = []
    for start in range(0, len(order), size):
        members = list(order[start : start + size])
        longest = max(len(prompts[p]) for p in members)
        ids = torch.zeros(len(members), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(members):
            length = len(prompts[prompt])
            place = slice(longest - length, longest) if left else slice(0, length)
            ids[row, place] = torch.tensor(prompts[prompt])
            mask[row, place] = 1
        last = torch.full((len(members),), longest - 1) if left else mask.sum(1) - 1
        batches.append(Batch(members, ids, mask, last))
    return batches


class Peer(ABC):
    """One way to patch the last token's residual stream behind a block and read what comes next.

    `batch` is the number of prompts that run together.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    batch: ClassVar[int] = 50

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.model, self.prompts = model, prompts
        self.batches = padded(prompts, range(len(prompts)), self.batch)

    @classmethod
    def version(cls) -> str:
        """The installed version; Unavailable when there is none."""
        try:
            return version(cls.package)
        except PackageNotFoundError:
            raise Unavailable("not installed") from None

    @abstractmethod
    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        """Next-token logits (batch, V) with `vectors` (batch, d) behind block `layer`; None: unpatched."""

    def log_probs(self, layer: int, vectors: Tensor | None) -> Tensor:
        """(n, V) log-probabilities, float32, of one condition's `vectors` (n, d)."""
        out: Tensor | None = None
        for batch in self.batches:
            with torch.no_grad():
                chosen = None if vectors is None else vectors[batch.members]
                found = self.logits(batch, layer, chosen).float().log_softmax(-1)
            out = torch.empty(len(self.prompts), found.shape[-1]) if out is None else out
            out[batch.members] = found
        assert out is not None
        return out
