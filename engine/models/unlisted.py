"""Families that are not listed: a decoder's parts found by the names that most model code uses.

`candidates` gives every entry that a model's modules allow, likeliest first. Names say nothing of what a part
does, so an entry is only used after all identities held under it on the model's own weights; where no part
goes by a usual name, or the attention isn't one whose heads can be read, the model is refused by name.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from engine.models.families import unknown
from engine.models.family import Family, QKVLayout

__all__ = ["candidates"]

DECODERS = ("model", "transformer", "model.language_model", "model.decoder", "decoder")
BLOCKS = ("layers", "h", "blocks", "block")
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")
ATTENTIONS = ("self_attn", "attention", "attn", "self_attention")
MLPS = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")
O_PROJS = ("o_proj", "dense", "out_proj", "c_proj", "wo")
SEPARATE = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("wq", "wk", "wv"))
FUSED = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "wqkv", "qkv")
NORMS: tuple[tuple[str | None, str | None, str | None, str | None], ...] = (
    (
        "input_layernorm",
        "pre_feedforward_layernorm",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
    ),
    ("input_layernorm", "pre_mlp_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
    ("input_layernorm", "post_attention_layernorm", None, None),
    ("input_layernorm", "pre_feedforward_layernorm", None, None),
    (None, None, "post_attention_layernorm", "post_feedforward_layernorm"),
    ("ln_1", "ln_2", None, None),
    ("attention_norm", "ffn_norm", None, None),
    ("attention_layernorm", "feedforward_layernorm", None, None),
    ("norm_1", "norm_2", None, None),
    ("norm1", "norm2", None, None),
    ("input_layernorm", "input_layernorm", None, None),
    ("ln_1", "ln_1", None, None),
)
"""Block attributes of the norms, as in a `Family`: input_norm, mlp_norm, attn_post_norm, mlp_post_norm."""
PARALLEL = ("use_parallel_residual", "parallel_attn", "parallel_residual")
MULTIPLIERS = ("residual_multiplier", "residual_scale")
LOGIT_SCALES = ("logit_scale", "/logits_scaling")
COMPRESSED = ("kv_a_proj_with_mqa", "kv_a_proj", "kv_b_proj", "kv_a_layernorm")
LATENT = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj")
RECURRENT = ("mamba", "mixer", "linear_attn", "conv", "temporal_block", "time_mix", "ssm", "mlstm_layer")


def candidates(model: Any) -> list[Family]:
    """The entries under which a model's modules can be found, likeliest first, none of them verified.

    Args:
        model: a causal LM, on any device (the meta device too).

    Raises:
        ModelError: saying which part has no usual name, or why the heads of this attention can't be read.
    """
    kind = str(model.config.model_type)
    text = model.config.get_text_config()
    decoder, blocks = _decoder(model, kind)
    stack = model.get_submodule(decoder)
    every = list(getattr(stack, blocks))
    _check_attends(every, kind)
    embed = _name_of(stack, model.get_input_embeddings())
    final_norm = _first(stack, FINAL_NORMS)
    if embed is None or final_norm is None:
        raise unknown(kind, f"no {'embedding' if embed is None else 'final norm'} was found in its {decoder}")
    attn, mlp = (
        _in_every_block(every, ATTENTIONS, "attention", kind),
        _in_every_block(every, MLPS, "MLP", kind),
    )
    attentions = [getattr(block, attn) for block in every]
    _check_readable(attentions, kind)
    o_proj = _in_every_block(attentions, O_PROJS, "output projection", kind)
    qkv_names, layouts = _projections(attentions, kind)
    _check_sizes(attentions, qkv_names, o_proj, text, kind)
    first = Family(
        kind,
        decoder=decoder,
        blocks=blocks,
        embed=embed,
        final_norm=final_norm,
        attn=attn,
        mlp=mlp,
        o_proj=o_proj,
        qkv_names=qkv_names,
        transposed=isinstance(getattr(attentions[0], o_proj), Conv1D),
        multiplier=next((name for name in MULTIPLIERS if hasattr(every[0], name)), None),
        norm_offset=_norm_offset([getattr(stack, final_norm), *_own_norms(every[0]).values()], kind),
        logit_scale=next((s for s in LOGIT_SCALES if getattr(text, s.lstrip("/"), None) is not None), None),
        z="sunk" if any(getattr(module, "sinks", None) is not None for module in attentions) else "values",
        packs=all(map(_replaceable, attentions)),
    )
    return [
        replace(
            first,
            input_norm=norms[0],
            mlp_norm=norms[1],
            attn_post_norm=norms[2],
            mlp_post_norm=norms[3],
            parallel=parallel,
            qkv=layout,
        )
        for norms in _norms(every, kind)
        for parallel in _parallel(text, norms)
        for layout in layouts
    ]


def _decoder(model: Any, kind: str) -> tuple[str, str]:
    """Dotted path of the module that holds the blocks, and its attribute with their list."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    for path in dict.fromkeys((prefix, *DECODERS)):
        try:
            found = model.get_submodule(path) if path else None
        except AttributeError:
            continue
        for name in BLOCKS:
            blocks = getattr(found, name, None)
            if isinstance(blocks, nn.ModuleList) and len(blocks):
                return path, name
    raise unknown(kind, "no list of blocks was found by a usual name (" + ", ".join(BLOCKS) + ")")


def _check_attends(blocks: Sequence[nn.Module], kind: str) -> None:
    """Refuses blocks that keep a recurrent state, beside attention or instead of it."""
    for block in blocks:
        found = _first(block, RECURRENT)
        if found is not None:
            reason = "some of its blocks keep a recurrent state, which has no heads to read or patch"
            raise unknown(kind, f"{reason} ({type(block).__name__} has {found!r})")


