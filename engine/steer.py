"""Weight steering: a model that computes with W + αΔW, without a copy of its weights for each α.

    shift = WeightShift(lm, deltas)
    with shift.at(0.5):
        made = generate(lm, token_ids, max_new_tokens=40)

Projections and embeddings get α times what the difference alone would give, added to their output; low-rank
differences are never multiplied out. Norms run with shifted gains, which are vectors. At α = 0 nothing is
installed at all. Whatever reads weights other than by calling their module does not see the shift:
`PatchEngine` and edits at head_out.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.deltas import WeightDelta
from engine.errors import ModelError
from engine.model import LoadedModel

__all__ = ["WeightShift"]


@dataclass(frozen=True)
class _Values:
    """A difference on the device: factors (out, rank), (rank, in), or one dense tensor."""

    left: Tensor | None
    right: Tensor | None
    dense: Tensor | None

    def times(self, x: Tensor, transposed: bool) -> Tensor:
        """ΔW x for x (..., in), or xΔW where the weight is stored (in, out)."""
        if self.dense is not None:
            return functional.linear(x, self.dense.T if transposed else self.dense)
        assert self.left is not None
        assert self.right is not None
        first, second = (self.left.T, self.right.T) if transposed else (self.right, self.left)
        return functional.linear(functional.linear(x, first), second)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows of ΔW, (..., width)."""
        if self.dense is not None:
            return functional.embedding(ids, self.dense)
        assert self.left is not None
        assert self.right is not None
        return functional.embedding(ids, self.left) @ self.right

    def whole(self) -> Tensor:
        """ΔW as one tensor."""
        if self.dense is not None:
            return self.dense
        assert self.left is not None
        assert self.right is not None
        return self.left @ self.right

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in."""
        tensor = self.left if self.dense is None else self.dense
        assert tensor is not None
        return tensor.dtype


class WeightShift:
    """Weight differences fitted to a loaded model, ready to be put on at any amplitude.

    Args:
        lm: the model; parameters shared under several names (tied embeddings) are shifted in all of them.
        deltas: as `engine.deltas` gives them; each is put on the device as it comes.

    Raises:
        ModelError: a difference names a parameter that the model doesn't have, has another shape, is not
            finite, was not kept, or belongs to a kind of module whose output can't be shifted.
    """

    def __init__(self, lm: LoadedModel, deltas: Iterable[WeightDelta]) -> None:
        self.lm = lm
        self._plan: dict[nn.Module, dict[str, _Values]] = {}
        owners = _owners(lm.model)
        parameters = dict(lm.model.named_parameters(remove_duplicate=False))
        for delta in deltas:
            parameter = _fitting(delta, parameters)
            for module, name in owners[id(parameter)]:
                _check_kind(module, delta.name)
                self._plan.setdefault(module, {})[name] = _on(delta, parameter)

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
                for module, values in self._plan.items():
                    hook = _hook(module, values, alpha)
                    handle = module.register_forward_hook(_in_this_thread(hook), with_kwargs=True)
                    stack.callback(handle.remove)
            yield


Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]


def _in_this_thread(hook: Hook) -> Hook:
    owner = threading.get_ident()

    def run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return hook(module, args, kwargs, output) if threading.get_ident() == owner else output

    return run


def _hook(module: nn.Module, values: dict[str, _Values], alpha: float) -> Hook:
    """What becomes of a module's output."""
    if _is_norm(module):
        shifted = _shifted_norm(module, values, alpha)
        return lambda _module, args, kwargs, _output: shifted.forward(*args, **kwargs)

    def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        given = args[0] if args else next(iter(kwargs.values()))
        total = output
        for name, value in values.items():
            total = total + alpha * _term(module, name, value, given)
        return total.to(output.dtype)

    return add


def _term(module: nn.Module, name: str, value: _Values, given: Tensor) -> Tensor:
    """What a parameter's difference alone adds to the output."""
    if name == "bias":
        return value.whole()
    if isinstance(module, nn.Embedding):
        return value.rows(given) * getattr(module, "embed_scale", 1.0)
    return value.times(given.to(value.dtype), isinstance(module, Conv1D))


def _shifted_norm(module: nn.Module, values: dict[str, _Values], alpha: float) -> Any:
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


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not list(module.children())


def _check_kind(module: nn.Module, name: str) -> None:
    """ModelError for a module that does something else with its parameters than the kinds known here."""
    kind = type(module)
    plain = kind in (nn.Linear, Conv1D, nn.Embedding)
    scaled = isinstance(module, nn.Embedding) and hasattr(module, "embed_scale")
    if not (plain or scaled or _is_norm(module)):
        raise ModelError(
            f"{name} can't be steered: it belongs to a {kind.__name__}.",
            expected="a linear projection, an embedding or a norm",
            given=kind.__name__,
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


def _on(delta: WeightDelta, parameter: nn.Parameter) -> _Values:
    """The values where the parameter is; factors in float32, dense ones in the parameter's dtype."""
    if delta.left is not None and delta.right is not None:
        left, right = (torch.from_numpy(side).to(parameter.device) for side in (delta.left, delta.right))
        values = _Values(left, right, None)
    else:
        values = _Values(None, None, torch.from_numpy(delta.matrix()).to(parameter))
    for tensor in (values.left, values.right, values.dense):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"The weight difference of {delta.name} is not finite.",
                expected="numbers",
                given="NaN or infinity",
            )
    return values
