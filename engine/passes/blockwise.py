"""A 16-bit model that computes in float32 without a float32 copy of its weights.

    with in_float32(lm):
        ...  # forward passes: the numbers of lm.model.float(), bit by bit on a CPU

A block's weights are widened when the block is entered and given back when it is left, so that beside the
model only one block of float32 weights is in memory, or the unembedding. A 16-bit number is a float32 number:
nothing is rounded. In the same way weights are *moved* while a block runs: W + αΔW is put on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.models.loading import LoadedModel

__all__ = ["Move", "in_float32"]

Move = Callable[[Tensor], Tensor]
"""Makes a new float32 tensor, on the same device, of a parameter's values in its own dtype."""

SMALL = 1 << 20
"""Parts outside the blocks with at most so many numbers are widened once for all passes, as norms are."""


@contextmanager
def in_float32(lm: LoadedModel, moves: Mapping[str, Move] | None = None) -> Iterator[None]:
    """Inside the `with` block forward passes of the model are in float32; may be nested to add moves.

    `lm.dtype` is float32 there. What reads large weights other than by calling a block, the embedding or the
    unembedding sees them in their own dtype, and not moved.

    Args:
        moves: parameter name -> what becomes of it instead of being widened.
    """
    outer = _RUNNING.get(lm.model)
    wide = outer or _Widened(lm.model)
    parameters = dict(lm.model.named_parameters(remove_duplicate=False))
    wanted = {id(parameters[name]): move for name, move in (moves or {}).items()}
    before, dtype = dict(wide.moves), lm.dtype
    try:
        wide.moves.update(wanted)
        wide.renew()
        if outer is None:
            _RUNNING[lm.model] = wide
            wide.hook([layer.block for layer in lm.taps.layers])
        lm.dtype = torch.float32
        yield
    finally:
        lm.dtype = dtype
        wide.moves = before
        if outer is None:
            _RUNNING.pop(lm.model, None)
            wide.end()
        else:
            wide.renew()


class _Widened:
    """The hooks of one model, and what of it is widened at the moment."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.moves: dict[int, Move] = {}
        self._handles: list[Any] = []
        self._own: dict[int, tuple[nn.Parameter, Tensor]] = {}
        """Of what is widened: the parameter and its own values."""
        self._users: dict[int, int] = {}
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []
        self._lasting: list[nn.Parameter] = []
        self._forwards: list[nn.Module] = []

    def hook(self, blocks: list[nn.Module]) -> None:
        """Widens small parts outside the blocks, and installs hooks for the others."""
        inside = {id(module) for block in blocks for module in block.modules()}
        for block in blocks:
            self._on_call(block, list(block.parameters()))
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point() and buffer.dtype.itemsize < 4:
                    self._buffers.append((module, name, buffer))
                    module._buffers[name] = buffer.float()
            own = list(module.parameters(recurse=False))
            if id(module) in inside or not own:
                continue
            vectors = all(parameter.ndim < 2 for parameter in own)  # a norm's, which steering reads by itself
            if vectors or sum(parameter.numel() for parameter in own) <= SMALL:
                self._lasting += own
            elif isinstance(module, nn.Embedding) and _known(module):
                module.__dict__["forward"] = self._rows_of(module)
                self._forwards.append(module)
            else:
                self._on_call(module, own)
        self._take(self._lasting)

    def renew(self) -> None:
        """Widens again what lasts, because other moves are asked for."""
        self._give_back(self._lasting)
        self._take(self._lasting)

    def end(self) -> None:
        """The model is what it was, also where a pass broke off."""
        for handle in self._handles:
            handle.remove()
        for module in self._forwards:
            module.__dict__.pop("forward", None)
        for parameter, own in self._own.values():
            parameter.data = own
        for module, name, buffer in self._buffers:
            module._buffers[name] = buffer

    def _on_call(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        def enter(_module: nn.Module, _args: Any) -> None:
            self._take(parameters)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._give_back(parameters)

        self._handles.append(module.register_forward_pre_hook(enter))
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def _take(self, parameters: list[nn.Parameter]) -> None:
        """Widens or moves parameters, those in use already excepted (shared ones)."""
        for parameter in parameters:
            key = id(parameter)
            users = self._users[key] = self._users.get(key, 0) + 1
            if users == 1:
                self._own[key] = parameter, parameter.data
                with torch.inference_mode(False):
                    parameter.data = self._wide(parameter)

    def _give_back(self, parameters: list[nn.Parameter]) -> None:
        for parameter in parameters:
            key = id(parameter)
            if not self._users.get(key):
                continue  # the hook of a pass that broke off before it was entered
            self._users[key] -= 1
            if not self._users[key]:
                parameter.data = self._own.pop(key)[1]

    def _wide(self, parameter: nn.Parameter) -> Tensor:
        move, own = self.moves.get(id(parameter)), parameter.data
        if move is not None:
            return move(own)
        return own.float() if own.is_floating_point() else own

    def _rows_of(self, module: nn.Embedding) -> Callable[[Tensor], Tensor]:
        """An embedding's forward that widens the rows that it gives out, not the table."""

        own: Any = module.weight

        def forward(ids: Tensor) -> Tensor:
            if id(own) in self.moves:
                self._take([own])
                try:
                    return type(module).forward(module, ids)
                finally:
                    self._give_back([own])
            rows = functional.embedding(ids, own).float()
            scale = getattr(module, "embed_scale", None)
            if scale is None:
                return rows
            return rows * (scale.to(rows) if isinstance(scale, Tensor) else scale)

        return forward


def _known(module: nn.Embedding) -> bool:
    """Whether an embedding gives out rows of its table, times a scale where it has one."""
    plain = type(module) is nn.Embedding and module.max_norm is None
    return (plain or hasattr(module, "embed_scale")) and "forward" not in module.__dict__


_RUNNING: WeakKeyDictionary[nn.Module, _Widened] = WeakKeyDictionary()
