"""Where each supported model family keeps its parts.

One `Family` per `config.model_type`: attribute names of the block's sub-modules, how the query, key
and value weights are laid out, and whether a norm follows a sub-block before its output is added to
the residual stream. Adding a family is adding one entry; `engine.models.loading` then checks the residual
and head identities on the real weights and refuses a model for which the entry is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from engine.errors import ModelError
from engine.models.family import REFUSED, Family

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
_GLM4 = replace(
    _LLAMA, name="glm4", attn_post_norm="post_self_attn_layernorm", mlp_post_norm="post_mlp_layernorm"
)
_GRANITE = replace(_LLAMA, name="granite", multiplier="residual_multiplier", logit_scale="/logits_scaling")
_OLMO2 = replace(
    _LLAMA,
    name="olmo2",
    input_norm=None,
    mlp_norm=None,
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_LATENT = replace(_LLAMA, name="deepseek_v3", qkv="latent", qkv_names=("kv_b_proj",))
_GPT2 = Family(
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
)
_GPTJ = replace(
    _GPT2,
    name="gptj",
    o_proj="out_proj",
    mlp_norm="ln_1",
    qkv="separate",
    qkv_names=_LLAMA.qkv_names,
    transposed=False,
    parallel=True,
    attention="eager",
    packs=False,
)
_BLOOM = Family(
    "bloom",
    decoder="transformer",
    blocks="h",
    embed="word_embeddings",
    final_norm="ln_f",
    attn="self_attention",
    o_proj="dense",
    qkv="interleaved",
    qkv_names=("query_key_value",),
    attention="eager",
    attn_adds="dense",
    mlp_adds="dense_4h_to_h",
    packs=False,
)
_HYBRID = replace(_LLAMA, name="qwen3_next", norm_offset=1.0, z="gated", packs=False, mixer="linear_attn")
_LFM2 = replace(
    _LLAMA,
    name="lfm2",
    final_norm="embedding_norm",
    mlp="feed_forward",
    o_proj="out_proj",
    input_norm="operator_norm",
    mlp_norm="ffn_norm",
    packs=False,
    mixer="conv",
)
_JAMBA = replace(
    _LLAMA,
    name="jamba",
    final_norm="final_layernorm",
    mlp="feed_forward",
    mlp_norm="pre_ff_layernorm",
    packs=False,
    mixer="mamba",
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
        replace(_LLAMA, name="mixtral"),
        replace(_LLAMA, name="ministral3"),
        replace(_LLAMA, name="qwen2_moe"),
        replace(_LLAMA, name="starcoder2"),
        replace(_LLAMA, name="glm"),
        _GLM4,
        replace(_LLAMA, name="nemotron", norm_offset=1.0),
        replace(_LLAMA, name="stablelm", parallel="use_parallel_residual"),
        replace(_LLAMA, name="olmoe"),
        replace(_LLAMA, name="gemma", norm_offset=1.0),
        replace(_LLAMA, name="olmo"),
        _OLMO2,
        replace(_OLMO2, name="olmo3"),
        replace(
            _OLMO2,
            name="olmo_hybrid",
            packs=False,
            mixer="linear_attn",
            mixer_out="o_proj",
            mixer_norms=("input_layernorm", "post_attention_layernorm", None, None),
        ),
        replace(_LLAMA, name="bitnet", z="normed"),
        _GRANITE,
        replace(_GRANITE, name="granitemoe", mlp="block_sparse_moe"),
        replace(_GRANITE, name="granitemoeshared"),
        replace(_GRANITE, name="granitemoehybrid", packs=False, mixer="mamba"),
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
        _GPT2,
        _GPTJ,
        replace(_GPTJ, name="codegen", qkv="quartered", qkv_names=("qkv_proj",)),
        replace(_GPTJ, name="gpt_neo", attn="attn.attention", mlp_norm="ln_2", parallel=False),
        _BLOOM,
        replace(_BLOOM, name="falcon", attention=None, attn_adds=None, mlp_adds=None),
        replace(
            _LLAMA,
            name="opt",
            decoder="model.decoder",
            o_proj="out_proj",
            input_norm="self_attn_layer_norm",
            mlp_norm="final_layer_norm",
            final_norm="final_layer_norm",
        ),
        replace(_LLAMA, name="gpt_oss", attention="eager", z="sunk"),
        _LATENT,
        replace(_LATENT, name="deepseek_v2"),
        replace(_LLAMA, name="llama4_text", mlp="feed_forward", packs=False),
        replace(
            _LLAMA,
            name="llama4",
            decoder="language_model.model",
            mlp="feed_forward",
            packs=False,
            wrapper=True,
        ),
        replace(
            _BLOOM,
            name="mpt",
            blocks="blocks",
            embed="wte",
            final_norm="norm_f",
            attn="attn",
            mlp="ffn",
            o_proj="out_proj",
            input_norm="norm_1",
            mlp_norm="norm_2",
            qkv="stacked",
            qkv_names=("Wqkv",),
            attn_adds=None,
            mlp_adds="down_proj",
        ),
        replace(
            _GEMMA2,
            name="afmoe",
            mlp_norm="pre_mlp_layernorm",
            mlp_post_norm="post_mlp_layernorm",
            norm_offset=0.0,
            attention=None,
            z="gated",
        ),
        replace(_LLAMA, name="glm4_moe"),
        _HYBRID,
        replace(_HYBRID, name="qwen3_5_text"),
        replace(_HYBRID, name="qwen3_5_moe_text"),
        replace(_HYBRID, name="qwen3_5"),
        replace(_HYBRID, name="qwen3_5_moe"),
        _LFM2,
        replace(_LFM2, name="lfm2_moe"),
        replace(
            _LFM2,
            name="lfm3",
            o_proj="o_proj",
            z="gated",
            attn_post_norm="post_operator_norm",
            mlp_post_norm="post_ffn_norm",
        ),
        _JAMBA,
        replace(_JAMBA, name="bamba"),
        *(
            replace(_LLAMA, name=name, decoder="model.language_model", wrapper=True)
            for name in ("mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava")
        ),
        replace(
            _LLAMA,
            name="mllama",
            decoder="model.language_model",
            skipped="cross_attention_layers",
            wrapper=True,
        ),
    )
}


def _falcon(family: Family, config: Any) -> Family:
    """Falcon's three kinds of blocks (1B with ALiBi, 7B, and the new decoder of 40B and later)."""
    new, parallel = bool(config.new_decoder_architecture), bool(config.parallel_attn)
    grouped = new or not config.multi_query
    family = replace(family, parallel=parallel or new, kv_heads="num_kv_heads" if grouped else 1)
    if parallel and (config.num_ln_in_parallel_attn or (2 if new else 1)) == 2:
        family = replace(family, input_norm="ln_attn", mlp_norm="ln_mlp")
    elif parallel:
        family = replace(family, mlp_norm="input_layernorm")
    return replace(family, in_place=family.parallel is True)


