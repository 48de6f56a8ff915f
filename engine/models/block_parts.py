"""Parts that some families' blocks compute without a module to hook: given to them, the numbers the same.

OPT's MLP is two layers of the block, and runs on tokens without their batch; Llama 4's mixtures of experts
return tokens without their batch; some of Granite's blocks add an MLP to their mixture of experts.
What is given is seen by hooks alone: no parameter gets another name.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor, nn

__all__ = ["give_parts"]


def give_parts(family: str, blocks: Iterable[nn.Module]) -> None:
    """Gives the blocks of a family what they lack, in place; nothing where they have it or lack nothing."""
    if family == "opt":
        own, given = _opt()
        for block in blocks:
            if type(block) is own:
                block.__dict__["mlp"] = _TwoLayers(block)
                block.__class__ = given
    elif family in ("granitemoehybrid", "granitemoeshared"):
        own, given = _granite(family)
        for block in blocks:
            if type(block) is own:
                block.__dict__["mlp"] = _WithExperts(block)
                block.__class__ = given
    elif family in ("llama4", "llama4_text"):
        own, given = _llama4()
        for part in (part for block in blocks for part in block.children()):
            if type(part) is own:
                part.__class__ = given


class _TwoLayers(nn.Module):
    """OPT's MLP; its layers stay the block's."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.fc1, self.activation_fn, self.fc2 = block.fc1, block.activation_fn, block.fc2

    def forward(self, hidden_states: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation_fn(self.fc1(hidden_states)))
        return out


@cache
def _opt() -> tuple[type[nn.Module], type[nn.Module]]:
    """OPT's block, and one in eval mode with its MLP as a module. Its code is only read for such a model."""
    from transformers.models.opt.modeling_opt import OPTDecoderLayer

    class Block(OPTDecoderLayer):
        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
            stream = hidden_states + self.self_attn(self.self_attn_layer_norm(hidden_states), **kwargs)[0]
            mlp: Tensor = self.__dict__["mlp"](self.final_layer_norm(stream))
            return stream + mlp

    return OPTDecoderLayer, Block


class _WithExperts(nn.Module):
    """What a mixture of experts, where there is one, and the MLP beside it give together."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.experts, self.shared = block.block_sparse_moe, block.shared_mlp

    def forward(self, hidden_states: Tensor) -> Tensor:
        parts = [part for part in (self.experts, self.shared) if part is not None]
        first: Tensor = parts[0](hidden_states)
        return first if len(parts) == 1 else first + parts[1](hidden_states)


@cache
def _granite(family: str) -> tuple[type[nn.Module], type[nn.Module]]:
    """A Granite block, and one with all of its MLP as a module."""
    code = import_module(f"transformers.models.{family}.modeling_{family}")
    name = {"granitemoeshared": "GraniteMoeShared", "granitemoehybrid": "GraniteMoeHybrid"}[family]
    own: Any = getattr(code, f"{name}DecoderLayer")

    def forward(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        normed, mamba = self.input_layernorm(hidden_states), getattr(self, "mamba", None)
        if mamba is None:
            mixed = self.self_attn(hidden_states=normed, **kwargs)[0]
        else:
            more = {key: kwargs[key] for key in ("attention_mask", "seq_idx") if key in kwargs}
            mixed = mamba(hidden_states=normed, cache_params=kwargs.get("past_key_values"), **more)
        stream = hidden_states + mixed * self.residual_multiplier
        mlp: Tensor = self.__dict__["mlp"](self.post_attention_layernorm(stream))
        out: Tensor = stream + mlp * self.residual_multiplier
        return out

    return own, type("Block", (own,), {"forward": forward})


@cache
def _llama4() -> tuple[type[nn.Module], type[nn.Module]]:
    """Llama 4's mixture of experts, and one that returns its tokens as it was given them."""
    from transformers.models.llama4.modeling_llama4 import Llama4TextMoe

    class Experts(Llama4TextMoe):
        def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            out, router_logits = super().forward(hidden_states)
            return out.view(hidden_states.shape), router_logits

    return Llama4TextMoe, Experts
