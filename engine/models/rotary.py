"""Scaled rotary positions: how far they reach, and LongRoPE, whose factors depend on a prompt's length.

LongRoPE (Ding et al. 2024, arXiv:2402.13753) turns queries and keys by one set of factors in sequences up to
a length and by another beyond it. transformers takes the longest sequence of a forward pass for all of its
rows; here each prompt is what it is alone: prompts of the two sides never share a pass, and a part of a long
prompt is turned as the whole is (`turned`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from engine.errors import ModelError, PatchError

__all__ = ["check_one_side", "check_rotary", "reach_of", "switch_of", "turned"]

NO_END = 2**31 - 1


def reach_of(config: Any) -> int:
    """The longest sequence in tokens that a model's positions are made for.

    `max_position_embeddings`, which transformers' own scaling of frequencies takes as the end (linear,
    llama3, LongRoPE) or as the length from which on they change with every token (dynamic NTK: each length
    would be another model). YaRN's frequencies are made for factor × original_max_position_embeddings, which
    configs that were switched to YaRN later don't say elsewhere.
    """
    text = config.get_text_config()
    stated = int(getattr(text, "max_position_embeddings", None) or NO_END)
    for scaling in _scalings(text):
        factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if _kind(scaling) == "yarn" and factor and original:
            stated = max(stated, int(float(factor) * int(original)))
    return stated


def switch_of(config: Any) -> int | None:
    """The longest sequence in tokens with LongRoPE's short factors; None where factors don't depend on it."""
    text = config.get_text_config()
    for scaling in _scalings(text):
        if _kind(scaling) == "longrope":
            own = scaling.get("original_max_position_embeddings")
            return int(own or getattr(text, "original_max_position_embeddings", 0) or reach_of(config))
    return None


def check_rotary(config: Any) -> None:
    """ModelError for scaled rotary positions whose frequencies can't be computed or are not finite."""
    text = config.get_text_config()
    for layer_type, scaling in _by_layer_type(text).items():
        frequencies = ROPE_INIT_FUNCTIONS.get(_kind(scaling))
        if frequencies is None:
            continue  # unscaled, or of the model's own
        try:
            given = [
                frequencies(text, torch.device("cpu"), seq_len=length, layer_type=layer_type)[0]
                for length in (1, reach_of(config) + 1)
            ]
            sound = all(bool(torch.isfinite(found).all()) for found in given)
            what = "NaN or infinity"
        except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
            sound, what = False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if not sound:
            raise ModelError(
                f"Rotary positions of the kind {_kind(scaling)!r} can't be computed from these settings.",
                expected="finite frequencies, one for each pair of a head's dimensions",
                given=f"{dict(scaling)}: {what}",
                next_step="check that config.json is complete and as the checkpoint was saved with.",
            )


def _scalings(text: Any) -> list[Mapping[str, Any]]:
    """The settings of rotary positions: one for all layers, or one for each kind of layer."""
    return list(_by_layer_type(text).values())


def _by_layer_type(text: Any) -> dict[str | None, Mapping[str, Any]]:
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested: dict[str | None, Mapping[str, Any]] = {
        name: value for name, value in found.items() if isinstance(value, Mapping)
    }
    return nested or {None: found}


def _kind(scaling: Mapping[str, Any]) -> str:
    return str(scaling.get("rope_type", scaling.get("type")) or "default")


def check_one_side(switch: int | None, lengths: Sequence[int], room: int) -> None:
    """PatchError for a sequence that would cross LongRoPE's switch while it grows.

    Its first tokens' keys are kept turned by the short factors, which the model would turn by the long ones.
    """
    crossing = [length for length in lengths if switch is not None and length <= switch < length + room]
    if crossing:
        raise PatchError(
            "A prompt and what follows it lie on both sides of the length at which the model changes its "
            "rotary factors (LongRoPE).",
            expected=f"up to {switch} tokens with what follows, or more than {switch} before it",
            given=f"{crossing[0]} and up to {room} more, {len(crossing)} such prompts",
            next_step="let fewer tokens follow, or leave these prompts out.",
        )


@contextmanager
def turned(model: nn.Module, switch: int | None, length: int) -> Iterator[None]:
    """Inside the block any pass turns its tokens as a sequence of `length` does. Hold the model's lock.

    A position behind the switch is added to what the rotary modules see, and its angles taken off again.
    """
    with ExitStack() as stack:
        if switch is not None and length > switch:
            for module in model.modules():
                if "rotary" in type(module).__name__.lower():
                    before = module.register_forward_pre_hook(_lengthened(switch), with_kwargs=True)
                    stack.callback(before.remove)
                    stack.callback(module.register_forward_hook(_cut).remove)
        yield


def _lengthened(switch: int) -> Any:
    def longer(positions: Tensor) -> Tensor:
        return torch.cat([positions, positions.new_full((*positions.shape[:-1], 1), switch)], dim=-1)

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if "position_ids" in kwargs:
            return args, kwargs | {"position_ids": longer(kwargs["position_ids"])}
        return (args[0], longer(args[1]), *args[2:]), kwargs

    return hook


def _cut(_module: nn.Module, _args: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(angles[..., :-1, :] for angles in output)