def _opt(family: Family, config: Any) -> Family:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        raise unknown("opt", "norms of this size stand in the stream itself, which is then no sum")
    if config.word_embed_proj_dim != config.hidden_size:
        raise unknown("opt", "projections stand between its embeddings and its stream")
    return family


def _lfm3(family: Family, config: Any) -> Family:
    family = replace(family, z="gated" if config.use_attention_gate else "values")
    return family if config.use_sandwich_norm else replace(family, attn_post_norm=None, mlp_post_norm=None)


_VARIANTS: dict[str, Callable[[Family, Any], Family]] = {"falcon": _falcon, "opt": _opt, "lfm3": _lfm3}
"""Families whose config says which of several kinds their blocks are."""


def family_of(config: Any) -> Family | None:
    """The listed family of a config's `model_type`; None for one to be looked for in the model's modules.

    Raises:
        ModelError: it is one of those that can't be read, or Hugging Face has no causal LM of it.
    """
    kind = str(config.model_type)
    if kind in FAMILIES:
        return _VARIANTS.get(kind, lambda family, _: family)(FAMILIES[kind], config)
    if kind in REFUSED:
        raise unknown(kind, REFUSED[kind])
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise unknown(kind, "transformers has no causal language model of it")
    return None


def loader_of(config: Any) -> Any:
    """The Auto class that builds and loads a model of this config with its text decoder and unembedding."""
    family = FAMILIES.get(str(config.model_type))
    return AutoModelForImageTextToText if family is not None and family.wrapper else AutoModelForCausalLM


def attention_of(config: Any, asked: str) -> str:
    """The attention implementation to load a model with: the asked one where it is exact."""
    family = family_of(config)
    if family is not None:
        return family.attention or asked
    softcapped = bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    without = asked == "sdpa" and kind is not None and not kind._supports_sdpa
    return "eager" if softcapped or without else asked


def unknown(model_type: str, reason: str) -> ModelError:
    """The refusal of a family, naming the known ones."""
    return ModelError(
        f"The model family {model_type!r} is not known to Patchbay, and can't be read as an unlisted one: "
        f"{reason}.",
        expected="a config.model_type among " + ", ".join(sorted(FAMILIES)) + ", or a decoder whose parts "
        "have the usual names and for which all identities hold",
        given=repr(model_type),
        next_step="use a model of a known family, or add an entry to engine/models/families.py "
        "(its residual and head identities are checked when the model is loaded).",
    )
