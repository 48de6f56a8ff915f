"""Linear layers with weights packed for oneDNN, used where a measurement says they win.

On some CPUs the library behind `torch.nn.functional.linear` runs far below the machine's speed and oneDNN's
packed kernels don't; on others packing gains nothing. So nothing is decided by a processor's name: once per
process, dtype and thread count both are timed on one product, results compared, and the packed form is chosen
if it is faster by `MARGIN` and equal within rounding.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.passes.wide import slow

MARGIN = 1.15
"""A packed product must be this much faster: below that the copy of the weights isn't worth its memory."""
MEMORY_SHARE = 0.25
"""Packed copies may take at most this share of the memory that is free when they are made."""
ROWS = 512
"""Rows of the measured product, and the row count that weights are packed for."""

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measurement:
    """Seconds of one (512 x 512) @ (512 x 1024) product both ways, and how far the results differ.

    `difference` is max |packed - native| / max |native|.
    """

    native: float
    packed: float
    difference: float

    def packed_wins(self, dtype: torch.dtype) -> bool:
        """Whether the packed form is worth it: faster by MARGIN and equal up to the dtype's rounding."""
        limit = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        return self.difference <= limit and self.native > MARGIN * self.packed


_measured: dict[tuple[torch.dtype, int], Measurement | None] = {}
_measuring = threading.Lock()


def packed_product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """x -> x @ weight.T + bias with `weight` (out, in) copied into oneDNN's blocked layout.

    Raises RuntimeError where this build of torch has no oneDNN for the dtype.
    """
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight.detach().contiguous(), ROWS)

    def product(x: Tensor) -> Tensor:
        out: Tensor = ops._linear_pointwise(x, packed, bias, "none", [], "")
        return out

    return product


def measure(dtype: torch.dtype, repeats: int = 5) -> Measurement | None:
    """Times both products once per process, dtype and thread count; None where oneDNN can't do it."""
    key = (dtype, torch.get_num_threads())
    with _measuring:
        if key not in _measured:
            try:
                _measured[key] = _measure(dtype, repeats)
            except (RuntimeError, AttributeError, NotImplementedError):
                _measured[key] = None
        return _measured[key]


def _measure(dtype: torch.dtype, repeats: int) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 512, generator=generator).to(dtype)
    weight = torch.randn(1024, 512, generator=generator).to(dtype)
    product = packed_product(weight)
    native, packed = functional.linear(x, weight), product(x)
    difference = float((packed.float() - native.float()).abs().max() / native.float().abs().max())
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for seconds, call in zip(
            times, (lambda: functional.linear(x, weight), lambda: product(x)), strict=True
        ):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return Measurement(min(times[0]), min(times[1]), difference)


def packing_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether packed linears are faster here: never off the CPU nor in a dtype that
    `engine.passes.wide` widens, else as measured."""
    if device.type != "cpu" or slow(dtype, device):
        return False
    measurement = measure(dtype)
    return measurement is not None and measurement.packed_wins(dtype)


class PackedLinears:
    """Packed copies of a model's linear layers, lent to it for the length of a `with` block.

    The model's own weights are never touched: while lent, a layer's `forward` is an attribute of the
    instance, and it is removed afterwards. Layers are packed on first use; those that would exceed the memory
    share are left alone.

    Args:
        most: bytes of all copies, None for the memory share alone.
    """

    def __init__(self, enabled: bool, most: int | None = None) -> None:
        self.enabled = enabled
        self.room = int(MEMORY_SHARE * psutil.virtual_memory().available) if enabled else 0
        self.room = self.room if most is None else min(self.room, most)
        self._products: dict[int, Product | None] = {}

    def product(self, weight: Tensor, bias: Tensor | None) -> Product | None:
        """A packed product, or None when disabled, out of room or impossible for this weight."""
        size = weight.numel() * weight.element_size()
        if not self.enabled or size > self.room or weight.device.type != "cpu":
            return None
        try:
            product = packed_product(weight, bias)
        except RuntimeError:
            return None
        self.room -= size
        return product

    @contextmanager
    def lent_to(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Inside the block the linear layers below `modules` run packed."""
        lent: list[nn.Module] = []
        try:
            for module in modules if self.enabled else ():
                for layer in module.modules():
                    product = self._of(layer)
                    if product is not None:
                        layer.__dict__["forward"] = product
                        lent.append(layer)
            yield
        finally:
            for layer in lent:
                del layer.__dict__["forward"]

    def _of(self, layer: nn.Module) -> Product | None:
        if type(layer) not in (nn.Linear, Conv1D) or "forward" in layer.__dict__:
            return None
        if id(layer) not in self._products:
            weight: Any = layer.weight
            bias: Any = layer.bias
            self._products[id(layer)] = self.product(weight.T if type(layer) is Conv1D else weight, bias)
        return self._products[id(layer)]
