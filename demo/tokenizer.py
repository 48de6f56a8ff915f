"""A byte-level BPE tokenizer for the demo: each digit and each Han character is one token."""

from __future__ import annotations

import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from demo.corpus import draw_sample

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (PAD, START, END)
LATIN_MERGES = 180
"""Merges learnt on the English half; the rest of the vocabulary is bytes, Han characters and marks."""

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _split() -> pre_tokenizers.PreTokenizer:
    alone = pre_tokenizers.Split(Regex(r"[\p{Han}\p{N}]"), behavior="isolated")
    return pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _corpus(seed: int, size: int) -> list[str]:
    rng = random.Random(f"tokenizer-{seed}")
    samples = [draw_sample(rng) for _ in range(size)]
    return [" ".join(("system", "user", "assistant", s.system or "", s.text, s.reply)) for s in samples]


def _as_bytes(character: str) -> list[str]:
    """A character as the printable stand-ins that byte-level BPE uses for its UTF-8 bytes."""
    ((piece, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
        character
    )
    return list(piece)


def build_tokenizer(seed: int = 0, size: int = 6000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the demo corpus.

    English merges are learnt by BPE; characters outside ASCII get the merges that join their bytes
    left to right, so that each becomes one token whatever its frequency. Any other text still
    encodes, byte by byte.
    """
    texts = _corpus(seed, size)
    latin = Tokenizer(models.BPE())
    latin.pre_tokenizer = _split()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + LATIN_MERGES, initial_alphabet=alphabet, show_progress=False
    )
    latin.train_from_iterator(("".join(c for c in t if c.isascii()) for t in texts), trainer)
    learnt = json.loads(latin.to_str())["model"]
    merges = [tuple(m) for m in learnt["merges"]]
    vocab = {
        token: i for i, token in enumerate([*SPECIALS, *sorted(learnt["vocab"], key=learnt["vocab"].get)])
    }
    for character in sorted({c for t in texts for c in t if not c.isascii()}):
        parts = _as_bytes(character)
        left = parts[0]
        for part in parts[1:]:
            if left + part not in vocab:
                merges.append((left, part))
                vocab[left + part] = len(vocab)
            left += part
    full = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    full.pre_tokenizer = _split()
    full.decoder = decoders.ByteLevel()
    full.add_special_tokens(list(SPECIALS))
    return PreTrainedTokenizerFast(
        tokenizer_object=full,
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
