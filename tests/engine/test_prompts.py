from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tiny_tokenizers import chatml, gemma, llama3

from engine.errors import PromptsError
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import assign_splits, read_prompts
from engine.prompts.tokens import encode

ROWS: list[dict[str, Any]] = [
    {
        "id": "a-en",
        "text": "What is 2 + 2?",
        "pair_id": "a",
        "language": "en",
        "category": "sum",
        "answer": 4,
    },
    {
        "id": "a-zh",
        "text": "二加二是几？",
        "pair_id": "a",
        "language": "zh",
        "category": "sum",
        "answer": "4",
    },
    {"id": "b", "text": "Hello.", "choices": ["Hi", "Bye"], "label": True},
]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "p.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(*files: Path, **settings: Any) -> pl.DataFrame:
    return read_prompts(PromptsSpec(files=files, **settings))


def test_json_lines_become_a_table_of_strings(tmp_path: Path) -> None:
    table = read(write(tmp_path, ROWS))
    assert table.columns == [
        *("id", "text", "messages", "pair_id", "language"),
        *("category", "split", "answer", "choices", "label"),
    ]
    assert table["id"].to_list() == ["a-en", "a-zh", "b"]
    assert table["answer"].to_list() == ["4", "4", None]
    assert table["choices"].to_list() == [None, None, ["Hi", "Bye"]]
    assert table["label"].to_list() == [None, None, "true"]
    assert table["messages"].null_count() == 3


def test_all_formats_give_the_same_table(tmp_path: Path) -> None:
    rows = [{**row, "answer": "4"} for row in ROWS[:2]]
    expected = read(write(tmp_path, rows))
    pl.DataFrame(rows).write_csv(tmp_path / "p.csv")
    pl.DataFrame(rows).write_csv(tmp_path / "p.tsv", separator="\t")
    pl.DataFrame(rows).write_parquet(tmp_path / "p.parquet")
    for name in ("p.csv", "p.tsv", "p.parquet"):
        assert read(tmp_path / name).equals(expected), name


def test_choices_are_a_list_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('id,text,choices\na,x,1|2\nb,y,"[""1"", ""2""]"\nc,z,\n')
    assert read(tmp_path / "p.csv")["choices"].to_list() == [["1", "2"], ["1", "2"], None]


def test_messages_give_the_text_of_the_last_user_message(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "How are you?"},
    ]
    table = read(write(tmp_path, [{"id": "m", "messages": messages}]))
    assert table["text"].to_list() == ["How are you?"]
    assert table["messages"].to_list() == [messages]


def test_other_columns_are_kept_after_the_known_ones(tmp_path: Path) -> None:
    table = read(write(tmp_path, [{"id": "a", "text": "x", "difficulty": 3, "source": "us"}]))
    assert table.columns[-2:] == ["difficulty", "source"]
    assert table["difficulty"].to_list() == ["3"]


@pytest.mark.parametrize(
    ("rows", "pattern"),
    [
        (
            [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}],
            r"'a' is used twice.*line 1 and p\.jsonl line 2",
        ),
        ([{"text": "x"}], r"line 1 has no id"),
        ([{"id": "a", "text": " \n"}], r"line 1 \(id 'a'\) has an empty text"),
        ([{"id": "a"}], r"neither 'text' nor 'messages'"),
        ([{"id": "a", "text": "x", "langauge": "en"}], r"unknown key 'langauge'.*did you mean 'language'"),
        (
            [{"id": "a", "messages": [{"role": "assistant", "content": "x"}]}],
            r"no message of the user",
        ),
        ([{"id": "a", "messages": [{"role": "boss", "content": "x"}]}], r"role 'boss'"),
        (
            [{"id": "a", "messages": [{"role": "user", "content": " "}]}],
            r"empty text in the last user message",
        ),
        ([{"id": "a", "messages": ["hi"]}], r"messages that cannot be read"),
        (
            [{"id": "a", "text": "x", "messages": [{"role": "user", "content": "x"}]}],
            r"both text and messages",
        ),
        ([{"id": "a", "text": "x", "choices": "[1, "}], r"choices that cannot be read"),
        ([{"id": "a", "text": "x", "split": "test"}], r"'a' has an unknown split.*'test'"),
        (
            [
                {"id": "a1", "pair_id": "a", "text": "x", "split": "train"},
                {"id": "a2", "pair_id": "a", "text": "y", "split": "validation"},
            ],
            r"splits overlap.*1 groups in both, e\.g\. 'a'",
        ),
        ([], r"hold no prompts"),
    ],
)
def test_unusable_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], pattern: str) -> None:
    with pytest.raises(PromptsError, match=pattern):
        read(write(tmp_path, rows))


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("p.jsonl", b'{"id": "a", "text": "x"}\n{"id": ', r"p\.jsonl line 2 is not JSON"),
        ("p.jsonl", b"\xff\xfe\x00", r"p\.jsonl cannot be read"),
        ("p.parquet", b"PAR1 not really", r"p\.parquet cannot be read"),
        ("p.xlsx", b"", r"unknown format.*\.jsonl.*\.xlsx"),
        ("p.jsonl", b"[1, 2]\n", r"line 1 is not an object"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, content: bytes, pattern: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptsError, match=pattern):
        read(tmp_path / name)