def _check_readable(attentions: Sequence[nn.Module], kind: str) -> None:
    """Refuses attention of which heads can't be read."""
    for module in attentions:
        compressed = [name for name in COMPRESSED if hasattr(module, name)]
        if compressed and not _latent(module):
            reason = "its attention keeps a compressed state by names that aren't known: heads can't be read"
            raise unknown(kind, f"{reason} ({compressed[0]})")


def _latent(module: nn.Module) -> bool:
    """Whether keys and values come through a compressed state by the usual names (DeepSeek's)."""
    return all(isinstance(getattr(module, name, None), nn.Module) for name in LATENT)


def _replaceable(module: nn.Module) -> bool:
    """Whether an attention module asks for its implementation by name, so that ours can be lent to it."""
    return hasattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS")


def _in_every_block(blocks: Sequence[nn.Module], names: Sequence[str], what: str, kind: str) -> str:
    """The name by which all blocks have a part."""
    having = {name: [isinstance(getattr(block, name, None), nn.Module) for block in blocks] for name in names}
    best = max(having, key=lambda name: sum(having[name]))
    if all(having[best]):
        return best
    lacking = blocks[having[best].index(False)]
    parts = ", ".join(name for name, _ in lacking.named_children()) or "none"
    wanted = f"of the name {best!r} that others have" if any(having[best]) else "by a usual name"
    raise unknown(kind, f"a {type(lacking).__name__} has no {what} {wanted} (its parts: {parts})")


def _projections(attentions: Sequence[nn.Module], kind: str) -> tuple[tuple[str, ...], tuple[QKVLayout, ...]]:
    if all(map(_latent, attentions)):
        return LATENT[-1:], ("latent",)
    for names in SEPARATE:
        if all(isinstance(getattr(module, name, None), nn.Module) for module in attentions for name in names):
            return names, ("separate",)
    name = _in_every_block(attentions, FUSED, "query, key and value projection", kind)
    return (name,), ("stacked", "interleaved")


def _check_sizes(
    attentions: Sequence[nn.Module], qkv: Sequence[str], o_proj: str, text: Any, kind: str
) -> None:
    """Every block has the heads that the config says."""
    try:
        heads = int(text.num_attention_heads)
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        width = int(text.v_head_dim) if all(map(_latent, attentions)) else width
    except Exception as error:  # configs may refuse to give one number for blocks that differ
        reason = (
            f"its config doesn't say how many heads of which width every block has ({type(error).__name__})"
        )
        raise unknown(kind, reason) from error
    rows = [heads * width, kv_heads * width, kv_heads * width]
    rows = rows if len(qkv) > 1 else [sum(rows)]
    for module in attentions:
        out: Any = getattr(module, o_proj)
        found = [_shape(getattr(module, name))[0] for name in qkv]
        if (found != rows and not _latent(module)) or _shape(out)[1] != heads * width:
            expected = f"{heads} heads of {width} with {kv_heads} for keys and values"
            raise unknown(kind, f"a block's projections don't have the config's {expected}: {found} rows")


def _shape(module: nn.Module) -> tuple[int, int]:
    """(out, in) of a projection; zeros for anything else."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.ndim != 2:
        return 0, 0
    first, second = int(weight.shape[0]), int(weight.shape[1])
    return (second, first) if isinstance(module, Conv1D) else (first, second)


def _norms(
    blocks: Sequence[nn.Module], kind: str
) -> Iterator[tuple[str | None, str | None, str | None, str | None]]:
    """Layouts of norms that use all of a block's norms."""
    own = _own_norms(blocks[0])
    found = [layout for layout in NORMS if set(filter(None, layout)) == own.keys()]
    if not found:
        raise unknown(kind, f"its blocks' norms have no usual names ({', '.join(sorted(own)) or 'none'})")
    yield from found


def _own_norms(block: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in block.named_children() if "norm" in name or name.startswith("ln_")}


def _parallel(text: Any, norms: Sequence[str | None]) -> tuple[bool, ...]:
    if norms[0] is not None and norms[0] == norms[1]:
        return (True,)
    said = next((bool(getattr(text, flag)) for flag in PARALLEL if hasattr(text, flag)), False)
    return said, not said


def _norm_offset(norms: Sequence[nn.Module], kind: str) -> float:
    """What all norms add to their weight to get their gain."""
    try:
        found = {_offset(norm) for norm in norms}
    except Exception as error:  # a norm can be any module
        raise unknown(kind, f"one of its norms can't be tried out ({type(error).__name__})") from error
    if len(found) > 1:
        raise unknown(kind, f"its norms get their gains from their weights in different ways ({found})")
    return found.pop()


def _offset(norm: nn.Module) -> float:
    """A norm's output under weight 0, in units of what weight 1 adds to it; 0 without weights."""
    if not isinstance(getattr(norm, "weight", None), torch.Tensor):
        return 0.0
    probe: Any = copy.deepcopy(norm).to_empty(device="cpu").float()
    x = torch.linspace(-1.0, 2.0, int(probe.weight.shape[-1]))[None, None]
    outputs = []
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        for value in (0.0, 1.0):
            probe.weight.fill_(value)
            outputs.append(probe(x))
    return abs(round(float((outputs[0] / (outputs[1] - outputs[0])).nanmean()), 3))


def _first(parent: nn.Module, names: Sequence[str]) -> str | None:
    return next((name for name in names if isinstance(getattr(parent, name, None), nn.Module)), None)


def _name_of(parent: nn.Module, child: nn.Module) -> str | None:
    return next((name for name, module in parent.named_modules() if module is child), None)
