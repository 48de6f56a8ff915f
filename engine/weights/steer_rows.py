"""Weight shifts of which every row of a batch has its own: one forward pass at all amplitudes.

    rows = RowShifts(lm, [(None, 0.0), (shift, 0.5), (shift, 1.0)])
    with rows.on(torch.tensor([0, 1, 2])):  # row -> its condition
        ...  # a forward pass over three rows

A module's own product runs once for the whole batch; each row gets α·ΔW x of its own condition beside it.
Factors of all shifts are stacked, x is brought down once for all of them, and a row's α stands between the
two factors, 0 for shifts that aren't its own. A row without a shift is what it would be without any, bit by
bit. A dense difference costs a second product, or, on CPUs that compute in float32 and where a condition has
`MERGED` tokens, one with W + αΔW, made in float32 for the length of the product.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.models.loading import LoadedModel
from engine.passes.wide import MOST_NUMBERS, slow
from engine.weights.steer import Values, WeightShift, in_this_thread, is_norm, shifted_norm

__all__ = ["Condition", "RowShifts", "by_rows"]

Condition = tuple[WeightShift | None, float]
"""A shift and its amplitude; None is the model as it is."""

MERGED = 96
"""Tokens of one condition from which on W + αΔW is made: it costs what some eighty tokens' product does."""


def by_rows(lm: LoadedModel, shifts: Sequence[WeightShift]) -> bool:
    """Whether rows of a batch can have shifts of their own: every block has heads, and each shifted module is
    given the batch as it stands, not tokens picked out of it. Of the model's own forward pass of two rows."""
    modules = {module for shift in shifts for module in shift.plan}
    if any(shift.moved for shift in shifts) or not all(layer.has_heads for layer in lm.taps.layers):
        return False
    fits: list[bool] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        embeds = isinstance(module, nn.Embedding)
        fits.append(given.shape[0] == 2 and given.ndim >= (2 if embeds else 3))

    with ExitStack() as stack:
        for module in modules:
            handle = module.register_forward_pre_hook(look, with_kwargs=True)
            stack.callback(handle.remove)
        with lm.lock, torch.inference_mode():
            ids = torch.zeros(2, 3, dtype=torch.long, device=lm.device)
            places = torch.arange(3, device=lm.device).expand(2, 3)
            lm.taps.decoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=places, use_cache=False
            )
    return all(fits)


class RowShifts:
    """Conditions that rows of one batch can be under, ready to be put on. `by_rows` says whether they can.

    Attributes:
        conditions: shifts and amplitudes. first_block: blocks below it compute the same under all of them.
    """

    def __init__(self, lm: LoadedModel, conditions: Sequence[Condition]) -> None:
        self.lm, self.conditions = lm, tuple(conditions)
        self.first_block = lm.taps.n_layers
        shifts = list(dict.fromkeys(shift for shift, _ in self.conditions if shift is not None))
        amplitudes = [
            torch.tensor([alpha if own is shift else 0.0 for own, alpha in self.conditions], device=lm.device)
            for shift in shifts
        ]
        self._parts: dict[nn.Module, list[tuple[Tensor, dict[str, Values]]]] = {}
        for shift, alphas in zip(shifts, amplitudes, strict=True):
            for module, values in shift.plan.items():
                self._parts.setdefault(module, []).append((alphas, values))
        self._sums = {m: _Sum(m, parts) for m, parts in self._parts.items() if not is_norm(m)}
        last = {lm.taps.final_norm, lm.taps.unembedding}
        blocks = {m: i for i, layer in enumerate(lm.taps.layers) for m in layer.block.modules()}
        for module in self._parts:
            self.first_block = min(self.first_block, blocks.get(module, lm.taps.n_layers * (module in last)))

    @contextmanager
    def on(self, rows: Tensor) -> Iterator[None]:
        """Inside the block, and in this thread only, the first axis of what modules are given are these rows.

        Args:
            rows: (B,) number of each row's condition; below 0 is the model as it is.
        """
        with ExitStack() as stack:
            steered = [n for n in rows.unique().tolist() if n >= 0 and self.conditions[n][1] != 0.0]
            for module, parts in self._parts.items() if steered else ():
                if is_norm(module):
                    hook = _norm_hook(module, parts, rows, steered)
                elif self._sums[module].merges():
                    stack.enter_context(self._sums[module].merging(rows))
                    continue
                else:
                    hook = self._sums[module].hook(rows)
                handle = module.register_forward_hook(in_this_thread(hook), with_kwargs=True)
                stack.callback(handle.remove)
            yield


def _norm_hook(
    module: nn.Module, parts: list[tuple[Tensor, dict[str, Values]]], rows: Tensor, steered: list[int]
) -> Any:
    """Each condition's rows through the norm with its shifted gains."""

    def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        found = output.clone()
        for number in steered:
            at = torch.nonzero(rows == number)[:, 0].to(output.device)
            for alphas, values in parts:
                alpha = float(alphas[number])
                if alpha != 0.0:
                    own = shifted_norm(module, values, alpha)
                    some = [_at(value, at, len(rows)) for value in args]
                    more = {name: _at(value, at, len(rows)) for name, value in kwargs.items()}
                    found[at] = own.forward(*some, **more)
        return found

    return run


def _at(value: Any, rows: Tensor, count: int) -> Any:
    whole = isinstance(value, Tensor) and value.ndim > 1 and value.shape[0] == count
    return value[rows] if whole else value


