"""The parts of a Hugging Face model, found through its family's entry: blocks, projections, norms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.models.block_parts import give_parts
from engine.models.families import family_of
from engine.models.family import Family
from engine.models.rotary import reach_of, switch_of
from engine.models.unlisted import candidates
from engine.passes.live import plain_weight


@dataclass(frozen=True)
class LayerTaps:
    """The parts of one block, found by the family's entry.

    `index` counts the blocks that run on text, `slot` all of the model's, as a cache does.

    `attn_contribution` (`mlp_contribution`) is the module whose output times `multiplier` is added to
    the residual stream: the sub-block itself, or the post-norm behind it.
    `input_norm`/`mlp_norm` are None where the sub-block reads the raw stream. Without `has_heads` the block
    mixes tokens by a recurrent state: `attn` is that mixer, `o_proj` its last projection, and there is no z.
    """

    index: int
    slot: int
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
    has_heads: bool

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

    def values(self, normed: Tensor) -> Tensor:
        """Values of all tokens, float32 (b, t, g, d_h), from the stream after `input_norm` (b, t, d)."""
        if self.family.qkv == "latent":
            attn: Any = self.attn
            state = attn.kv_a_layernorm(attn.kv_a_proj_with_mqa(normed)[..., : attn.kv_lora_rank])
            expanded: Tensor = attn.kv_b_proj(state).unflatten(-1, (self.n_heads, -1))
            return expanded[..., -self.head_dim :].float()
        value = torch.einsum("btd,ged->btge", normed.float(), self.w_v().to(normed.device))
        bias = self.qkv_bias()[2]
        return value if bias is None else value + bias.to(value.device)

    def _qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.family.qkv == "latent":
            raise ModelError(
                "The queries, keys and values of this attention are no linear maps of the stream.",
                expected="a family without a norm between the stream and its keys and values",
                given=f"a {self.family.name} model, whose attention keeps a compressed state",
                next_step="leave out what reads query, key and value weights.",
            )
        weights = [_out_in(getattr(self.attn, n), self.family.transposed) for n in self.family.qkv_names]
        if self.family.qkv == "separate":
            q, k, v = (w.reshape(-1, self.head_dim, w.shape[-1]) for w in weights)
            # a gate's rows stand behind the query's in every head
            return q[:: len(q) // self.n_heads], k, v
        return self.split_qkv(weights[0])

    def split_qkv(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits a fused (out, in) projection into per-head q (h,d_h,in), k and v (g,d_h,in)."""
        rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        if fused.shape[0] != rows:
            raise ModelError(
                f"The fused query-key-value projection of this {self.family.name} model has another shape.",
                expected=f"{rows} rows for {self.n_heads} + 2 x {self.n_kv_heads} heads of {self.head_dim}",
                given=fused.shape[0],
                next_step="use a checkpoint in the family's standard form, or correct "
                "engine/models/families.py.",
            )
        if self.family.qkv == "quartered":
            parts = fused.reshape(4, 3, -1, fused.shape[-1])
            q, v, k = (parts[:, i].reshape(-1, self.head_dim, fused.shape[-1]) for i in range(3))
            return q, k, v
        if self.family.qkv == "interleaved":
            groups = fused.reshape(self.n_kv_heads, -1, self.head_dim, fused.shape[-1])
            return groups[:, :-2].flatten(0, 1), groups[:, -2], groups[:, -1]
        sizes = [n * self.head_dim for n in (self.n_heads, self.n_kv_heads, self.n_kv_heads)]
        q, k, v = (part.reshape(-1, self.head_dim, fused.shape[-1]) for part in fused.split(sizes))
        return q, k, v


@dataclass(frozen=True)
class ModelTaps:
    """The parts of one model: widths, blocks, embedding, final norm and unembedding.

    `n_layers` counts the blocks that run on text, `n_blocks` all of them.
    """

    family: Family
    model: nn.Module
    d: int
    n_layers: int
    n_blocks: int
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
    def keyed(self) -> bool:
        """Whether every block has heads whose queries and keys are linear maps of its normed input."""
        return self.family.qkv != "latent" and all(layer.has_heads for layer in self.layers)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What of this model is other than of most, a sentence each."""
        lacking = [str(layer.index) for layer in self.layers if not layer.has_heads]
        said = {
            f"{self.n_blocks - self.n_layers} of {self.n_blocks} blocks only run with an image: layers are "
            "counted without them": self.n_layers < self.n_blocks,
            "its blocks can't be run on packed tokens: a patch runs whole prompts again from its block on, "
            "which takes longer": not self.family.packs,
            f"blocks {', '.join(lacking)} mix tokens by a recurrent state: they have no heads": bool(lacking),
            "queries and keys aren't linear maps of the stream in every block: head kernels, Z and subspace "
            "scores don't exist": not self.keyed,
        }
        return tuple(sentence for sentence, holds in said.items() if holds)

    @property
    def max_length(self) -> int:
        """The longest prompt in tokens that the model's positions reach."""
        return reach_of(self.model.config)

    @property
    def rotary_switch(self) -> int | None:
        """LongRoPE: the length in tokens up to which a prompt has the short factors, beyond it the long ones.

        None where rotary positions don't depend on the length.
        """
        return switch_of(self.model.config)

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


