"""The parts of a Hugging Face model, found through its family's entry: blocks, projections, norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.families import Family, family_of


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
        """Output projection per head, float32 (h, d_h, d): z_h @ w_o()[h] is head h's part."""
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
        q, k, v = self.split_qkv(biases[0][:, None])
        return q[..., 0], k[..., 0], v[..., 0]

    def _qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        weights = [_out_in(getattr(self.attn, n), self.family.transposed) for n in self.family.qkv_names]
        if self.family.qkv == "separate":
            q, k, v = (w.reshape(-1, self.head_dim, w.shape[-1]) for w in weights)
            return q, k, v
        return self.split_qkv(weights[0])

    def split_qkv(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits a fused (out, in) projection into per-head q (h,d_h,in), k and v (g,d_h,in)."""
        rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        if fused.shape[0] != rows:
            raise ModelError(
                f"The fused query-key-value projection of this {self.family.name} model has another shape.",
                expected=f"{rows} rows for {self.n_heads} + 2 x {self.n_kv_heads} heads of {self.head_dim}",
                given=fused.shape[0],
                next_step="use a checkpoint in the family's standard form, or correct engine/families.py.",
            )
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
    def decoder(self) -> nn.Module:
        """The part that maps token ids to the stream after the final norm: everything but the unembedding."""
        return self.model.get_submodule(self.family.decoder)

    @property
    def max_length(self) -> int:
        """The longest prompt in tokens that the model's positions reach."""
        config: Any = self.model.config
        text = config.get_text_config()
        return int(getattr(text, "max_position_embeddings", None) or 2**31 - 1)

    @property
    def z_width(self) -> int:
        """Width of head_z over all heads, h x d_h (which is not d in every family)."""
        return self.n_heads * self.head_dim

    def logits(self, normed: Tensor) -> Tensor:
        """The model's logits from the stream *after* the final norm, with its scale and soft-cap.

        (..., d) -> (..., V), in the unembedding's dtype.
        """
        logits: Tensor = self.unembedding(normed)
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
    causal: Any = model
    unembedding = causal.get_output_embeddings()
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
                next_step="use a checkpoint in the family's standard architecture, adapters merged.",
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