class _Sum:
    """What differences add to the output of a projection or an embedding, row by row."""

    def __init__(self, module: nn.Module, parts: list[tuple[Tensor, dict[str, Values]]]) -> None:
        self.module = module
        self.transposed = isinstance(module, Conv1D)
        embeds = isinstance(module, nn.Embedding)
        weights = [(alphas, values["weight"]) for alphas, values in parts if "weight" in values]
        factored = [(a, v) for a, v in weights if v.dense is None and not embeds]
        self.apart = [(a, v) for a, v in weights if v.dense is not None or embeds]
        self.down: Tensor | None = None
        self.up: Tensor | None = None
        self.between: Tensor | None = None
        self.bias: Tensor | None = None
        if factored:
            pairs = [_factors(values, self.transposed) for _, values in factored]
            self.down = torch.cat([down for down, _ in pairs])
            self.up = torch.cat([up for _, up in pairs], dim=1)
            wide = [
                a[:, None].expand(-1, len(down)) for (a, _), (down, _) in zip(factored, pairs, strict=True)
            ]
            self.between = torch.cat(wide, dim=1).to(self.down.device)
        for alphas, values in parts:
            if "bias" in values:
                bias = values["bias"].whole().float()
                own = alphas.to(bias.device)[:, None] * bias
                self.bias = own if self.bias is None else self.bias + own

    def hook(self, rows: Tensor) -> Any:
        """Adds each row's part to the output."""

        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            given = args[0] if args else next(iter(kwargs.values()))
            own = rows.to(output.device)
            total = self._factored(own, given, output)
            for alphas, value in self.apart:
                of = _spread(alphas.to(own.device), own, output.ndim)
                at = torch.nonzero(of.flatten())[:, 0]
                if len(at):
                    total = total.float() if total is not output else output.float().clone()
                    total[at] += of[at] * self._term(value, given[at]).float()
            return total.to(output.dtype)

        return add

    def _factored(self, rows: Tensor, given: Tensor, output: Tensor) -> Tensor:
        total = output
        if self.down is not None and self.up is not None and self.between is not None:
            low = functional.linear(given.to(self.down.dtype), self.down)
            total = total + functional.linear(low * _spread(self.between, rows, given.ndim), self.up)
        if self.bias is not None:
            total = total + _spread(self.bias.to(rows.device), rows, output.ndim)
        return total

    def _term(self, value: Values, given: Tensor) -> Tensor:
        if isinstance(self.module, nn.Embedding):
            return value.rows(given) * getattr(self.module, "embed_scale", 1.0)
        return value.times(given, self.transposed)

    def merges(self) -> bool:
        """Whether W + αΔW may be made here: dense differences of a plain projection, products in float32."""
        weight: Any = self.module.weight
        wide = weight.dtype == torch.float32 or slow(weight.dtype, weight.device)
        plain = type(self.module) in (nn.Linear, Conv1D)
        return plain and bool(self.apart) and weight.device.type == "cpu" and wide

    @contextmanager
    def merging(self, rows: Tensor) -> Iterator[None]:
        """Inside the block each condition's rows go through weights of their own, where there are enough."""
        layer: Any = self.module
        own, before = layer.forward, layer.__dict__.get("forward")
        add, owner, conditions = self.hook(rows), threading.get_ident(), rows.unique().tolist()

        def forward(x: Tensor) -> Tensor:
            if threading.get_ident() != owner:
                found: Tensor = own(x)
                return found
            if x.numel() < MERGED * x.shape[-1] * len(conditions):
                steered: Tensor = add(layer, (x,), {}, own(x))
                return steered
            parts = [
                (at := torch.nonzero(rows == n)[:, 0], self._own(n, rows[at], x[at], own)) for n in conditions
            ]
            found = parts[0][1].new_empty(len(x), *parts[0][1].shape[1:])
            for at, part in parts:
                found[at] = part
            return found

        layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            if before is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = before

    def _own(self, number: int, rows: Tensor, x: Tensor, own: Any) -> Tensor:
        """The output of one condition's rows."""
        moves = [(float(a[number]), v) for a, v in self.apart if number >= 0 and float(a[number]) != 0.0]
        layer: Any = self.module
        total = own(x) if not moves else torch.cat(list(_merged(layer, moves, x.float())), dim=-1)
        return self._factored(rows, x, total).to(x.dtype)


def _factors(values: Values, transposed: bool) -> tuple[Tensor, Tensor]:
    """What x is multiplied with first, (rank, in), and then, (out, rank)."""
    assert values.left is not None
    assert values.right is not None
    return (values.left.T, values.right.T) if transposed else (values.right, values.left)


def _merged(layer: Any, moves: list[tuple[float, Values]], x: Tensor) -> Iterator[Tensor]:
    """x (W + αΔW)ᵀ + b in float32, some rows of W after the other."""
    turn = type(layer) is Conv1D
    weight = layer.weight.T if turn else layer.weight
    wholes = [(alpha, value.whole().T if turn else value.whole()) for alpha, value in moves]
    size = max(1, MOST_NUMBERS // weight.shape[1])
    for start in range(0, len(weight), size):
        part = slice(start, start + size)
        made = weight[part].float()
        for alpha, whole in wholes:
            made = torch.add(made, whole[part].float(), alpha=alpha)
        yield functional.linear(x, made, None if layer.bias is None else layer.bias[part].float())


def _spread(table: Tensor, rows: Tensor, ndim: int) -> Tensor:
    """Rows of a table (C, ...) of one row a condition, 0 below condition 0, to go with (B, ..., k)."""
    known = torch.cat([table, torch.zeros_like(table[:1])])[rows]
    return known.reshape(len(rows), *[1] * (ndim - known.ndim), *known.shape[1:])
