"""Sites: where in a model an activation lives, and how to read it there.

Components (METHODS names): `resid_pre` and `resid_post` are the residual stream entering and leaving
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

import torch
from torch import Tensor, nn

from engine.errors import ModelError, SiteError
from engine.families import FAMILIES, Family, family_of

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
RECORDABLE = ("resid", "resid_pre", "resid_post", "attn_out", "mlp_out", "head_z")
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


@dataclass(frozen=True)
class LayerTaps:
    """The parts of one block, found by the family's entry.

    `attn_contribution` (`mlp_contribution`) is the module whose output times `multiplier` is added to
    the residual stream: the sub-block itself, or the post-norm behind it.
    `input_norm`/`mlp_norm` are None where the sub-block reads the raw stream.
    """

    index: int
    family: Family
    block: nn.Module
    attn: nn.Module
    o_proj: nn.Module
    mlp: nn.Module
    attn_contribution: nn.Module
    mlp_contribution: nn.Module
    multiplier: float
    parallel: bool
    attn_post_norm: bool
    mlp_post_norm: bool
    input_norm: nn.Module | None
    mlp_norm: nn.Module | None
    q_norm: nn.Module | None
    k_norm: nn.Module | None
    n_heads: int
    n_kv_heads: int
    head_dim: int

    def w_o(self) -> Tensor:
        """Output projection per head, float32 (h, d_h, d): z_h @ w_o()[h] is head h's part of attn's output."""
        weight = _out_in(self.o_proj, self.family.transposed)
        return weight.T.reshape(self.n_heads, self.head_dim, -1)

    def o_bias(self) -> Tensor | None:
        """Bias of the output projection, float32 (d,), or None."""
        return _bias(self.o_proj)

    def w_q(self) -> Tensor:
        """Query projection, float32 (h, d_h, d)."""
        return self._qkv()[0]

    def w_k(self) -> Tensor:
        """Key projection, float32 (g, d_h, d) with g key/value heads."""
        return self._qkv()[1]

    def w_v(self) -> Tensor:
        """Value projection, float32 (g, d_h, d)."""
        return self._qkv()[2]

    def qkv_bias(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Biases of q, k and v, float32 (h, d_h), (g, d_h), (g, d_h), or None each."""
        modules = [getattr(self.attn, name) for name in self.family.qkv_names]
        biases = [_bias(module) for module in modules]
        if self.family.qkv == "separate":
            parts = [None if b is None else b.reshape(-1, self.head_dim) for b in biases]
            return parts[0], parts[1], parts[2]
        if biases[0] is None:
            return None, None, None
        q, k, v = self._split(biases[0][:, None])
        return q[..., 0], k[..., 0], v[..., 0]

    def _qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        weights = [_out_in(getattr(self.attn, n), self.family.transposed) for n in self.family.qkv_names]
        if self.family.qkv == "separate":
            q, k, v = (w.reshape(-1, self.head_dim, w.shape[-1]) for w in weights)
            return q, k, v
        return self._split(weights[0])

    def _split(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits a fused (out, in) projection into per-head q (h,d_h,in), k and v (g,d_h,in)."""
        if self.family.qkv == "interleaved":
            per_head = fused.reshape(self.n_heads, 3, self.head_dim, fused.shape[-1])
            return per_head[:, 0], per_head[:, 1], per_head[:, 2]
        sizes = [n * self.head_dim for n in (self.n_heads, self.n_kv_heads, self.n_kv_heads)]
        q, k, v = (part.reshape(-1, self.head_dim, fused.shape[-1]) for part in fused.split(sizes))
        return q, k, v


@dataclass(frozen=True)
class ModelTaps:
    """The parts of one model: widths, blocks, embedding, final norm and unembedding."""

    family: Family
    model: nn.Module
    d: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    layers: tuple[LayerTaps, ...]
    embed: nn.Module
    final_norm: nn.Module
    unembedding: nn.Module
    logit_scale: float
    logit_softcap: float | None
    tied: bool

    @property
    def z_width(self) -> int:
        """Width of head_z over all heads, h x d_h (which is not d in every family)."""
        return self.n_heads * self.head_dim

    def logits(self, normed: Tensor) -> Tensor:
        """The model's logits from the stream *after* the final norm, with its scale and soft-cap.

        (..., d) -> (..., V), in the unembedding's dtype.
        """
        logits = self.unembedding(normed)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.logit_softcap is not None:
            logits = torch.tanh(logits / self.logit_softcap) * self.logit_softcap
        return logits

    def gain(self, norm: nn.Module | None) -> Tensor:
        """The factor a norm applies per dimension, float32; ones for a norm without weights or None."""
        weight = None if norm is None else getattr(norm, "weight", None)
        if weight is None:
            return torch.ones(self.d)
        return weight.detach().float() + self.family.norm_offset

    def norm_bias(self, norm: nn.Module | None) -> Tensor | None:
        """The offset a norm adds per dimension, float32, or None."""
        return None if norm is None else _bias(norm)


def taps(model: nn.Module) -> ModelTaps:
    """Finds the parts of a Hugging Face causal language model.

    Raises:
        ModelError: the family is unknown (the message lists the known ones), or a part that its entry
            names is not there.
    """
    config: Any = model.config
    family = family_of(str(config.model_type))
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    decoder = _part(model, family.decoder, family)
    blocks = _part(decoder, family.blocks, family)
    heads = int(text.num_attention_heads)
    kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    layers = tuple(
        _layer(i, block, family, text, (heads, kv_heads, head_dim)) for i, block in enumerate(blocks)
    )
    embed = _part(decoder, family.embed, family)
    unembedding = model.get_output_embeddings()
    if unembedding is None:
        raise ModelError(
            f"{type(model).__name__} has no unembedding.",
            expected="a causal language model (…ForCausalLM)",
            given=type(model).__name__,
            next_step="load the model with AutoModelForCausalLM.",
        )
    softcap = getattr(text, "final_logit_softcapping", None)
    return ModelTaps(
        family=family,
        model=model,
        d=int(text.hidden_size),
        n_layers=len(layers),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=int(unembedding.weight.shape[0]),
        layers=layers,
        embed=embed,
        final_norm=_part(decoder, family.final_norm, family),
        unembedding=unembedding,
        logit_scale=_logit_scale(family, text),
        logit_softcap=None if softcap is None else float(softcap),
        tied=unembedding.weight is embed.weight,
    )


def _layer(index: int, block: nn.Module, family: Family, text: Any, sizes: tuple[int, int, int]) -> LayerTaps:
    attn, mlp = _part(block, family.attn, family), _part(block, family.mlp, family)
    attn_post = _part(block, family.attn_post_norm, family) if family.attn_post_norm else None
    mlp_post = _part(block, family.mlp_post_norm, family) if family.mlp_post_norm else None
    parallel = family.parallel
    q_norm = getattr(attn, "q_norm", None) or getattr(attn, "q_layernorm", None)
    k_norm = getattr(attn, "k_norm", None) or getattr(attn, "k_layernorm", None)
    return LayerTaps(
        index=index,
        family=family,
        block=block,
        attn=attn,
        o_proj=_part(attn, family.o_proj, family),
        mlp=mlp,
        attn_contribution=attn_post or attn,
        mlp_contribution=mlp_post or mlp,
        multiplier=float(getattr(block, family.multiplier)) if family.multiplier else 1.0,
        parallel=bool(getattr(text, parallel)) if isinstance(parallel, str) else parallel,
        attn_post_norm=attn_post is not None,
        mlp_post_norm=mlp_post is not None,
        input_norm=_part(block, family.input_norm, family) if family.input_norm else None,
        mlp_norm=_part(block, family.mlp_norm, family) if family.mlp_norm else None,
        q_norm=q_norm,
        k_norm=k_norm,
        n_heads=sizes[0],
        n_kv_heads=sizes[1],
        head_dim=sizes[2],
    )


def _part(root: nn.Module, path: str, family: Family) -> Any:
    """Follows a dotted path; a missing attribute is a ModelError naming it."""
    here: Any = root
    for name in path.split("."):
        if not hasattr(here, name):
            raise ModelError(
                f"This {family.name} model has no {path!r} in its {type(root).__name__}.",
                expected=f"the module names of the {family.name} family",
                given=", ".join(child for child, _ in here.named_children()) or type(here).__name__,
                next_step="use a checkpoint in the family's standard architecture, without adapters around it.",
            )
        here = getattr(here, name)
    return here


def _logit_scale(family: Family, text: Any) -> float:
    if family.logit_scale is None:
        return 1.0
    if family.logit_scale.startswith("/"):
        return 1.0 / float(getattr(text, family.logit_scale[1:]))
    return float(getattr(text, family.logit_scale))


def _out_in(module: nn.Module, transposed: bool) -> Tensor:
    """A projection's weight as float32 (out, in)."""
    weight: Any = module.weight
    weight = weight.detach().float()
    return weight.T if transposed else weight


def _bias(module: nn.Module) -> Tensor | None:
    bias: Any = getattr(module, "bias", None)
    return bias.detach().float() if isinstance(bias, Tensor) else None


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
            "resid_post", "attn_out", "mlp_out", "head_z" (under (component, block)).
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
            _install(model, component, chosen, keep, out, handles)
        yield out
    finally:
        for handle in handles:
            handle.remove()


def _same(value: Tensor) -> Tensor:
    return value


def _install(
    model: ModelTaps,
    component: str,
    chosen: Sequence[int],
    keep: Callable[[Tensor], Tensor],
    out: Recording,
    handles: list[Any],
) -> None:
    if component not in RECORDABLE:
        raise SiteError(
            f"{component!r} cannot be recorded.",
            expected="one of " + ", ".join(RECORDABLE),
            given=repr(component),
        )
    if component == "resid":
        for state in states_of([Site("resid_pre", layer).check(model).layer for layer in chosen]):
            at_end = state == model.n_layers
            block = model.layers[state - at_end].block
            handles.append(_hook(block, ("resid", state), keep, out, 1.0, before=not at_end))
        return
    for index in chosen:
        Site(component, index).check(model)
        layer = model.layers[index]
        module, factor = {
            "resid_pre": (layer.block, 1.0),
            "resid_post": (layer.block, 1.0),
            "attn_out": (layer.attn_contribution, layer.multiplier),
            "mlp_out": (layer.mlp_contribution, layer.multiplier),
            "head_z": (layer.o_proj, 1.0),
        }[component]
        before = component in ("resid_pre", "head_z")
        handles.append(_hook(module, (component, index), keep, out, factor, before))


def _hook(
    module: nn.Module,
    key: tuple[str, int],
    keep: Callable[[Tensor], Tensor],
    out: Recording,
    factor: float,
    before: bool,
) -> Any:
    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        out[key] = keep(first_tensor(args) if args else first_tensor(kwargs["hidden_states"]))

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        kept = keep(first_tensor(output))
        out[key] = kept if factor == 1.0 else kept * factor

    if before:
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(on_output)
