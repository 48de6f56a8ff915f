"""Leading blocks that several conditions of a prompt share: run once, then stood in for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.sites import Site, first_tensor, replace_first
from engine.taps import ModelTaps


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
        cache: the transformers cache with keys and values of all blocks; the first `count` are used.
    """

    count: int
    output: Any = None
    cache: Any = None

    def select(self, rows: Tensor) -> None:
        """Only these rows, in this order; a row may come more than once."""
        states = first_tensor(self.output)
        self.output = replace_first(self.output, states[rows.to(states.device)])
        for layer in self.cache.layers[: self.count]:
            layer.batch_select_indices(rows)

    @contextmanager
    def standing_in(self, taps: ModelTaps, cache: Any) -> Iterator[None]:
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
            blocks[-1].__dict__["forward"] = lambda *_args, **_kwargs: self.output
            yield
            cache.layers[: self.count] = self.cache.layers[: self.count]
        finally:
            for block in blocks:
                block.__dict__.pop("forward", None)


@contextmanager
def watched(taps: ModelTaps, count: int) -> Iterator[SharedBlocks]:
    """Keeps what the first `count` blocks return in a forward pass run inside the block."""
    found = SharedBlocks(count)

    def after(_module: nn.Module, _args: Any, output: Any) -> None:
        found.output = output

    handle = taps.layers[count - 1].block.register_forward_hook(after)
    try:
        yield found
    finally:
        handle.remove()
