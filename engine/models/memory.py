"""One rule for memory that runs out: what counts as it, what is freed, and work that goes on in halves."""

from __future__ import annotations

import errno
import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

import torch

from engine.errors import PatchbayError

__all__ = ["Halved", "free", "in_halves", "on_devices", "out_of_memory"]

log = logging.getLogger("patchbay.memory")

Item = TypeVar("Item")
Halved = Callable[[int, int], None]
"""Called as (items that did not fit, items tried next)."""

TEXTS = (
    "out of memory",  # CUDA, MPS, XPU
    "can't allocate memory",  # torch's CPU allocator on Linux and macOS
    "not enough memory",  # the same on Windows
    "cannot allocate memory",  # mmap
    "std::bad_alloc",
    "status_alloc_failed",  # cuBLAS, cuDNN, cuSOLVER
)
"""What allocators say that raise a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator found no room: of a device or of the CPU, torch's, numpy's or Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in text for part in TEXTS)


def free() -> None:
    """Gives back what nothing refers to. Call it when the error is gone: its traceback holds the tensors."""
    gc.collect()
    empty_cache = getattr(torch.get_device_module(), "empty_cache", None)  # a CPU has none
    if empty_cache is not None:
        with suppress(RuntimeError):  # a device that failed at an earlier call says so here again
            empty_cache()


def on_devices() -> tuple[int, int] | None:
    """Bytes in use and bytes there, of the CUDA devices that this process has something on; None without."""
    if not torch.cuda.is_initialized():
        return None
    held = [index for index in range(torch.cuda.device_count()) if torch.cuda.memory_reserved(index)]
    pairs = [torch.cuda.mem_get_info(index) for index in held]
    return (sum(total - free for free, total in pairs), sum(total for _, total in pairs)) if pairs else None


def in_halves(
    plan: Iterable[Sequence[Item]],
    work: Callable[[list[Item]], None],
    refusal: Callable[[Item, Exception], PatchbayError],
    on_halved: Halved | None = None,
) -> Iterator[list[Item]]:
    """Does work batch by batch and yields each batch that is done; memory running out halves a batch.

    The order of the items stays. Nothing runs unless the iterator is used up.

    Args:
        plan: batches, none of them empty.
        work: may be called again with part of a batch on which it failed.
        refusal: what to raise when a single item does not fit.
        on_halved: told of every halving; without it the log is.
    """
    queue = deque(list(batch) for batch in plan)
    while queue:
        batch = queue.popleft()
        if _fits(work, batch, refusal):
            yield batch
            continue
        free()
        middle = len(batch) // 2
        queue.extendleft([batch[middle:], batch[:middle]])
        (on_halved or _log)(len(batch), middle)


def _fits(
    work: Callable[[list[Item]], None],
    batch: list[Item],
    refusal: Callable[[Item, Exception], PatchbayError],
) -> bool:
    try:
        work(batch)
    except Exception as error:
        if not out_of_memory(error):
            raise
        if len(batch) == 1:
            raise refusal(batch[0], error) from error
        return False
    return True


def _log(failed: int, tried: int) -> None:
    log.warning("a batch of %d did not fit into memory, trying %d", failed, tried)
