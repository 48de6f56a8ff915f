"""TransformerLens, nnsight and pyvene: right-padded batches of 50, each library's documented intervention."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from peers.common import Batch, Peer


class TransformerLensPeer(Peer):
    """`run_with_hooks` of a bridge around a copy of the model (the bridge changes it in place)."""

    name = "TransformerLens"
    package = "transformer-lens"

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.version()
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        logging.getLogger("transformer_lens").setLevel(logging.ERROR)
        own = copy.deepcopy(model)
        super().__init__(build_bridge_from_module(own, type(own).__name__, hf_config=own.config), prompts)

    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        def put(stream: Tensor, hook: Any) -> Tensor:
            assert vectors is not None
            stream[batch.rows, batch.last] = vectors
            return stream

        hooks = [] if vectors is None else [(f"blocks.{layer}.hook_resid_post", put)]
        logits = self.model.run_with_hooks(
            batch.ids, attention_mask=batch.mask, return_type="logits", fwd_hooks=hooks
        )
        return logits[batch.rows, batch.last]


class NNsightPeer(Peer):
    """A trace that assigns to the block's output."""

    name = "nnsight"
    package = "nnsight"

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.version()
        from nnsight import NNsight

        super().__init__(NNsight(model), prompts)

    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        model, rows, last = self.model, batch.rows, batch.last
        found: Any
        if vectors is None:
            with model.trace(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False):
                found = model.output.logits[rows, last].save()
        else:
            with model.trace(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False):
                model.model.layers[layer].output[rows, last] = vectors
                found = model.output.logits[rows, last].save()
        return found


class PyvenePeer(Peer):
    """A VanillaIntervention on the block's output with given source representations."""

    name = "pyvene"
    package = "pyvene"

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        self.version()
        super().__init__(model, prompts)
        self._wrapped: dict[int, Any] = {}

    def logits(self, batch: Batch, layer: int, vectors: Tensor | None) -> Tensor:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False}
        if vectors is None:
            return self.model(**inputs).logits[batch.rows, batch.last]
        wrapped = self._of(layer)
        _, output = wrapped(
            inputs,
            source_representations={next(iter(wrapped.interventions)): vectors[:, None]},
            unit_locations={"sources->base": (None, [[[int(place)] for place in batch.last]])},
        )
        return output.logits[batch.rows, batch.last]

    def _of(self, layer: int) -> Any:
        if layer not in self._wrapped:
            import pyvene

            site = pyvene.RepresentationConfig(layer, "block_output", "pos", 1)
            config = pyvene.IntervenableConfig(
                representations=[site], intervention_types=pyvene.VanillaIntervention
            )
            self._wrapped[layer] = pyvene.IntervenableModel(config, self.model)
        return self._wrapped[layer]