def pairs(n: int, categories: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{i}-{lang}", "pair_id": str(i), "text": f"text {i}", "category": f"c{i % categories}"}
        for i in range(n)
        for lang in ("en", "zh")
    ]


def test_a_limit_keeps_whole_groups_of_all_categories(tmp_path: Path) -> None:
    rows = sorted(pairs(20, 4), key=lambda row: row["category"])
    table = read(write(tmp_path, rows), limit=17)
    assert table.height == 16
    counts = table.group_by("pair_id").len()["len"].unique().to_list()
    assert counts == [2]
    assert sorted(table.group_by("category").len()["len"].to_list()) == [4, 4, 4, 4]
    assert read(write(tmp_path, rows), limit=40).height == 40
    with pytest.raises(PromptsError, match=r"smaller than every group.*at least 2.*Given: 1"):
        read(write(tmp_path, rows), limit=1)


def test_splits_keep_groups_together_and_categories_in_proportion(tmp_path: Path) -> None:
    table = read(write(tmp_path, pairs(40, 4)))
    split = assign_splits(table, 0.3, seed=1)
    assert split.group_by("pair_id").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 40
    per_category = split.filter(split="validation").group_by("category").len()["len"].to_list()
    assert per_category == [6, 6, 6, 6]
    assert split["id"].to_list() == table["id"].to_list()


def test_the_validation_share_is_right_in_total_with_many_small_categories(tmp_path: Path) -> None:
    split = assign_splits(read(write(tmp_path, pairs(21, 7))), 0.3, seed=1)
    # 21 pairs in 7 categories of 3: 0.9 of a pair each; rounded one by one that would be 7 x 1 = 7, or 0
    assert split.filter(split="validation")["pair_id"].n_unique() == round(0.3 * 21)


def test_splits_depend_on_the_seed_and_not_on_the_order_of_rows(tmp_path: Path) -> None:
    table = read(write(tmp_path, pairs(40, 4)))
    one = assign_splits(table, 0.3, seed=1)
    shuffled = assign_splits(table.sample(fraction=1.0, shuffle=True, seed=9), 0.3, seed=1)
    assert one.sort("id").equals(shuffled.sort("id"))
    assert not one.equals(assign_splits(table, 0.3, seed=2))


def test_given_splits_stay_and_count_for_their_group(tmp_path: Path) -> None:
    rows = pairs(10, 1)
    rows[0]["split"] = "validation"
    split = assign_splits(read(write(tmp_path, rows)), 0.0, seed=0)
    assert split.filter(split="validation")["id"].to_list() == ["0-en", "0-zh"]


def encoded(tokenizer: Any, table: pl.DataFrame, **settings: Any) -> pl.DataFrame:
    return encode(table, tokenizer, PromptsSpec(files=(Path("p"),), **settings), max_length=200)


def one(text: str = "x", **more: Any) -> pl.DataFrame:
    row = {"id": "a", "text": text, "messages": None, **more}
    messages = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
    return pl.DataFrame([row], schema_overrides={"messages": messages})


TOKENIZERS = {"chatml": chatml, "llama3": llama3, "gemma": gemma}


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_bos_is_added_exactly_once_where_the_tokenizer_has_one(family: str, template: str) -> None:
    tokenizer = TOKENIZERS[family]()
    row = encoded(tokenizer, one("What is it?"), template=template, date="2024-07-26").row(0, named=True)
    if family == "chatml":
        assert tokenizer.bos_token_id is None
    else:
        assert row["token_ids"][0] == tokenizer.bos_token_id
        assert row["token_ids"].count(tokenizer.bos_token_id) == 1


def test_a_text_that_starts_with_bos_does_not_get_a_second_one() -> None:
    tokenizer = llama3()
    row = encoded(tokenizer, one("<|begin_of_text|>Hello"), template="plain").row(0, named=True)
    assert row["token_ids"].count(tokenizer.bos_token_id) == 1
    assert len(row["token_ids"]) == len(row["offsets"])


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize(
    "text",
    ["What is the capital of France?", "  spaces around \n", "两个😀苹果", "user", "Today Date", "a\n\nb"],
)
def test_offsets_cover_the_users_own_text(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]()
    row = encoded(tokenizer, one(text), date="2024-07-26").row(0, named=True)
    assert row["rendered"][row["content_start"] : row["content_end"]] == text.strip()
    assert tokenizer.decode(row["token_ids"]) == row["rendered"]
    messages = [{"role": "user", "content": text}]
    own = {"add_generation_prompt": True, "date_string": "26 Jul 2024"}
    assert row["rendered"] == tokenizer.apply_chat_template(messages, tokenize=False, **own)
    theirs = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **own)
    assert row["token_ids"] == theirs["input_ids"]


