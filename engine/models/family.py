"""What is said of a model family: where its parts are, or why it can't be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["REFUSED", "Family", "QKVLayout"]

QKVLayout = Literal["separate", "stacked", "interleaved", "quartered", "latent"]
ZOf = Literal["values", "sunk", "gated", "normed"]


@dataclass(frozen=True)
class Family:
    """Attribute names and conventions of one model family.

    Attributes:
        name: `config.model_type` of the family.
        decoder: dotted path from the causal LM to the module that holds the blocks.
        blocks: attribute of the decoder with the list of blocks.
        embed, final_norm: attributes of the decoder.
        attn, mlp: attributes of a block.
        o_proj: attribute of the attention module whose *input* is the concatenation of all heads' z.
        input_norm: block attribute of the norm that the attention reads through (None: post-norm family).
        mlp_norm: block attribute of the norm that the MLP reads through (None: post-norm family, or the
            same norm as the attention's in parallel families: then equal to `input_norm`, or a name that the
            blocks of parallel models leave None).
        attn_post_norm, mlp_post_norm: block attributes of norms applied to a sub-block's output before
            it is added to the stream, None where there is none.
        qkv: "separate" projections; "stacked" [q; k; v] in one; "interleaved" (a key head's queries, k, v)
            for each key head in one; "quartered" [q; v; k] of a quarter of the heads, four times, in one;
            "latent": behind a norm, so that none is a linear map of the stream.
        qkv_names: attribute names in the attention module (three, or one when fused).
        transposed: weights are stored (in, out), as GPT-2's Conv1D does.
        parallel: attention and MLP both read the block's input (True/False), or the name of the config
            flag that says so.
        multiplier: block attribute that scales both contributions (Granite), else None.
        norm_offset: what is added to a norm's stored weight to give its gain (1 for Gemma).
        logit_scale: config attribute that multiplies the logits; prefixed with "/" when it divides.
        attention: the only attention implementation that computes this family's attention exactly, or
            None when several do (Gemma 2's score soft-cap does not exist in sdpa).
        kv_heads: config attribute with the number of key and value heads, or that number.
        attn_adds, mlp_adds: attribute of the attention (the MLP) whose output is added to the stream, where
            the module itself returns something else (BLOOM's return the stream); else None.
        in_place: the block goes on computing in the tensor that its MLP returned.
        z: what a head's z is: a mix of "values" with weights that sum to 1; "sunk", with weights that sum to
            less (attention sinks); "gated", multiplied by a gate; "normed", behind a norm over all heads.
        packs: its attention runs on packed tokens (`engine.passes.packed`); else patches rerun whole prompts.
        mixer: attribute of the blocks that mix tokens without heads (linear attention), in a model that has
            some; else None. mixer_out: attribute of its last projection. mixer_norms: in blocks with it,
            input_norm, mlp_norm, attn_post_norm, mlp_post_norm; None: as in the others.
        skipped: config attribute with the indices of blocks that only run with an image; else None.
        wrapper: loaded by AutoModelForImageTextToText, because no causal class reads its checkpoints.
    """

    name: str
    decoder: str = "model"
    blocks: str = "layers"
    embed: str = "embed_tokens"
    final_norm: str = "norm"
    attn: str = "self_attn"
    mlp: str = "mlp"
    o_proj: str = "o_proj"
    input_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    qkv: QKVLayout = "separate"
    qkv_names: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    transposed: bool = False
    parallel: bool | str = False
    multiplier: str | None = None
    norm_offset: float = 0.0
    logit_scale: str | None = None
    attention: str | None = None
    kv_heads: str | int = "num_key_value_heads"
    attn_adds: str | None = None
    mlp_adds: str | None = None
    in_place: bool = False
    z: ZOf = "values"
    packs: bool = True
    mixer: str | None = None
    mixer_out: str = "out_proj"
    mixer_norms: tuple[str | None, str | None, str | None, str | None] | None = None
    skipped: str | None = None
    wrapper: bool = False


_SEVERAL_STREAMS = (
    "its blocks run on one of several streams (AltUp) and mix what they give into all of them, so that no "
    "stream is the sum of what is added to it; a third part (LAuReL) stands beside attention and MLP, and "
    "some blocks share others' keys and values"
)
_SCALED = "its blocks multiply the stream itself, which is then no sum of what is added to it"
_OWN_INPUTS = (
    "its blocks scale the stream and add inputs of their own to it, and have heads of several widths"
)

REFUSED: dict[str, str] = dict.fromkeys(
    ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm", "recurrent_gemma"),
    "its blocks keep a recurrent state instead of attending: there are no heads to read",
) | {
    "gemma3n": _SEVERAL_STREAMS,
    "gemma3n_text": _SEVERAL_STREAMS,
    "gemma4": _OWN_INPUTS,
    "gemma4_text": _OWN_INPUTS,
    "gemma4_unified": _OWN_INPUTS,
    "gemma4_unified_text": _OWN_INPUTS,
    "doge": _SCALED,
    "minimax": _SCALED,
    "deepseek_v4": "its blocks mix several streams (hyper-connections): no stream is a sum",
    "diffllama": "its heads are differences of two attentions",
    "falcon_h1": "a recurrent mixer adds to the stream beside the heads of every block: heads don't make up "
    "what is added there",
    "nemotron_h": "each of its blocks is a mixer, an attention or an MLP alone: none has both sites",
    "zamba": "several of its blocks share one attention, which reads the embedding beside the stream",
    "zamba2": "several of its blocks share one attention, which reads the embedding beside the stream",
}
"""What else is lacking is found on a model's own modules."""
