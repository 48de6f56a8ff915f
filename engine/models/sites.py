"""Sites: where in a model an activation lives, and how to read it there.

Components: `resid_pre` and `resid_post` are the residual stream entering and leaving
block l; `attn_out` and `mlp_out` are what the sub-block *adds* to the stream (after a post-norm and
after a residual multiplier where the family has one); `head_z` is every head's value mix before the
output projection, concatenated; `head_out` is one head's contribution z_h W_O^h to the stream, which
exists only where no post-norm intervenes. The stream is one sequence of L+1 states: state s is
`resid_pre(s)` and `resid_post(s-1)`, and is recorded under the name "resid".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from engine.errors import SiteError
from engine.models.families import FAMILIES
from engine.models.family import Family
from engine.models.taps import LayerTaps, ModelTaps, taps

__all__ = [
    "COMPONENTS",
    "FAMILIES",
    "Family",
    "LayerTaps",
    "ModelTaps",
    "Recording",
    "Site",
    "first_tensor",
    "record",
    "replace_first",
    "states_of",
    "taps",
]

COMPONENTS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out")
RECORDABLE = ("resid", "resid_pre", "resid_post", "attn_out", "mlp_in", "mlp_out", "head_z")
_SITE = re.compile(r"(?P<component>[a-z_]+)@(?P<layer>\d+)(?::(?P<heads>\d+(?:,\d+)*))?")

Recording = dict[tuple[str, int], Tensor]
"""What `record` fills: (component, layer or state index) -> tensor (batch, token, width)."""


@dataclass(frozen=True)
class Site:
    """One place in a model: component, absolute block index, and for head components the heads.

    `heads=None` means all heads. `str(site)` gives "head_z@3:0,2"; `Site.parse` reads it back.
    """

    component: str
    layer: int
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.component not in COMPONENTS:
            raise SiteError(
                f"There is no component {self.component!r}.",
                expected="one of " + ", ".join(COMPONENTS),
                given=repr(self.component),
            )
        if self.layer < 0:
            raise SiteError("A layer is an absolute block index.", expected="0 or more", given=self.layer)
        if self.heads is None:
            return
        if not self.component.startswith("head"):
            raise SiteError(
                f"{self.component} has no heads.",
                expected="heads only with head_z or head_out",
                given=f"heads {self.heads}",
            )
        heads = tuple(int(h) for h in self.heads)
        if not heads or len(set(heads)) != len(heads) or min(heads) < 0:
            raise SiteError(
                "The heads of a site must be distinct indices.",
                expected="at least one, each once, 0 or more",
                given=heads,
            )
        object.__setattr__(self, "heads", tuple(sorted(heads)))

    def __str__(self) -> str:
        heads = "" if self.heads is None else ":" + ",".join(map(str, self.heads))
        return f"{self.component}@{self.layer}{heads}"

    @staticmethod
    def parse(text: str) -> Site:
        """Reads "resid_post@4" or "head_z@3:0,2"; raises SiteError on anything else."""
        match = _SITE.fullmatch(text.strip())
        if match is None:
            raise SiteError(
                "A site could not be read.",
                expected="component@layer or component@layer:head,head (e.g. head_z@3:0,2)",
                given=repr(text),
            )
        heads = match["heads"]
        return Site(
            match["component"],
            int(match["layer"]),
            None if heads is None else tuple(int(h) for h in heads.split(",")),
        )

    def check(self, model: ModelTaps) -> Site:
        """Returns itself, or raises SiteError when the model has no such site."""
        if self.layer >= model.n_layers:
            raise SiteError(
                f"Layer {self.layer} is out of range.",
                expected=f"0 to {model.n_layers - 1}",
                given=self.layer,
                next_step="choose a block of this model.",
            )
        if self.heads is not None and self.heads[-1] >= model.n_heads:
            raise SiteError(
                f"Head {self.heads[-1]} is out of range.",
                expected=f"0 to {model.n_heads - 1}",
                given=self.heads,
            )
        if self.component.startswith("head") and not model.layers[self.layer].has_heads:
            raise SiteError(
                f"Block {self.layer} has no heads: it mixes tokens by a recurrent state.",
                expected="attn_out, or a block with attention: "
                + ", ".join(str(layer.index) for layer in model.layers if layer.has_heads),
                given=f"{self} in a {model.family.name} model",
            )
        if self.component == "head_out" and model.layers[self.layer].attn_post_norm:
            raise SiteError(
                "head_out does not exist here: a norm after the attention mixes the heads' contributions.",
                expected="head_z or attn_out for this family",
                given=f"{self} in a {model.family.name} model",
            )
        return self

    def width(self, model: ModelTaps) -> int:
        """Numbers per token at this site: d, or (number of heads) x d_h for head_z."""
        if self.component != "head_z":
            return model.d
        return model.head_dim * (model.n_heads if self.heads is None else len(self.heads))


def first_tensor(output: Any) -> Tensor:
    """The tensor a module returned, alone or first in a tuple or list."""
    value = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(value, Tensor):
        raise SiteError("A module returned no tensor.", expected="a tensor, or one first", given=type(value))
    return value


def replace_first(output: Any, value: Tensor) -> Any:
    """`output` with its (first) tensor replaced by `value`, in the same wrapping."""
    if isinstance(output, tuple):
        return (value, *output[1:])
    if isinstance(output, list):
        return [value, *output[1:]]
    return value


def states_of(layers: Sequence[int]) -> tuple[int, ...]:
    """The residual states around the given blocks: the sorted union of l and l+1."""
    return tuple(sorted({state for layer in layers for state in (layer, layer + 1)}))


@contextmanager
def record(
    model: ModelTaps,
    components: Sequence[str] = ("resid", "attn_out", "mlp_out", "head_z"),
    layers: Sequence[int] | None = None,
    select: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Recording]:
    """Records activations of every forward pass run inside the `with` block; removes its hooks after.

    Args:
        components: "resid" (states l and l+1 of every asked block, under ("resid", state)), "resid_pre",
            "resid_post", "attn_out", "mlp_in" (what the MLP receives, after its norm), "mlp_out", "head_z"
            (under (component, block); none of "head_z" for blocks without heads).
        layers: block indices; None for all.
        select: applied to each (batch, token, width) tensor inside its hook, so that only wanted positions
            are kept; without it the model's own tensors are handed out, not copies. For what is recorded
            only blocks decide: the model runs exactly as it would without hooks.

    Yields:
        the recording; a second forward pass overwrites the first one's entries.
    """
    chosen = range(model.n_layers) if layers is None else sorted(set(layers))
    out: Recording = {}
    keep = select if select is not None else _same
    handles: list[Any] = []
    try:
        for component in components:
            for hook in _hooks(model, component, chosen):
                handles.append(hook.install(keep, out))
        yield out
    finally:
        for handle in handles:
            handle.remove()


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class _Hook:
    """Where one recorded tensor is taken: a module's input or output, times a factor."""

    module: nn.Module
    key: tuple[str, int]
    before: bool
    factor: float = 1.0
    in_place: bool = False

    def install(self, keep: Callable[[Tensor], Tensor], out: Recording) -> Any:
        key, factor = self.key, self.factor

        def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            out[key] = keep(first_tensor(args) if args else first_tensor(kwargs["hidden_states"]))

        def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
            value = first_tensor(output)
            kept = keep(value.clone() if self.in_place else value)
            out[key] = kept if factor == 1.0 else kept * factor

        if self.before:
            return self.module.register_forward_pre_hook(on_input, with_kwargs=True)
        return self.module.register_forward_hook(on_output)


def _hooks(model: ModelTaps, component: str, chosen: Sequence[int]) -> Iterator[_Hook]:
    if component not in RECORDABLE:
        raise SiteError(
            f"{component!r} cannot be recorded.",
            expected="one of " + ", ".join(RECORDABLE),
            given=repr(component),
        )
    for index in chosen:
        Site("resid_pre", index).check(model)
    if component == "resid":
        for state in states_of(chosen):
            at_end = state == model.n_layers
            yield _Hook(model.layers[state - at_end].block, (component, state), before=not at_end)
        return
    for layer in (model.layers[index] for index in chosen):
        key = (component, layer.index)
        if component == "head_z" and not layer.has_heads:
            continue
        in_place = layer.family.in_place
        yield {
            "resid_pre": _Hook(layer.block, key, before=True),
            "resid_post": _Hook(layer.block, key, before=False),
            "attn_out": _Hook(layer.attn_contribution, key, before=False, factor=layer.multiplier),
            "mlp_in": _Hook(layer.mlp, key, before=True),
            "mlp_out": _Hook(layer.mlp_contribution, key, False, layer.multiplier, in_place),
            "head_z": _Hook(layer.o_proj, key, before=True),
        }[component]
