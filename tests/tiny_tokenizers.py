"""Small trained BPE tokenizers whose chat templates have the structure of three well-known families."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import processors as post
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. Answer in one word. user assistant model system",
    "小明有三个苹果，又买了四个苹果。他一共有几个苹果？法国的首都是巴黎。",
    "system\n\nuser\n\nassistant\n\nmodel\nToday Date: 26 Jul 2024\n\nmodel assistant user",
    "Tom has 17 apples and buys 7 more. How many apples does Tom have now?",
] * 8

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
LLAMA3 = (
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    "{%- else %}{%- set system_message = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Today Date: ' + date_string + '\n\n' }}{{- system_message }}{{- '<|eot_id|>' }}"
    "{%- for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{%- endif %}"
)


def _byte_level(special: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _wrap(tokenizer: Tokenizer, template: str, special: dict[str, Any]) -> PreTrainedTokenizerFast:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


@cache
def chatml(size: int = 500) -> Any:
    """Qwen's structure: byte-level BPE, no BOS, the user's text passed through untrimmed."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(special, size)
    tokenizer.post_processor = post.ByteLevel(trim_offsets=False)
    names = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": ["<|im_start|>"],
    }
    return _wrap(tokenizer, CHATML, names)


@cache
def llama3(size: int = 500) -> Any:
    """Llama 3's structure: byte-level BPE that adds BOS, a dated system header, the text trimmed."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _byte_level(special, size)
    bos = (special[0], tokenizer.token_to_id(special[0]))
    tokenizer.post_processor = post.Sequence(
        [
            post.ByteLevel(trim_offsets=False),
            post.TemplateProcessing(single=f"{bos[0]} $A", pair=f"{bos[0]} $A $B", special_tokens=[bos]),
        ]
    )
    names = {"bos_token": special[0], "eos_token": "<|eot_id|>", "extra_special_tokens": special[1:3]}
    return _wrap(tokenizer, LLAMA3, names)


@cache
def gemma(size: int = 500) -> Any:
    """Gemma's structure: spaces as "▁", bytes as fallback, BOS added, no system role, the text trimmed."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256)), "\n"],
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos = ("<bos>", tokenizer.token_to_id("<bos>"))
    tokenizer.post_processor = post.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[bos]
    )
    tokenizer.add_tokens([AddedToken("\n", normalized=False)])
    names: dict[str, Any] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    names |= {"unk_token": "<unk>", "extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    return _wrap(tokenizer, GEMMA, names)
