"""Which token each position name picks, on three chat-template styles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_tokenizers import chatml, gemma, llama3
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from engine.errors import PromptsError
from engine.prompts.positions import parse_position, positions
from engine.prompts.spec import PromptsSpec
from engine.prompts.tokens import encode

TEXT = "What is the capital of France?"
TOKENIZERS = {"chatml": chatml, "llama3": llama3, "gemma": gemma}
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))


def encoded(tokenizer: Any, *texts: str, **settings: Any) -> pl.DataFrame:
    rows = [{"id": f"p{i}", "text": text, "messages": None} for i, text in enumerate(texts)]
    table = pl.DataFrame(rows, schema={"id": pl.String, "text": pl.String, "messages": MESSAGES})
    settings = {"date": "2024-07-26"} | settings
    return encode(table, tokenizer, PromptsSpec(files=(Path("p"),), **settings), max_length=10_000)


def picked(family: str, name: str, text: str = TEXT) -> list[str]:
    tokenizer = TOKENIZERS[family]()
    table = encoded(tokenizer, text)
    (indices,) = positions(table, name, tokenizer).indices
    return tokenizer.convert_ids_to_tokens([table["token_ids"][0][int(i)] for i in indices])


SINGLE = ("decision", "last_content", "last_nonspecial")
BEHIND_THE_TEXT = {
    "chatml": ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"],
    "llama3": ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "ĊĊ"],
    "gemma": ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"],
}


# The strings are the vocabularies' own: "Ċ" is a newline and "Ġ" a space in byte-level BPE, "▁" a space.
@pytest.mark.parametrize(
    ("family", "decision", "last_content", "last_nonspecial"),
    [
        # …<|im_start|>user\n TEXT <|im_end|>\n<|im_start|>assistant\n
        ("chatml", "Ċ", "?", "Ċ"),
        # …<|start_header_id|>user<|end_header_id|>\n\n TEXT <|eot_id|>…assistant<|end_header_id|>\n\n
        ("llama3", "ĊĊ", "?", "ĊĊ"),
        # <bos><start_of_turn>user\n TEXT <end_of_turn>\n<start_of_turn>model\n
        ("gemma", "\n", "?", "\n"),
    ],
)
def test_single_token_positions(family: str, decision: str, last_content: str, last_nonspecial: str) -> None:
    tokenizer = TOKENIZERS[family]()
    table = encoded(tokenizer, TEXT)
    n = len(table["token_ids"][0])
    at = {name: int(positions(table, name, tokenizer).indices[0][0]) for name in SINGLE}
    assert at["decision"] == n - 1
    # behind a chat template the last non-special token is the assistant header's newline, not the text
    assert at["last_nonspecial"] == n - 1
    assert at["last_content"] == n - 1 - len(BEHIND_THE_TEXT[family])
    behind = table["token_ids"][0][at["last_content"] + 1 :].to_list()
    assert tokenizer.convert_ids_to_tokens(behind) == BEHIND_THE_TEXT[family]
    assert picked(family, "decision") == [decision]
    assert picked(family, "last_content") == [last_content]
    assert picked(family, "last_nonspecial") == [last_nonspecial]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("chatml", ["What", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "?"]),
        ("llama3", ["What", "Ġis", "Ġthe", "Ġcapital", "Ġof", "ĠFrance", "?"]),
        ("gemma", ["What", "▁is", "▁the", "▁cap", "ital", "▁of", "▁France", "?"]),
    ],
)
def test_mean_pools_the_tokens_of_the_users_own_text(family: str, expected: list[str]) -> None:
    assert "".join(expected).replace("Ġ", " ").replace("▁", " ") == TEXT
    assert picked(family, "mean") == expected


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_last_character_of_several_tokens_gives_its_last_token(family: str) -> None:
    """An emoji is four byte tokens that all span the same character."""
    tokenizer = TOKENIZERS[family]()
    table = encoded(tokenizer, "Hi 😀")
    (last,) = positions(table, "last_content", tokenizer).indices
    (content,) = positions(table, "mean", tokenizer).indices
    assert last[0] == content[-1]
    tokens = [table["token_ids"][0][int(i)] for i in content]
    assert tokenizer.decode(tokens) == "Hi 😀"
    assert len(tokens) >= 5


@pytest.mark.parametrize("family", TOKENIZERS)
def test_white_space_at_the_end_of_the_text_is_not_its_last_token(family: str) -> None:
    """Llama's and Gemma's templates trim the text and Qwen's doesn't: the same word is picked in all."""
    assert picked(family, "last_content", TEXT + "  \n") == ["?"]


def test_all_tokens_and_their_mean_take_everything() -> None:
    tokenizer = chatml()
    table = encoded(tokenizer, TEXT, "Hi")
    for name, kind in (("tokens", "many"), ("mean_all", "mean")):
        found = positions(table, name, tokenizer)
        assert found.kind == kind
        lengths = table["token_ids"].list.len().to_list()
        assert [i.tolist() for i in found.indices] == [list(range(n)) for n in lengths]


def test_a_token_that_joins_text_and_template_counts_as_content_and_is_reported() -> None:
    """Byte-level pre-tokenisers join punctuation with the newline behind it: here "?\\n" is one token."""
    tokenizer = Tokenizer(WordLevel({"Is": 0, " it": 1, "?\n": 2, "\nA:": 3, "A:": 4}, unk_token="A:"))
    tokenizer.pre_tokenizer = Split(Regex(r"\?\n| ?\w+:?|\nA:"), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.chat_template = "{{ messages[0].content }}\nA:"
    table = encoded(fast, "Is it?", "Is it")
    found = positions(table, "last_content", fast)
    picks = [table["token_ids"][i][int(at[0])] for i, at in enumerate(found.indices)]
    assert fast.convert_ids_to_tokens(picks) == ["?\n", " it"]
    assert found.stats["straddling"] == 1


class JoiningTokenizer:
    all_special_ids: tuple[int, ...] = ()


def rows(*given: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{"id": f"p{i}", "rendered": "?", **row} for i, row in enumerate(given)])


def test_last_nonspecial_of_only_special_tokens_falls_back_and_says_so() -> None:
    table = rows({"token_ids": [5, 6], "offsets": [[0, 1], [1, 2]], "content_start": 0, "content_end": 2})
    tokenizer = JoiningTokenizer()
    tokenizer.all_special_ids = (5, 6)
    found = positions(table, "last_nonspecial", tokenizer)
    assert found.indices[0].tolist() == [1]
    assert found.stats["fallbacks"] == 1


def test_a_prompt_without_content_tokens_is_refused() -> None:
    table = rows({"token_ids": [5], "offsets": [[0, 0]], "content_start": 0, "content_end": 1})
    with pytest.raises(PromptsError, match=r"'p0' has no token of the user's own text"):
        positions(table, "last_content", JoiningTokenizer())


def test_samples_have_k_tokens_and_leave_out_the_last() -> None:
    tokenizer = chatml()
    table = encoded(tokenizer, *[TEXT + " " + "word " * i for i in range(30)])
    lengths = table["token_ids"].list.len().to_numpy()
    found = positions(table, "sample(k=4, skip_last=3)", tokenizer, seed=1)
    assert found.name == "sample(k=4,skip_last=3)"
    for indices, length in zip(found.indices, lengths, strict=True):
        assert len(set(indices.tolist())) == 4
        assert indices.tolist() == sorted(indices.tolist())
        assert indices.max() < length - 3
    assert found.stats["prompts"] == 30
    assert found.stats["tokens"] == 120
    assert found.stats["per_prompt"] == [4, 4, 4]
    assert found.stats["from_end"][0] >= 3
    other = positions(table, "sample(k=4,skip_last=3)", tokenizer, seed=2)
    assert any(a.tolist() != b.tolist() for a, b in zip(found.indices, other.indices, strict=True))


def test_a_prompts_sample_does_not_depend_on_the_other_prompts() -> None:
    tokenizer = chatml()
    table = encoded(tokenizer, *[TEXT + " " + "word " * i for i in range(6)])
    whole = positions(table, "sample(k=3)", tokenizer, seed=1).indices
    reverse = positions(table.reverse(), "sample(k=3)", tokenizer, seed=1).indices
    assert [a.tolist() for a in whole] == [a.tolist() for a in reversed(reverse)]


def test_samples_are_uniform_over_the_allowed_tokens() -> None:
    n, draws = 10, 4000
    row: dict[str, Any] = {"token_ids": list(range(n)), "offsets": [[i, i + 1] for i in range(n)]}
    row |= {"rendered": "一二三四五六七八九十"}
    table = rows(*[row | {"content_start": 0, "content_end": n}] * draws)
    found = positions(table, "sample(k=2,skip_last=2)", JoiningTokenizer(), seed=0)
    counts = np.bincount(np.concatenate(found.indices), minlength=n)
    assert counts[8:].tolist() == [0, 0]
    # each of 8 tokens is drawn with probability 1/4; five binomial standard deviations
    assert np.abs(counts[:8] - draws / 4).max() < 5 * np.sqrt(draws * 0.25 * 0.75)


MIXED = (
    "What is the capital of France? The capital of France is Paris.",
    "小明有三个苹果，又买了四个苹果。他一共有几个苹果？",
    "Tom has 17 apples; 小明有三个 — naïve!",
    "Yes now.",
)


@pytest.mark.parametrize(
    "words",
    [
        ["हिन्दी", "भाषा", ",", "नमस्ते"],  # a virama and vowel signs inside words
        ["שָׁלוֹם", "עולם"],  # points
        ["cafe\u0301", "na\u0308ive"],  # decomposed Latin
        ["ไ", "ท", "ย", "ดี"],  # no spaces between words: characters, each with its marks
        ["か\u3099", "漢", "❤\ufe0f", "abc"],
    ],
)
def test_words_hold_their_combining_marks(words: list[str]) -> None:
    tokenizer, text, ends = chatml(), "", []
    for word in words:
        text += word + " "
        ends.append(len(text) - 1)
    table = encoded(tokenizer, text.rstrip())
    (indices,) = positions(table, "sample(k=99)", tokenizer).indices
    start = table["content_start"][0]
    spans = [table["offsets"][0][int(i)] for i in indices]
    for (a, b), end in zip(spans, ends, strict=True):
        assert a - start < end <= b - start


@pytest.mark.parametrize("name", ["sample(k=4)", "sample(k=4,skip_last=2)", "sample(k=4,draw=3)"])
def test_two_tokenizers_sample_behind_the_same_characters(name: str) -> None:
    """Never the template's tokens; the words' ends are found once more from the text alone."""
    seen = []
    for make in (chatml, llama3, gemma):
        table = encoded(make(), *MIXED)
        found = positions(table, name, make(), seed=5)
        rows_of = zip(found.indices, table.iter_rows(named=True), strict=True)
        ends = []
        for indices, row in rows_of:
            start, end = row["content_start"], row["content_end"]
            spans = [row["offsets"][int(i)] for i in indices]
            assert all(b > start and a < end and b > a for a, b in spans), "only the user's own text"
            ends.append([(a - start, min(b, end) - start) for a, b in spans])
        seen.append(ends)
    for own in zip(*seen, strict=True):
        counts = {len(ends) for ends in own}
        assert len(counts) == 1, "as many rows for every tokenizer"
        for spans in zip(*own, strict=True):
            assert max(a for a, _ in spans) < min(b for _, b in spans), "they share the word's last character"


def test_one_draw_is_a_token_of_the_sample() -> None:
    tokenizer = chatml()
    table = encoded(tokenizer, *MIXED)
    every = positions(table, "sample(k=3,skip_last=1)", tokenizer, seed=2)
    for draw in (1, 2, 3):
        one = positions(table, f"sample(k=3,skip_last=1,draw={draw})", tokenizer, seed=2)
        assert (one.name, one.kind) == (f"sample(k=3,skip_last=1,draw={draw})", "one")
        wanted = [tokens[min(draw, len(tokens)) - 1] for tokens in every.indices]
        assert [int(tokens[0]) for tokens in one.indices] == [int(token) for token in wanted]
    assert one.stats["fallbacks"] == 1, "Yes now. has too few words"


def test_a_sample_needs_the_text() -> None:
    row = {"token_ids": [1, 2], "offsets": [[0, 1], [1, 2]], "content_start": 0, "content_end": 2}
    with pytest.raises(PromptsError, match="draws words of a text, which isn't kept"):
        positions(rows(row).drop("rendered"), "sample(k=1)", JoiningTokenizer())


@pytest.mark.parametrize(
    ("name", "expected", "fallbacks"), [("sample(k=9)", 3, 1), ("sample(skip_last=9)", 1, 1)]
)
def test_short_prompts_give_what_they_have_and_are_counted(name: str, expected: int, fallbacks: int) -> None:
    row = {"token_ids": [1, 2, 3], "offsets": [[0, 1], [1, 2], [2, 3]], "content_start": 0, "content_end": 3}
    row |= {"rendered": "一二三"}
    found = positions(rows(row), name, JoiningTokenizer())
    assert [len(i) for i in found.indices] == [expected]
    assert found.stats["fallbacks"] == fallbacks


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("decison", r"no position 'decison'.*did you mean 'decision'"),
        ("mean(k=2)", r"mean takes no arguments"),
        ("sample(k=two)", r"could not be read.*'k=two'"),
        ("sample(size=2)", r"could not be read.*'size=2'"),
        ("sample(k=0)", r"k of 1 or more"),
        ("sample(k=2,draw=3)", r"no such draw.*1 to 2"),
        ("", r"no position ''"),
    ],
)
def test_unknown_positions_are_refused(name: str, pattern: str) -> None:
    with pytest.raises(PromptsError, match=pattern):
        parse_position(name)