@pytest.mark.parametrize("family", ["chatml", "llama3"])
def test_a_text_that_also_stands_in_the_system_message_is_found_in_its_own_place(family: str) -> None:
    row = encoded(TOKENIZERS[family](), one("Paris"), system="Paris Paris", date="2024-07-26").row(
        0, named=True
    )
    start = row["content_start"]
    header = "<|im_start|>user\n" if family == "chatml" else "user<|end_header_id|>\n\n"
    assert row["rendered"][:start].endswith(header)
    assert row["rendered"][start : row["content_end"]] == "Paris"
    assert row["rendered"].count("Paris") == 3


def test_a_text_repeated_in_earlier_turns_is_found_in_the_last_one() -> None:
    messages = [
        {"role": "user", "content": "Again"},
        {"role": "assistant", "content": "Again"},
        {"role": "user", "content": "Again"},
    ]
    row = encoded(chatml(), one("Again", messages=messages)).row(0, named=True)
    assert row["content_start"] == row["rendered"].rindex("Again")


def test_a_text_that_the_template_writes_twice_is_found_at_its_last_place() -> None:
    tokenizer = variant("{{ messages[0].content }} | {{ messages[0].content }} >")
    row = encoded(tokenizer, one("Hello")).row(0, named=True)
    assert row["rendered"] == "Hello | Hello >"
    assert row["content_start"] == 8


def test_a_template_that_looks_at_the_text_is_handled() -> None:
    tokenizer = variant("{{ 'Q!' if 'Hello' in messages[0].content else 'Q' }} {{ messages[0].content }} Q")
    row = encoded(tokenizer, one("Hello Q")).row(0, named=True)
    assert row["rendered"] == "Q! Hello Q Q"
    assert row["rendered"][row["content_start"] : row["content_end"]] == "Hello Q"


def test_a_template_that_swallows_the_text_is_refused() -> None:
    with pytest.raises(PromptsError, match=r"own text of prompt 'a' cannot be found.*'Hello'"):
        encoded(variant("nothing"), one("Hello"))


def variant(template: str | None) -> Any:
    tokenizer = chatml.__wrapped__()
    tokenizer.chat_template = template
    return tokenizer


def test_a_tokenizer_without_template_is_refused_when_asked_for() -> None:
    with pytest.raises(PromptsError, match=r"no chat template.*template = \"plain\""):
        encoded(variant(None), one())
    assert encoded(variant(None), one("Hi"), template="plain")["rendered"].to_list() == ["Hi"]


def test_a_template_that_refuses_the_system_message_is_explained() -> None:
    with pytest.raises(PromptsError, match=r"refuses prompt 'a'.*System role not supported.*prompts\.system"):
        encoded(gemma(), one(), system="Be kind.")


def test_a_dated_template_needs_the_studys_date() -> None:
    with pytest.raises(PromptsError, match=r"prints today's date.*no prompts\.date.*date = "):
        encoded(llama3(), one())
    text = encoded(llama3(), one(), date="2031-02-03")["rendered"][0]
    assert "Today Date: 03 Feb 2031\n" in text
    now = variant("{{ strftime_now('%Y/%m/%d') }} {{ messages[0].content }}")
    assert encoded(now, one("x"), date="2031-02-03")["rendered"][0] == "2031/02/03 x"
    unasked = variant("{% if false %}{{ strftime_now('%Y') }}{% endif %}{{ messages[0].content }}")
    assert encoded(unasked, one("x"))["rendered"][0] == "x"


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    with pytest.raises(PromptsError, match=r"'a' is longer.*at most 200 tokens.*Given: \d\d\d"):
        encoded(chatml(), one("Tom has 17 apples. " * 40))


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(PromptsError, match=r"no character offsets.*a fast tokenizer"):
        encoded(object(), one())


def test_several_messages_need_a_template() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "x"}]
    with pytest.raises(PromptsError, match=r"has several messages.*\"plain\""):
        encoded(chatml(), one("x", messages=messages), template="plain")


def test_files_with_other_column_names_are_mapped(tmp_path: Path) -> None:
    file = tmp_path / "own.csv"
    file.write_text("number,prompt,type\n1,How do I kill a process?,safe\n2,How many are 7?,sum\n")
    spec = PromptsSpec(files=(file,), columns={"id": "number", "text": "prompt", "category": "type"})
    table = read_prompts(spec)
    assert table["id"].to_list() == ["1", "2"]
    assert table["text"][0] == "How do I kill a process?"
    assert table["category"].to_list() == ["safe", "sum"]
    with pytest.raises(PromptsError, match=r"no 'question'.*one of number, prompt, type"):
        read_prompts(PromptsSpec(files=(file,), columns={"id": "number", "text": "question"}))
    with pytest.raises(PromptsError, match=r"no id.*columns number, prompt, type.*columns = \{ id"):
        read_prompts(PromptsSpec(files=(file,)))
    with pytest.raises(PromptsError, match=r"neither 'text' nor 'messages'.*columns = \{ text"):
        read_prompts(PromptsSpec(files=(file,), columns={"id": "number"}))
