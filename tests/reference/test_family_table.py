"""Families beside Llama's kind: what is captured, loaded, adapted and steered against plain Hugging Face.

One row a family. Module names are written from each family's model code, independently of
engine/models/families.py. Patches, generation and activations of these families are in `test_patch_families`
and `test_generate_huggingface`, with all others.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import LATER_NAMES, random_tokens, tiny, tiny_config
from tiny_tokenizers import chatml
from torch import Tensor
from transformers import AutoModelForImageTextToText

from engine.models.families import FAMILIES
from engine.models.family import REFUSED
from engine.models.identities import check_packed
from engine.models.loading import from_parts, load
from engine.models.sites import Site
from engine.models.skeleton import planned
from engine.passes.capture import capture_batch
from engine.passes.edits import Edit, Tokens
from engine.passes.generate import generate
from engine.prompts.positions import Positions
from engine.study.study import ModelSpec

pytestmark = pytest.mark.reference

LIMIT = 1e-5
"""Relative, float32: one rounding is 6e-8, and the longest chain here is off by some 5e-7."""
NEW, TIE = 8, 1e-4


class Row(NamedTuple):
    """Where a family's parts are: the blocks; of a block what adds the attention's and the MLP's contribution
    (none: what the stream grew by) and what z enters; projections that an adapter changes; both contributions
    in blocks without heads; the block's attribute that multiplies contributions."""

    blocks: str = "model.layers"
    attn: str = "self_attn"
    mlp: str = "mlp"
    z: str = "self_attn.o_proj"
    adapted: tuple[str, ...] = ("v_proj", "o_proj")
    mixed: tuple[str, str] | None = None
    scale: str | None = None


FALCON = Row("transformer.h", "self_attention", "mlp", "self_attention.dense", ("query_key_value", "dense"))
WRAPPED = Row("model.language_model.layers")
LATENT = Row(adapted=("kv_b_proj", "o_proj"))
LINEAR = Row(adapted=("v_proj", "out_proj"))
GRANITE = Row(mlp="", scale="residual_multiplier")
MIXERS = ("linear_attn", "conv", "mamba")
TABLE: dict[str, Row] = {
    "gptj": Row("transformer.h", "attn", "mlp", "attn.out_proj", ("v_proj", "out_proj")),
    "gpt_neo": Row("transformer.h", "attn", "mlp", "attn.attention.out_proj", ("v_proj", "out_proj")),
    "opt": Row("model.decoder.layers", "self_attn", "fc2", "self_attn.out_proj", ("v_proj", "fc1")),
    "bloom": Row(
        "transformer.h",
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "self_attention.dense",
        ("query_key_value", "dense"),
    ),
    "falcon 1B": FALCON,
    "falcon 7B": FALCON,
    "falcon 40B": FALCON,
    "falcon 11B": FALCON,
    "gpt_oss": Row(),
    "glm4_moe": Row(),
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "llama4_text": Row(mlp="feed_forward"),
    "qwen3_next": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_moe": LINEAR,
    "lfm2_moe": Row(mlp="feed_forward", z="self_attn.out_proj", adapted=("v_proj", "out_proj")),
    "lfm2": Row(mlp="feed_forward", z="self_attn.out_proj", adapted=("v_proj", "out_proj")),
    "jamba": Row(mlp="feed_forward"),
    "bamba": Row(mlp="feed_forward"),
    "mpt": Row("transformer.blocks", "attn", "ffn.down_proj", "attn.out_proj", ("Wqkv", "out_proj")),
    "afmoe": Row(attn="post_attention_layernorm", mlp="post_mlp_layernorm"),
    "qwen3_5": LINEAR,
    "llama4": Row("language_model.model.layers", mlp="feed_forward"),
    "mllama": WRAPPED,
    "mistral3": WRAPPED,
    "qwen2_vl": WRAPPED,
    "qwen2_5_vl": WRAPPED,
    "qwen3_vl": WRAPPED,
    "llava": WRAPPED,
    "granitemoeshared": GRANITE,
    "granitemoehybrid": GRANITE,
    "granitemoehybrid dense": GRANITE,
    "olmo_hybrid": Row(
        attn="post_attention_layernorm", mlp="post_feedforward_layernorm", mixed=("linear_attn", "mlp")
    ),
    "lfm3": Row(
        attn="post_operator_norm", mlp="post_ffn_norm", mixed=("post_operator_norm", "post_ffn_norm")
    ),
    "lfm3 plain": Row(mlp="feed_forward"),
    "bitnet": Row(),
    "codegen": Row("transformer.h", "attn", "mlp", "attn.out_proj", ("qkv_proj", "out_proj")),
}


