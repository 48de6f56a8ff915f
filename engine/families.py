"""Where each supported model family keeps its parts.

One `Family` per `config.model_type`: attribute names of the block's sub-modules, how the query, key
and value weights are laid out, and whether a norm follows a sub-block before its output is added to
the residual stream. Adding a family is adding one entry; `engine.model` then checks the residual
and head identities on the real weights and refuses a model for which the entry is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from engine.errors import ModelError

QKVLayout = Literal["separate", "stacked", "interleaved"]


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
            same norm as the attention's in parallel families: then equal to `input_norm`).
        attn_post_norm, mlp_post_norm: block attributes of norms applied to a sub-block's output before
            it is added to the stream, None where there is none.
        qkv: "separate" projections; "stacked" [q; k; v] in one; "interleaved" (q, k, v) per head in one.
        qkv_names: attribute names in the attention module (three, or one when fused).
        transposed: weights are stored (in, out), as GPT-2's Conv1D does.
        parallel: attention and MLP both read the block's input (True/False), or the name of the config
            flag that says so.
        multiplier: block attribute that scales both contributions (Granite), else None.
        norm_offset: what is added to a norm's stored weight to give its gain (1 for Gemma).
        logit_scale: config attribute that multiplies the logits; prefixed with "/" when it divides.
        attention: the only attention implementation that computes this family's attention exactly, or
            None when several do (Gemma 2's score soft-cap does not exist in sdpa).
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


_LLAMA = Family("llama")
_GEMMA2 = replace(
    _LLAMA,
    name="gemma2",
    attn_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    norm_offset=1.0,
    attention="eager",
)
_GEMMA3_TEXT = replace(_GEMMA2, name="gemma3_text", attention=None)
_OLMO2 = replace(
    _LLAMA,
    name="olmo2",
    input_norm=None,
    mlp_norm=None,
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_COHERE = replace(_LLAMA, name="cohere", mlp_norm="input_layernorm", parallel=True, logit_scale="logit_scale")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _LLAMA,
        replace(_LLAMA, name="mistral"),
        replace(_LLAMA, name="qwen2"),
        replace(_LLAMA, name="qwen3"),
        replace(_LLAMA, name="qwen3_moe"),
        replace(_LLAMA, name="smollm3"),
        replace(_LLAMA, name="olmo"),
        _OLMO2,
        replace(_OLMO2, name="olmo3"),
        replace(_LLAMA, name="granite", multiplier="residual_multiplier", logit_scale="/logits_scaling"),
        _COHERE,
        replace(_COHERE, name="cohere2"),
        _GEMMA2,
        _GEMMA3_TEXT,
        replace(_GEMMA3_TEXT, name="gemma3", decoder="model.language_model"),
        replace(
            _LLAMA,
            name="phi",
            final_norm="final_layernorm",
            o_proj="dense",
            mlp_norm="input_layernorm",
            parallel=True,
        ),
        replace(_LLAMA, name="phi3", qkv="stacked", qkv_names=("qkv_proj",)),
        Family(
            "gpt_neox",
            decoder="gpt_neox",
            embed="embed_in",
            final_norm="final_layer_norm",
            attn="attention",
            o_proj="dense",
            qkv="interleaved",
            qkv_names=("query_key_value",),
            parallel="use_parallel_residual",
        ),
        Family(
            "gpt2",
            decoder="transformer",
            blocks="h",
            embed="wte",
            final_norm="ln_f",
            attn="attn",
            o_proj="c_proj",
            input_norm="ln_1",
            mlp_norm="ln_2",
            qkv="stacked",
            qkv_names=("c_attn",),
            transposed=True,
        ),
    )
}


def family_of(model_type: str) -> Family:
    """The registered family of a `config.model_type`.

    Raises:
        ModelError: naming the known families, when this one is not among them.
    """
    try:
        return FAMILIES[model_type]
    except KeyError:
        raise ModelError(
            f"The model family {model_type!r} is not known to Patchbay.",
            expected="a config.model_type among " + ", ".join(sorted(FAMILIES)),
            given=repr(model_type),
            next_step="use a model of a known family, or add an entry to engine/families.py "
            "(its residual and head identities are checked when the model is loaded).",
        ) from None