def taps(model: nn.Module, family: Family | None = None) -> ModelTaps:
    """Finds the parts of a Hugging Face causal language model.

    Args:
        family: the entry to find them by; by default the listed one, else the likeliest of `candidates`.

    Raises:
        ModelError: the family is unknown and can't be read as an unlisted one (the message lists the known
            ones), or a part that its entry names is not there.
    """
    config: Any = model.config
    family = family or family_of(config) or candidates(model)[0]
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    decoder = _part(model, family.decoder, family)
    blocks = _part(decoder, family.blocks, family)
    give_parts(family.name, blocks)
    sizes = heads, kv_heads, head_dim = _head_sizes(family, text)
    skipped = set(getattr(text, family.skipped) if family.skipped else ())
    running = [slot for slot in range(len(blocks)) if slot not in skipped]
    layers = tuple(_layer((i, slot), blocks[slot], family, text, sizes) for i, slot in enumerate(running))
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
        n_blocks=len(blocks),
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


def _head_sizes(family: Family, text: Any) -> tuple[int, int, int]:
    """How many heads there are, how many of keys and values, and the width of a value's."""
    heads = int(text.num_attention_heads)
    if family.qkv == "latent":
        return heads, heads, int(text.v_head_dim)
    said = family.kv_heads
    kv_heads = said if isinstance(said, int) else int(getattr(text, said, None) or heads)
    return heads, kv_heads, int(getattr(text, "head_dim", None) or text.hidden_size // heads)


def _layer(
    place: tuple[int, int], block: nn.Module, family: Family, text: Any, sizes: tuple[int, int, int]
) -> LayerTaps:
    mixes = family.mixer is not None and isinstance(getattr(block, family.mixer, None), nn.Module)
    family = _of_mixer(family) if mixes else family
    attn = _part(block, family.attn, family)
    o_proj = _part(attn, family.o_proj, family)
    mlp = _part(block, family.mlp, family)
    attn_post = _part(block, family.attn_post_norm, family) if family.attn_post_norm else None
    mlp_post = _part(block, family.mlp_post_norm, family) if family.mlp_post_norm else None
    flag = family.parallel
    parallel = bool(getattr(text, flag)) if isinstance(flag, str) else flag
    input_norm = _part(block, family.input_norm, family) if family.input_norm else None
    mlp_norm = _part(block, family.mlp_norm, family) if family.mlp_norm else None
    q_norm = getattr(attn, "q_norm", None) or getattr(attn, "q_layernorm", None)
    k_norm = getattr(attn, "k_norm", None) or getattr(attn, "k_layernorm", None)
    return LayerTaps(
        index=place[0],
        slot=place[1],
        family=family,
        block=block,
        attn=attn,
        o_proj=o_proj,
        mlp=mlp,
        attn_contribution=attn_post or (_part(attn, family.attn_adds, family) if family.attn_adds else attn),
        mlp_contribution=mlp_post or (_part(mlp, family.mlp_adds, family) if family.mlp_adds else mlp),
        multiplier=float(getattr(block, family.multiplier)) if family.multiplier else 1.0,
        parallel=parallel,
        attn_post_norm=attn_post is not None,
        mlp_post_norm=mlp_post is not None,
        input_norm=input_norm,
        mlp_norm=input_norm if parallel and mlp_norm is None else mlp_norm,
        q_norm=q_norm,
        k_norm=k_norm,
        n_heads=sizes[0],
        n_kv_heads=sizes[1],
        head_dim=sizes[2],
        has_heads=not mixes,
    )


def _of_mixer(family: Family) -> Family:
    """The entry as it is in blocks that mix tokens without heads."""
    norms = family.mixer_norms or (
        family.input_norm,
        family.mlp_norm,
        family.attn_post_norm,
        family.mlp_post_norm,
    )
    return replace(
        family,
        attn=family.mixer or family.attn,
        o_proj=family.mixer_out,
        input_norm=norms[0],
        mlp_norm=norms[1],
        attn_post_norm=norms[2],
        mlp_post_norm=norms[3],
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
    weight = plain_weight(module).float()
    return weight.T if transposed else weight


def _bias(module: nn.Module) -> Tensor | None:
    bias: Any = getattr(module, "bias", None)
    return bias.detach().float() if isinstance(bias, Tensor) else None
