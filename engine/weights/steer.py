"""Weight steering: a model that computes with W + αΔW, without a copy of its weights for each α.

    shift = WeightShift(lm, deltas)
    with shift.at(0.5):
        made = generate(lm, token_ids, max_new_tokens=40)

Projections and embeddings get α times what the difference alone would give, added to their output; low-rank
differences are never multiplied out. Norms run with shifted gains, which are vectors. Other parts of a block
(a router, a recurrent mixer) are W + αΔW themselves while their block runs. At α = 0 nothing is installed at
all. Whatever reads weights other than by calling their module does not see the shift:
`PatchEngine` and edits at head_out.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.errors import ModelError
from engine.models.loading import LoadedModel
from engine.models.taps import LayerTaps, ModelTaps
from engine.models.tensor_parts import in_parts
from engine.passes.wide import linear
from engine.weights.deltas import WeightDelta
from engine.weights.rounding import narrowest

__all__ = ["Values", "WeightShift", "in_this_thread", "is_norm", "shifted_norm"]

HELD = 1 << 16
"""Dense differences with at most so many numbers are held in any case."""


@dataclass(frozen=True)
class Values:
    """A difference on the device: factors (out, rank), (rank, in), or one dense tensor.

    Attributes:
        dense: gives the dense tensor, which is held, or read again each time.
        dtype: what products are computed in.
    """

    left: Tensor | None
    right: Tensor | None
    dense: Callable[[], Tensor] | None
    dtype: torch.dtype

    def times(self, x: Tensor, transposed: bool) -> Tensor:
        """ΔW x for x (..., in), or xΔW where the weight is stored (in, out)."""
        x = x.to(self.dtype)
        if self.dense is not None:
            whole = self.dense().to(self.dtype)
            return linear(x, whole.T if transposed else whole)
        assert self.left is not None
        assert self.right is not None
        first, second = (self.left.T, self.right.T) if transposed else (self.right, self.left)
        return functional.linear(functional.linear(x, first), second)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of ΔW, (..., width)."""
        if self.dense is not None:
            return functional.embedding(ids, self.dense()).to(self.dtype)
        assert self.left is not None
        assert self.right is not None
        return functional.embedding(ids, self.left) @ self.right

    def whole(self) -> Tensor:
        """ΔW as one tensor."""
        if self.dense is not None:
            return self.dense().to(self.dtype)
        assert self.left is not None
        assert self.right is not None
        return self.left @ self.right


class WeightShift:
    """Weight differences fitted to a loaded model, ready to be put on at any amplitude.

    Args:
        lm: the model; parameters shared under several names (tied embeddings) are shifted in all of them.
        deltas: as `engine.weights.deltas` gives them; each is put on the device as it comes. Of a mapping
            from names large dense ones are not held, but asked for again whenever their module runs.

    Raises:
        ModelError: a difference names a parameter that the model doesn't have, has another shape, is not
            finite, was not kept, or belongs to a kind of module whose output can't be shifted.

    Attributes:
        plan: module -> name of its parameter -> the difference, of modules whose output is shifted.
        moved: module -> parameters that are W + αΔW themselves while it runs, with their differences.
    """

    def __init__(self, lm: LoadedModel, deltas: Iterable[WeightDelta] | Mapping[str, WeightDelta]) -> None:
        if lm.live:
            raise ModelError(
                f"The weights of {lm.name!r} can't be steered: it runs on quantised ones.",
                expected="plain weights, to which a difference can be added",
                given='quantised = "live" in the study',
                next_step='leave out quantised = "live", so that the weights are unpacked.',
            )
        self.lm = lm
        self.plan: dict[nn.Module, dict[str, Values]] = {}
        self.moved: dict[nn.Module, list[tuple[nn.Parameter, Values]]] = {}
        owners, blocks = _owners(lm.model), _blocks(lm.taps)
        parameters = dict(lm.model.named_parameters(remove_duplicate=False))
        again = deltas if isinstance(deltas, Mapping) else None
        for delta in deltas.values() if isinstance(deltas, Mapping) else deltas:
            parameter = _fitting(delta, parameters)
            parts = [module for module, _ in owners[id(parameter)]]
            layer, unknown = blocks.get(id(parameter)), [part for part in parts if not _known_kind(part)]
            holder = layer.block if layer is not None else unknown[0] if unknown else None
            movable = parameter.ndim <= 2 and (layer is not None or isinstance(holder, nn.Embedding))
            if unknown and not movable:
                raise _refusal(unknown[0], delta.name)
            dtype = torch.float32 if lm.dtype == torch.float32 else parameter.dtype  # it may be widened there
            values = _on(delta, parameter, dtype, again)
            if holder is not None and (unknown or not (layer is None or layer.has_heads)):
                self.moved.setdefault(holder, []).append((parameter, values))
                continue
            for module, name in owners[id(parameter)]:
                self.plan.setdefault(module, {})[name] = values

    @contextmanager
    def at(self, alpha: float) -> Iterator[None]:
        """Inside the block, and in this thread only, the model computes with W + αΔW.

        Raises:
            ModelError: α is not a finite number.
        """
        if not math.isfinite(alpha):
            raise ModelError("The amplitude α is not finite.", expected="a number", given=alpha)
        with ExitStack() as stack:
            if alpha != 0.0:
                for module, values in self.plan.items():
                    hook = _hook(module, values, alpha)
                    handle = module.register_forward_hook(in_this_thread(hook), with_kwargs=True)
                    stack.callback(handle.remove)
                for holder, moved in self.moved.items():
                    for handle in _moving(holder, moved, alpha):
                        stack.callback(handle.remove)
            yield


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


