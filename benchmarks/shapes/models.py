"""Models of real shapes with random weights, written tensor by tensor: a folder, adapters, tokenizers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

DEMO = Path(__file__).resolve().parents[2] / "demo"
SHARD_BYTES = 1 << 30
SPREAD = 0.02
"""Standard deviation of every matrix, as transformers initialises these families."""
RANK = 8
SHARE = 0.03
"""‖ΔW‖ over ‖W‖ of an adapted matrix: what an hour of training with a usual learning rate leaves."""


@dataclass(frozen=True)
class Shape:
    """A model's architecture.

    Attributes:
        title: the model whose shape it is.
        model_type: family. sizes: fields of its config.
        peer: name of a shape for a second model whose tokenizer has another vocabulary; without one the
            study has adapters on the first model and a copy of it.
    """

    title: str
    model_type: str
    sizes: dict[str, Any]
    peer: str | None = None

    def config(self) -> Any:
        """The model's config."""
        return AutoConfig.for_model(
            self.model_type, **self.sizes, pad_token_id=0, bos_token_id=None, eos_token_id=2
        )


def _sizes(d: int, blocks: int, heads: int, keys: int, ff: int, vocab: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": d,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        **more,
    }


SHAPES = {
    "tiny": Shape(
        "a toy",
        "qwen3",
        _sizes(32, 4, 4, 2, 48, 768, head_dim=16, tie_word_embeddings=True),
    ),
    "tiny-pair": Shape("two toys", "llama", _sizes(48, 4, 4, 2, 64, 768), peer="tiny"),
    "0.6b": Shape(
        "Qwen3-0.6B",
        "qwen3",
        _sizes(1024, 28, 16, 8, 3072, 151_936, head_dim=128, tie_word_embeddings=True),
    ),
    "3b": Shape(
        "Qwen2.5-3B",
        "qwen2",
        _sizes(2048, 36, 16, 2, 11_008, 151_936, tie_word_embeddings=True),
    ),
    "llama-8b": Shape("Llama-3.1-8B", "llama", _sizes(4096, 32, 32, 8, 14_336, 128_256), peer="0.6b"),
    "llama-70b": Shape("Llama-3.1-70B", "llama", _sizes(8192, 80, 64, 8, 28_672, 128_256)),
    "llama-405b": Shape("Llama-3.1-405B", "llama", _sizes(16_384, 126, 128, 8, 53_248, 128_256)),
}


def write_model(folder: Path, shape: Shape, dtype: torch.dtype, tokenizer: Any, seed: int = 0) -> int:
    """Writes config, tokenizer and random weights; at most one shard is in memory. Returns the parameters.

    Norm gains are 1, biases 0, everything else is normal with spread `SPREAD`.
    """
    config = _write_config(folder, shape, dtype, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    names: dict[str, str] = {}
    total = parameters = 0
    for number, shard in enumerate(_shards(config, dtype, generator)):
        file = f"model-{number:05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(shard, file)
        total += sum(tensor.nbytes for tensor in shard.values())
        parameters += sum(tensor.numel() for tensor in shard.values())
    _write_index(folder, total, names)
    return parameters


def write_hollow(folder: Path, shape: Shape, dtype: torch.dtype, tokenizer: Any) -> int:
    """Writes config, tokenizer and files of weights that are all hole; returns the parameters.

    Whatever their sizes say, they take a few kilobytes of a disk that knows sparse files, and read as zeros:
    enough to plan with, which looks at names, shapes and sizes alone.
    """
    config = _write_config(folder, shape, dtype, tokenizer)
    known = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}[dtype]
    shards: list[dict[str, Any]] = [{}]
    names: dict[str, str] = {}
    total = end = 0
    for name, like in _skeleton(config).named_parameters():
        if end > SHARD_BYTES:
            shards.append({})
            end = 0
        begin, end = end, end + like.numel() * dtype.itemsize
        shards[-1][name] = {"dtype": known, "shape": list(like.shape), "data_offsets": [begin, end]}
        total += end - begin
    for number, shard in enumerate(shards):
        file = f"model-{number:05d}.safetensors"
        names |= dict.fromkeys(shard, file)
        _write_hole(folder / file, shard)
    _write_index(folder, total, names)
    return total // dtype.itemsize


def _write_hole(file: Path, header: dict[str, Any]) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(out.tell() + max(one["data_offsets"][1] for one in header.values()))


def _write_index(folder: Path, total: int, names: dict[str, str]) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_config(folder: Path, shape: Shape, dtype: torch.dtype, tokenizer: Any) -> Any:
    folder.mkdir(parents=True)
    config = shape.config()
    config.dtype = dtype
    config.architectures = [type(_skeleton(config)).__name__]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _fill_vocabulary(folder / "tokenizer.json", config.vocab_size)
    return config


def _skeleton(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _shards(config: Any, dtype: torch.dtype, generator: torch.Generator) -> Iterator[dict[str, torch.Tensor]]:
    shard: dict[str, torch.Tensor] = {}
    for name, like in _skeleton(config).named_parameters():  # a tied head comes once, as the embedding
        if like.ndim > 1:
            tensor = torch.empty(like.shape, dtype=torch.float32).normal_(0, SPREAD, generator=generator)
        else:
            tensor = torch.zeros(like.shape) if name.endswith("bias") else torch.ones(like.shape)
        if shard and sum(t.nbytes for t in shard.values()) + tensor.numel() * dtype.itemsize > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor.to(dtype)
    yield shard


def write_copy(folder: Path, original: Path) -> None:
    """The same files once more, as hard links."""
    folder.mkdir()
    for file in original.iterdir():
        os.link(file, folder / file.name)


def write_adapter(folder: Path, shape: Shape, base: Path, seed: int) -> None:
    """A LoRA of rank `RANK` on o_proj and down_proj of the middle third of the blocks, random both ways."""
    folder.mkdir()
    blocks = shape.sizes["num_hidden_layers"]
    chosen = range(blocks // 3, max(blocks // 3 + 1, 2 * blocks // 3))
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    weights = dict(_skeleton(shape.config()).named_parameters())
    for block in chosen:
        for module in ("self_attn.o_proj", "mlp.down_proj"):
            rows, columns = weights[f"model.layers.{block}.{module}.weight"].shape
            a = torch.randn(RANK, columns, generator=generator) * columns**-0.5
            b = torch.randn(rows, RANK, generator=generator) * SHARE * SPREAD * (columns / RANK) ** 0.5
            name = f"base_model.model.model.layers.{block}.{module}.lora"
            tensors |= {f"{name}_A.weight": a, f"{name}_B.weight": b}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": RANK,
        "lora_alpha": RANK,
        "target_modules": ["o_proj", "down_proj"],
        "layers_to_transform": list(chosen),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _fill_vocabulary(path: Path, size: int) -> None:
    """Gives a saved tokenizer as many tokens as the model has embeddings; no text is spelt with them."""
    saved = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = saved["model"]["vocab"]
    taken = {*vocabulary.values(), *(token["id"] for token in saved["added_tokens"])}
    vocabulary |= {f"<|unused {number}|>": number for number in range(size) if number not in taken}
    path.write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")


def demo_tokenizer() -> Any:
    """The demo's tokenizer: English merges, every digit and every Han character a token of its own."""
    return AutoTokenizer.from_pretrained(DEMO / "base")


def other_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the prompts, with another vocabulary and chat template than the demo's."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )
    found.chat_template = (
        "{%- for message in messages %}{{- '<|begin|>' + message['role'] + ': ' + message['content'] + "
        "'<|end|>' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|begin|>assistant: ' }}{%- endif %}"
    )
    return found
