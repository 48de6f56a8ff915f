"""Plain forward hooks on the Hugging Face model: as one writes them first, and as one tunes them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from peers.common import Batch, Peer, padded


class PlainHooks(Peer):
    """Right-padded batches of 50 in the given order, a forward hook, logits of every token."""

    name = "Hugging Face hooks"
    package = "transformers"

    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        with ExitStack() as stack:
            if vectors is not None:
                hook = _putting(batch, vectors)
                stack.callback(self.model.model.layers[layer].register_forward_hook(hook).remove)
            output = self.model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False)
        return output.logits[batch.rows, batch.last]


class TunedHooks(Peer):
    """Sorted by length, left-padded batches of 25, logits of the last token only."""

    name = "tuned Hugging Face loop"
    package = "transformers"
    batch = 25

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        super().__init__(model, prompts)
        order = sorted(range(len(prompts)), key=lambda p: len(prompts[p]))
        self.batches = padded(prompts, order, self.batch, left=True)

    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        with ExitStack() as stack:
            if vectors is not None:
                hook = _putting(batch, vectors)
                stack.callback(self.model.model.layers[layer].register_forward_hook(hook).remove)
            output = self.model(
                input_ids=batch.ids,
                attention_mask=batch.mask,
                position_ids=(batch.mask.cumsum(1) - 1).clamp_min(0),
                use_cache=False,
                logits_to_keep=1,
            )
        return output.logits[:, -1]


def _putting(batch: Batch, vectors: Tensor) -> Any:
    def hook(_module: Any, _args: Any, output: Tensor) -> Tensor:
        output[batch.rows, batch.last] = vectors
        return output

    return hook