def in_this_thread(hook: Hook) -> Hook:
    """A hook that other threads' passes don't see."""
    owner = threading.get_ident()

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return hook(module, args, kwargs, output) if threading.get_ident() == owner else output

    return run


def _moving(holder: nn.Module, moved: list[tuple[nn.Parameter, Values]], alpha: float) -> list[Any]:
    """Hooks that put W + αΔW in the place of parameters while this thread runs what holds them."""
    owner, own = threading.get_ident(), list[Tensor]()

    def enter(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() == owner:
            own[:] = [parameter.data for parameter, _ in moved]
            for parameter, values in moved:
                shifted = parameter.data.float() + alpha * values.whole().float()
                with torch.inference_mode(False):
                    parameter.data = shifted.to(parameter.dtype).clone()

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        if threading.get_ident() == owner:
            for (parameter, _), before in zip(moved, own, strict=False):
                parameter.data = before
            own.clear()

    # put back before what widened them for a block (`engine.passes.blockwise`) takes its own away
    return [
        holder.register_forward_pre_hook(enter),
        holder.register_forward_hook(leave, prepend=True, always_call=True),
    ]


def _hook(module: nn.Module, values: dict[str, Values], alpha: float) -> Hook:
    """What becomes of a module's output."""
    if is_norm(module):
        # made when it runs: its own parameters may be widened then
        return lambda _module, args, kwargs, _output: shifted_norm(module, values, alpha).forward(
            *args, **kwargs
        )

    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        given = args[0] if args else next(iter(kwargs.values()))
        total = output
        for name, value in values.items():
            total = total + alpha * _term(module, name, value, given)
        return total.to(output.dtype)

    return add


def _term(module: nn.Module, name: str, value: Values, given: Tensor) -> Tensor:
    """What a parameter's difference alone adds to the output."""
    if name == "bias":
        return value.whole()
    if isinstance(module, nn.Embedding):
        return value.rows(given) * getattr(module, "embed_scale", 1.0)
    return value.times(given, isinstance(module, Conv1D))


def shifted_norm(module: nn.Module, values: dict[str, Values], alpha: float) -> Any:
    """The norm with shifted parameters, without anybody's hooks."""
    shifted: Any = copy.copy(module)
    parameters: dict[str, Any] = dict(module._parameters)
    for name, value in values.items():
        own = parameters[name]
        moved = own.float() + alpha * value.whole().float()
        parameters[name] = nn.Parameter(moved.to(own.dtype), requires_grad=False)
    shifted._parameters = parameters
    shifted._forward_hooks, shifted._forward_pre_hooks = OrderedDict(), OrderedDict()
    return shifted


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Every module that holds a parameter itself, and its name there, by the parameter's identity."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(id(parameter), []).append((module, name))
    return found


def _blocks(taps: ModelTaps) -> dict[int, LayerTaps]:
    """The block that a parameter belongs to, by its identity."""
    return {id(parameter): layer for layer in taps.layers for parameter in layer.block.parameters()}


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm by itself."""
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _known_kind(module: nn.Module) -> bool:
    """Whether what a module does with its parameters is known, so that its output can be shifted."""
    plain = type(module) in (nn.Linear, Conv1D, nn.Embedding)
    scaled = isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
    return plain or scaled or is_norm(module)


def _refusal(module: nn.Module, name: str) -> ModelError:
    kind = type(module).__name__
    return ModelError(
        f"{name} can't be steered: it belongs to a {kind}.",
        expected="a linear projection, an embedding, a norm, or a matrix or vector of a block",
        given=kind,
        next_step="steer with a difference that leaves this tensor alone.",
    )


def _fitting(delta: WeightDelta, parameters: dict[str, nn.Parameter]) -> nn.Parameter:
    if delta.name not in parameters:
        raise ModelError(
            f"The weight difference names {delta.name!r}, which the model doesn't have.",
            expected="parameter names of the model, e.g. " + ", ".join(list(parameters)[:3]),
            given=delta.name,
            next_step="check that the difference was made on this base.",
        )
    parameter = parameters[delta.name]
    if tuple(parameter.shape) != delta.shape:
        raise ModelError(
            f"The weight difference of {delta.name} has the wrong shape.",
            expected=tuple(parameter.shape),
            given=delta.shape,
            next_step="check that the difference was made on this base.",
        )
    return parameter


def _on(
    delta: WeightDelta,
    parameter: nn.Parameter,
    dtype: torch.dtype,
    again: Mapping[str, WeightDelta] | None,
) -> Values:
    """The values where the parameter is; factors in float32.

    Args:
        dtype: that dense differences compute in. Where a narrower one holds them exactly, they are held so.
        again: where a large dense difference is read whenever it is used.
    """
    if delta.left is not None and delta.right is not None:
        left, right = (torch.from_numpy(side).to(parameter.device) for side in (delta.left, delta.right))
        _check_finite(delta.name, left, right)
        return Values(left, right, None, left.dtype)
    whole = torch.from_numpy(delta.matrix())
    held = narrowest(whole) if dtype == torch.float32 else dtype

    def placed(found: WeightDelta) -> Tensor:
        return torch.from_numpy(found.matrix()).to(parameter.device, held)

    dense = whole.to(parameter.device, held)
    _check_finite(delta.name, dense)
    if again is not None and dense.numel() > HELD:
        known = again
        return Values(None, None, lambda: placed(known[delta.name]), dtype)
    return Values(None, None, lambda: dense, dtype)


def _check_finite(name: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(part).all()) for tensor in tensors for part in in_parts(tensor)):
        raise ModelError(
            f"The weight difference of {name} is not finite.", expected="numbers", given="NaN or infinity"
        )
