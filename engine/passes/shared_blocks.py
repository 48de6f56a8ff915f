"""Leading blocks that several conditions of a prompt share: run once, then stood in for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from engine.models.sites import Site, first_tensor, replace_first
from engine.models.taps import ModelTaps


def select_rows(cache: Any, rows: Tensor, slots: int | None = None) -> None:
    """Only these rows of a transformers cache go on, in this order; a row may come more than once.

    Args:
        slots: how many leading blocks it is about; None for all.
    """
    for layer in cache.layers[:slots]:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(rows)  # type: ignore[arg-type]
        else:
            layer.batch_select_indices(rows)


def unreached(n_layers: int, sites: Sequence[Site]) -> int:
    """How many leading blocks come out the same under edits at these sites.

    An edit of what leaves a block does not reach the block itself.
    """
    return min((site.layer + (site.component == "resid_post") for site in sites), default=n_layers)


@dataclass
class SharedBlocks:
    """What the first `count` blocks made of some rows.

    Attributes:
        output: what the last of them returned, a template with (B, T, d) states in it.
        slots: blocks of the model up to the last of them, those that don't run included.
        cache: the transformers cache with keys and values of all blocks; the first `slots` are used. None
            where there is none.
    """

    count: int
    output: Any = None
    slots: int = 0
    cache: Any = None

    def select(self, rows: Tensor) -> None:
        """Only these rows, in this order; a row may come more than once."""
        states = first_tensor(self.output)
        self.output = replace_first(self.output, states[rows.to(states.device)])
        select_rows(self.cache, rows, self.slots)

    @contextmanager
    def standing_in(self, taps: ModelTaps, cache: Any = None) -> Iterator[None]:
        """Inside the block the first blocks don't run; the last of them returns the states kept.

        Hooks on them are called as ever. Afterwards their keys and values are in `cache`, which the other
        blocks have filled.
        """
        blocks = [layer.block for layer in taps.layers[: self.count]]

        def through(*args: Any, **kwargs: Any) -> Any:
            return replace_first(self.output, args[0] if args else kwargs["hidden_states"])

        try:
            for block in blocks:
                block.__dict__["forward"] = through
            for block in blocks[-1:]:
                block.__dict__["forward"] = lambda *_args, **_kwargs: self.output
            yield
            if cache is not None:
                cache.layers[: self.slots] = self.cache.layers[: self.slots]
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)


class _Reached(Exception):
    """The last block that is wanted has run."""


@contextmanager
def watched(taps: ModelTaps, count: int) -> Iterator[SharedBlocks]:
    """Keeps what the first `count` blocks return in a forward pass run inside the block, which ends there:
    what comes above doesn't run."""
    found = SharedBlocks(count, slots=taps.layers[count - 1].slot + 1)

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        found.output = output
        raise _Reached

    handle = taps.layers[count - 1].block.register_forward_hook(after)
    try:
        with suppress(_Reached):
            yield found
    finally:
        handle.remove()