def plain(model: Any, row: Row, ids: list[int]) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """What a plain forward pass shows of a prompt's last token, and its logits (V,)."""
    seen: dict[tuple[str, int], Tensor] = {}
    handles = []

    def keep(key: tuple[str, int], before: bool) -> Any:
        def hook(_module: Any, args: Any, output: Any = None) -> None:
            value = args[0] if before else output[0] if isinstance(output, tuple) else output
            scale = 1.0 if before or row.scale is None else getattr(blocks[key[1]], row.scale)
            seen[key] = value.reshape(-1, value.shape[-1])[-1].clone() * scale

        return hook

    def grown(layer: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            seen["mlp_out", layer] = after[0, -1] - before[0, -1] - seen["attn_out", layer]

        return hook

    skipped = getattr(model.config.get_text_config(), "cross_attention_layers", [])
    blocks = [block for i, block in enumerate(model.get_submodule(row.blocks)) if i not in skipped]
    for layer, block in enumerate(blocks):
        mixer = next((name for name in MIXERS if getattr(block, name, None) is not None), None)
        attn, mlp, z = row.attn, row.mlp, row.z if mixer is None else None
        if mixer is not None:
            attn, mlp = row.mixed or (mixer, row.mlp)
        handles.append(block.get_submodule(attn).register_forward_hook(keep(("attn_out", layer), False)))
        if mlp:
            handles.append(block.get_submodule(mlp).register_forward_hook(keep(("mlp_out", layer), False)))
        else:
            handles.append(block.register_forward_hook(grown(layer), with_kwargs=True))
        if z is not None:
            handles.append(block.get_submodule(z).register_forward_pre_hook(keep(("head_z", layer), True)))
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    states = out.hidden_states
    assert len(states) == len(blocks) + 1
    for layer in range(len(blocks)):
        seen["resid", layer] = states[layer][0, -1]
    seen["normed", 0] = states[-1][0, -1]
    return seen, out.logits[0, -1]


def relative(found: Any, wanted: Tensor) -> float:
    return float((torch.as_tensor(found) - wanted).norm() / wanted.norm())


def test_the_table_has_every_family() -> None:
    assert tuple(TABLE) == LATER_NAMES


def test_the_documents_table_says_what_the_entries_say() -> None:
    page = (Path(__file__).parents[2] / "docs/families.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:1] == "|"]
    said = {row[0]: tuple(row[1:4]) for row in rows if row[1] in ("packed", "whole")}
    assert said == {
        name: (
            "packed" if entry.packs else "whole",
            entry.z,
            "latent" if entry.qkv == "latent" else "some" if entry.mixer else "yes",
        )
        for name, entry in FAMILIES.items()
    }
    refused = {name: row[1] for row in rows if len(row) == 2 for name in row[0].split(", ")}
    assert REFUSED.items() <= refused.items()


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5", "qwen3_5_moe"])
def test_a_checkpoint_of_text_and_images_is_read_for_its_text(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(tiny_config(family, vocab_size=455)).eval()
    whole.save_pretrained(tmp_path)
    chatml().save_pretrained(tmp_path)
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        wanted = whole(input_ids=tokens).logits
        found = load(ModelSpec(path=tmp_path), "model").model(input_ids=tokens).logits
    assert relative(found, wanted) <= LIMIT


@pytest.mark.parametrize("family", TABLE)
def test_what_is_captured_is_what_a_plain_forward_pass_shows(family: str) -> None:
    model = tiny(family)
    lm = from_parts(copy.deepcopy(model))
    prompts = [random_tokens(1, n, seed=n)[0].tolist() for n in (9, 5, 12)]
    last = {"last": Positions("last", "one", tuple(np.array([len(ids) - 1]) for ids in prompts))}
    components = ("resid", "attn_out", "mlp_out", "head_z")
    found = capture_batch(lm, prompts, range(3), last, components)["last"]
    for row, ids in enumerate(prompts):
        wanted, logits = plain(model, TABLE[family], ids)
        assert wanted.keys() - found.keys() == {("normed", 0)}
        assert found.keys() - wanted.keys() == {("resid", lm.taps.n_layers)}
        for key in wanted.keys() & found.keys():
            assert relative(found[key][row], wanted[key]) < LIMIT, (key, row)
        normed = lm.taps.final_norm(torch.as_tensor(found["resid", lm.taps.n_layers][row])[None, None])
        assert relative(normed[0, 0], wanted["normed", 0]) < LIMIT
        with torch.no_grad():
            again = lm.model(input_ids=torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", TABLE)
def test_packed_prompts_are_each_alone_where_an_entry_says_so(family: str) -> None:
    lm = from_parts(tiny(family))
    if lm.taps.family.packs:
        assert check_packed(lm, random_tokens(1, 20)[0]).passed


@pytest.mark.parametrize("family", TABLE)
def test_a_steered_stream_generates_what_a_plain_hook_does(family: str) -> None:
    lm = from_parts(tiny(family))
    prompts = [random_tokens(1, n, seed=n)[0].tolist() for n in (7, 4, 7)]
    layer = lm.taps.n_layers - 2
    push = torch.randn(lm.taps.d, generator=torch.Generator().manual_seed(1))

    def change(own: Tensor, _tokens: Tokens) -> Tensor:
        return own + 2 * own.norm(dim=-1, keepdim=True) * push / push.norm()

    edits = [None, Edit(Site("resid_post", layer), change, (0,) * len(prompts), "all")]
    made = generate(lm, prompts, edits, max_new_tokens=NEW, stop=[]).tokens

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        value = output[0] if isinstance(output, tuple) else output
        moved = change(value, None)  # type: ignore[arg-type]
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    for condition in (0, 1):
        handle = lm.taps.layers[layer].block.register_forward_hook(hook) if condition else None
        for prompt, ids in enumerate(prompts):
            out = lm.model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                do_sample=False,
                use_cache=False,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
            wanted, ours = out.sequences[0, len(ids) :].tolist(), made[condition][prompt]
            apart = next((i for i, (a, b) in enumerate(zip(ours, wanted, strict=True)) if a != b), None)
            if apart is not None:
                best = out.logits[apart][0].topk(2).values
                assert best[0] - best[1] < TIE
        if handle is not None:
            handle.remove()
    assert made[0] != made[1]


@pytest.mark.parametrize("family", TABLE)
def test_a_checkpoint_and_its_adapter_load_from_disk(family: str, tmp_path: Path) -> None:
    base = tiny(family, vocab_size=455)
    base.save_pretrained(tmp_path / "base")
    chatml().save_pretrained(tmp_path / "base")
    targets = list(TABLE[family].adapted)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, init_lora_weights=False, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(base, config).eval()
        wrapped.save_pretrained(str(tmp_path / "adapter"))
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        wanted = wrapped(input_ids=tokens).logits
        with wrapped.disable_adapter():
            before = wrapped(input_ids=tokens).logits
    spec = ModelSpec(path=tmp_path / "base", adapter=tmp_path / "adapter")
    assert planned(spec).n_layers == planned(ModelSpec(path=tmp_path / "base")).n_layers
    for own, logits in ((ModelSpec(path=tmp_path / "base"), before), (spec, wanted)):
        lm = load(own, "model")
        with torch.no_grad():
            found = lm.model(input_ids=tokens).logits
        assert relative(found, logits) <= LIMIT
    assert relative(before, wanted) > 1e-3
