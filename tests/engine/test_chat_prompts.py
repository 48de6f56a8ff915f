"""Chat prompts against transformers' own apply_chat_template, and prompts that are given as token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chat_inputs import DATE, FAMILIES, TEXT, assistant, prompts, user, with_template
from tiny_tokenizers import CHATML, chatml, gemma, llama3
from tokenizers import processors as post
from transformers import PreTrainedTokenizerFast

from engine.errors import PromptsError
from engine.prompts.positions import positions
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import shared_rows
from engine.prompts.tokens import encode, eos_note
from engine.prompts.usable import check_one_vocabulary, fitting, unused_columns, with_texts

TOOLS = [{"type": "function", "function": {"name": "add", "description": "a < b", "parameters": {}}}]
WITH_TOOLS = (
    "{%- if tools %}{{- 'tools: ' + (tools | tojson) + '\n' }}{%- endif %}"
    "{%- for message in messages %}{{- message.role + ': ' + message.content }}"
    "{%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant: ' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think></think>' }}{%- endif %}"
    "{%- endif %}"
)


def encoded(folder: Path, tokenizer: Any, rows: list[dict[str, Any]], **settings: Any) -> pl.DataFrame:
    table, spec = prompts(folder, rows, **settings)
    return encode(table, tokenizer, spec, max_length=10_000)


def test_template_arguments_and_tools_are_what_transformers_hands_over(tmp_path: Path) -> None:
    tokenizer = with_template(WITH_TOOLS)
    args = {"enable_thinking": False, "tools": TOOLS}
    (row,) = encoded(tmp_path, tokenizer, [{"text": TEXT}], template_args=args).iter_rows(named=True)
    wanted = tokenizer.apply_chat_template(
        [user()], tools=TOOLS, enable_thinking=False, add_generation_prompt=True, tokenize=False
    )
    assert "<think>" in wanted
    assert '"add"' in wanted
    assert row["rendered"] == wanted
    assert row["token_ids"] == tokenizer(wanted, add_special_tokens=False)["input_ids"]


def test_a_list_of_templates_has_its_own_for_tools(tmp_path: Path) -> None:
    tokenizer = with_template(CHATML)
    tokenizer.chat_template = {"default": CHATML, "tool_use": WITH_TOOLS}
    with_tools = encoded(tmp_path, tokenizer, [{"text": TEXT}], template_args={"tools": TOOLS})
    assert with_tools["rendered"][0].startswith("tools: ")
    assert encoded(tmp_path, tokenizer, [{"text": TEXT}])["rendered"][0].startswith("<|im_start|>")


def test_arguments_keep_their_order_and_enter_the_spec_as_text() -> None:
    one = PromptsSpec(files=("p",), template_args={"tools": [{"b": 1, "a": 2}]})
    other = PromptsSpec(files=("p",), template_args={"tools": [{"a": 2, "b": 1}]})
    assert one != other
    assert json.dumps(one.arguments()) == '{"tools": [{"b": 1, "a": 2}]}'
    assert PromptsSpec.model_validate(one.model_dump()) == one


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"template_args": {"messages": []}}, "Patchbay gives it"),
        ({"template_args": {"tools": "add"}}, "'tools' as a list"),
        ({"template_args": {"x": "y" * 200_000}}, "more than"),
        ({"template_args": {"x": Path("y")}}, "a table of text"),
        ({"template_args": {"date_string": "1"}, "date": "2024-07-26"}, "not both"),
        ({"template_args": {"x": 1}, "template": "plain"}, "need template"),
        ({"answers": "messages"}, "a column of text"),
        ({"prefill": "So", "columns": {"token_ids": "t"}}, "used as they are"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PromptsSpec(files=("p",), **settings)


def test_tool_calls_reach_the_template(tmp_path: Path) -> None:
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    messages = [
        user(),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "3", "tool_call_id": "1"},
    ]
    tokenizer = with_template(WITH_TOOLS)
    found = encoded(tmp_path, tokenizer, [{"messages": messages}, {"text": "Hi"}])
    shown = [messages[0], messages[1] | {"content": ""}, messages[2]]
    wanted = tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
    assert '"arguments"' in wanted
    assert found["rendered"][0] == wanted
    row = found.row(0, named=True)
    assert row["rendered"][row["content_start"] : row["content_end"]] == TEXT


CONTINUED = ["The capital", " Paris, ", "Paris.\n", "What is", TEXT]


@pytest.mark.parametrize("said", CONTINUED)
@pytest.mark.parametrize("way", ["prefill", "column", "messages", "answers"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_continues_what_the_assistant_says(
    family: str, way: str, said: str, tmp_path: Path
) -> None:
    tokenizer, date = FAMILIES[family](), {"template_args": DATE}
    settings: dict[str, dict[str, Any]] = {
        "prefill": {"prefill": said},
        "column": {"columns": {"prefill": "start", "text": "text"}},
        "messages": {},
        "answers": {"answers": "reply"},
    }
    row = {"messages": [user(), assistant(said)]} if way == "messages" else {"text": TEXT}
    row |= {"column": {"start": said}, "answers": {"reply": said}}.get(way, {})
    (found,) = encoded(tmp_path, tokenizer, [row], **settings[way], **date).iter_rows(named=True)
    wanted = tokenizer.apply_chat_template(
        [user(), assistant(said)], continue_final_message=True, tokenize=False, **DATE
    )
    assert found["rendered"] == wanted
    assert found["token_ids"] == tokenizer(wanted, add_special_tokens=False)["input_ids"]
    text = found["rendered"]
    assert text[found["answer_start"] : found["answer_end"]] == said.strip()
    assert found["answer_end"] == len(text.rstrip())
    assert text[found["content_start"] : found["content_end"]] == TEXT
    assert found["content_end"] < found["answer_start"]


def test_a_prefill_before_the_answer_is_no_answer(tmp_path: Path) -> None:
    found = encoded(tmp_path, gemma(), [{"text": "Hi", "a": "Paris "}], prefill="Answer: ", answers="a")
    row = found.row(0, named=True)
    assert row["rendered"].endswith("<start_of_turn>model\nAnswer: Paris")
    assert row["rendered"][row["answer_start"] :] == "Paris"
    plain = encoded(
        tmp_path, chatml(), [{"text": "Hi. ", "a": "Paris"}], prefill="A: ", answers="a", template="plain"
    ).row(0, named=True)
    assert plain["rendered"] == "Hi. A: Paris"
    assert [plain[k] for k in ("content_start", "content_end", "answer_start", "answer_end")] == [0, 3, 7, 12]


def test_a_prompts_own_prefill_stands_in_the_place_of_the_studys(tmp_path: Path) -> None:
    rows = [{"text": "a", "start": "Own"}, {"text": "b"}, {"messages": [user("c"), assistant("Said")]}]
    found = encoded(tmp_path, chatml(), rows, prefill="All", columns={"prefill": "start"})
    assert [text.rpartition("\n")[2] for text in found["rendered"]] == ["Own", "All", "Said"]


def test_without_what_the_assistant_says_the_table_has_no_more_columns(tmp_path: Path) -> None:
    table = encoded(tmp_path, chatml(), [{"text": TEXT, "answer": "Paris", "prefill": "So", "system": "Be"}])
    assert table.columns == ["id", "rendered", "token_ids", "offsets", "content_start", "content_end"]
    assert "Paris" not in table["rendered"][0]
    assert "Be" not in table["rendered"][0]


@pytest.mark.parametrize(
    "template",
    [
        # drops the assistant, and writes another text in its place
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    ],
)
def test_a_template_that_cannot_be_continued_is_refused_with_the_prompt(
    tmp_path: Path, template: str
) -> None:
    with pytest.raises(PromptsError, match=r"cannot continue what the assistant says in prompt 'p:1'"):
        encoded(tmp_path, with_template(template), [{"text": TEXT}], prefill="So")


def test_system_messages_of_prompts_stand_before_the_studys(tmp_path: Path) -> None:
    own = [{"role": "system", "content": "C"}, user()]
    rows = [{"text": TEXT, "sys": "A"}, {"text": TEXT}, {"messages": own}]
    found = encoded(tmp_path, chatml(), rows, system="B", columns={"system": "sys"})
    for text, system in zip(found["rendered"], "ABC", strict=True):
        wanted = [{"role": "system", "content": system}, user()]
        assert text == chatml().apply_chat_template(wanted, add_generation_prompt=True, tokenize=False)


def test_prompts_may_be_raw_one_by_one(tmp_path: Path) -> None:
    rows = [{"text": TEXT, "chat": False}, {"text": TEXT, "chat": "chat"}, {"text": TEXT}]
    tokenizer = llama3()
    found = encoded(tmp_path, tokenizer, rows, columns={"template": "chat"}, template_args=DATE)
    chat = tokenizer.apply_chat_template([user()], add_generation_prompt=True, tokenize=False, **DATE)
    assert found["rendered"].to_list() == [TEXT, chat, chat]
    assert found["token_ids"][0].to_list() == tokenizer(TEXT)["input_ids"]
    assert found["token_ids"][1].to_list() == tokenizer(chat, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "x", "template": "maybe"}, "neither yes nor no"),
        ({"text": "x", "template": "plain", "system": "Be"}, "says two things"),
        ({"messages": [user(), assistant("a")], "prefill": "b"}, "says two things"),
        ({"messages": [{"role": "system", "content": "s"}, user()], "system": "t"}, "says two things"),
        ({"token_ids": [1], "system": "t"}, "says two things"),
        ({"token_ids": [1], "messages": [user()]}, "says two things"),
        ({"token_ids": [1.5]}, "token ids that cannot be read"),
        ({"token_ids": []}, "token ids that cannot be read"),
        ({"token_ids": "[1, -1]"}, "token ids that cannot be read"),
        ({"messages": [user(), assistant(" ")]}, "empty text in the last message, of the assistant"),
        ({"messages": [user(), {"role": "system", "content": "s"}]}, "last message of the system"),
        ({"messages": [{"role": "user", "content": None}]}, "cannot be read"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, "cannot be read"),
    ],
)
def test_rows_that_contradict_themselves_are_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    columns = {role: role for role in ("system", "prefill", "template", "token_ids")}
    whole = dict.fromkeys(columns) | row
    with pytest.raises(PromptsError, match=rf"p\.jsonl line 1.*{said}"):
        prompts(tmp_path, [whole], columns=columns)


def test_answers_are_there_for_every_prompt(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"1 of 2 without, e\.g\. 'p:2'"):
        prompts(tmp_path, [{"text": "a", "answer": "x"}, {"text": "b", "answer": " "}], answers="answer")
    with pytest.raises(PromptsError, match=r"no answer in the column 'reply'.*one of id, text"):
        prompts(tmp_path, [{"text": "a"}], answers="reply")
    row = {"messages": [user(), assistant("a")], "answer": "b"}
    with pytest.raises(PromptsError, match=r"ends with the assistant"):
        prompts(tmp_path, [row], answers="answer")


def appending(name: str = "<|im_end|>") -> Any:
    """A tokenizer that puts EOS behind plain text."""
    tokenizer = with_template(CHATML)
    copy = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    copy.post_processor = post.TemplateProcessing(
        single=f"$A {name}", pair=f"$A $B {name}", special_tokens=[(name, copy.token_to_id(name))]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=copy, eos_token=name)
    fast.chat_template = CHATML
    return fast


def test_eos_that_a_tokenizer_appends_is_said_and_can_be_kept(tmp_path: Path) -> None:
    tokenizer, rows = appending(), [{"text": TEXT}]
    table, spec = prompts(tmp_path, rows, template="plain")
    whole = tokenizer(TEXT)["input_ids"]
    assert whole[-1] == tokenizer.eos_token_id
    assert encode(table, tokenizer, spec, 100)["token_ids"].to_list() == [whole[:-1]]
    assert "left out" in (eos_note(table, tokenizer, spec) or "")
    kept = spec.model_copy(update={"keep_eos": True})
    frame = encode(table, tokenizer, kept, 100)
    assert frame["token_ids"].to_list() == [whole]
    assert "is kept" in (eos_note(table, tokenizer, kept) or "")
    decision, last = (
        positions(frame, name, tokenizer).indices[0][0] for name in ("decision", "last_content")
    )
    assert (decision, last) == (len(whole) - 1, len(whole) - 2)
    chat = spec.model_copy(update={"template": "chat"})
    assert eos_note(table, tokenizer, chat) is None
    assert eos_note(table, chatml(), spec) is None
    assert "changes nothing" in (eos_note(table, chatml(), kept) or "")


TEXTS = ("Hi 😀 there", "What is the capital", "小明有三个苹果", " Tom has 17 apples.")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_ids_are_used_as_they_are(family: str, text: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES[family]()
    ids = tokenizer(text)["input_ids"]
    columns = {"token_ids": "ids", "text": "text"}
    found = encoded(tmp_path, tokenizer, [{"ids": ids, "text": text}], columns=columns).row(0, named=True)
    assert found["token_ids"] == ids
    assert found["rendered"] == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert found["rendered"][found["content_start"] : found["content_end"]] == text.strip()
    assert [tuple(span) for span in found["offsets"]] == tokenizer(
        found["rendered"], add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"]


def test_other_tokens_of_the_same_text_have_the_characters_that_they_make(tmp_path: Path) -> None:
    """Byte by byte, which the tokenizer itself would join: an emoji's four tokens stand for it together."""
    tokenizer = chatml()
    text = "Hi 😀 Tom"
    names = [list(tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(c)[0][0]) for c in text]
    ids = [tokenizer.convert_tokens_to_ids(mark) for marks in names for mark in marks]
    assert ids != tokenizer(text)["input_ids"]
    rows = [{"ids": ids, "text": "Tom"}, {"ids": ids, "text": ""}]
    found = encoded(tmp_path, tokenizer, rows, columns={"token_ids": "ids", "text": "text"})
    wanted = [[0, 1], [1, 2], [2, 3], *[[3, 4]] * 4, [4, 5], [5, 6], [6, 7], [7, 8]]
    assert found["offsets"].to_list() == [wanted, wanted]
    assert found["content_start"].to_list() == [5, 0]
    assert found["content_end"].to_list() == [8, 8]


def test_token_ids_alone_are_a_prompt_whose_text_is_all_but_special_tokens(tmp_path: Path) -> None:
    tokenizer = llama3()
    ids = tokenizer(TEXT)["input_ids"]
    table, spec = prompts(tmp_path, [{"t": ids}, {"t": json.dumps(ids)}], columns={"token_ids": "t"})
    frame = encode(table, tokenizer, spec, 100)
    assert frame["token_ids"].to_list() == [ids, ids]
    assert with_texts(table, frame)["text"].to_list() == [TEXT, TEXT]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"t": [3, 10**6]}, "a token id that the tokenizer doesn't have"),
        ({"t": [300, 301], "text": "quite another text"}, "say something else"),
        ({"t": [0]}, "special tokens alone"),
    ],
)
def test_token_ids_that_cannot_be_are_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptsError, match=rf"'p:1'.*{said}"):
        encoded(tmp_path, chatml(), [{"text": None} | row], columns={"token_ids": "t", "text": "text"})


def test_token_ids_need_one_vocabulary(tmp_path: Path) -> None:
    table, _ = prompts(tmp_path, [{"t": [1, 2]}], columns={"token_ids": "t"})
    check_one_vocabulary(table, {"a": chatml(), "b": with_template(CHATML)})
    with pytest.raises(PromptsError, match=r"different ones.*'b'"):
        check_one_vocabulary(table, {"a": chatml(), "b": gemma()})
    text, _ = prompts(tmp_path, [{"text": "x", "token_ids": "[1]"}])
    check_one_vocabulary(text, {"a": chatml(), "b": gemma()})


def test_prompts_that_are_too_long_are_dropped_and_named_when_the_study_says_so(tmp_path: Path) -> None:
    table, spec = prompts(tmp_path, [{"text": "Hi"}, {"text": TEXT * 3}], too_long="drop")
    frames = {"a": encode(table, chatml(), spec, 20), "b": encode(table, gemma(), spec, 100)}
    remarks: list[str] = []
    assert fitting(frames, {"a": 20, "b": 100}, remarks) == [0]
    assert remarks == ["1 of 2 are longer than a model's context and are dropped: 'p:2'"]
    assert fitting(frames, {"a": 100, "b": 100}, remarks) == [0, 1]
    with pytest.raises(PromptsError, match="No prompt is left: all are longer"):
        fitting(frames, {"a": 2, "b": 100}, remarks)
    with pytest.raises(PromptsError, match=r"'p:2' is longer than the model's context.*too_long"):
        encode(table, chatml(), spec.model_copy(update={"too_long": "refuse"}), 20)


REFUSING = "{{ raise_exception('no x') if 'x' in messages[0].content else messages[0].content }}"


def test_prompts_that_a_template_refuses_are_dropped_when_the_study_says_so(tmp_path: Path) -> None:
    tokenizer = with_template(REFUSING)
    table, spec = prompts(tmp_path, [{"text": text} for text in ("abc", "x", "def")], unusable="drop")
    frame = encode(table, tokenizer, spec, 20)
    remarks: list[str] = []
    assert fitting({"a": frame}, {"a": 20}, remarks) == [0, 2]
    assert remarks == ["1 of 3 can't be rendered and are dropped: 'p:2'"]
    assert frame["rendered"].to_list() == ["abc", "", "def"]
    with pytest.raises(PromptsError, match=r"refuses prompt 'p:2'.*no x"):
        encode(table, tokenizer, spec.model_copy(update={"unusable": "refuse"}), 20)
    with pytest.raises(PromptsError, match=r"refuses prompt 'p:2'.*no x"):  # all that is asked is refused
        encode(table[1:2], tokenizer, spec, 20)


def test_a_limit_counts_what_is_left_when_long_prompts_are_dropped(tmp_path: Path) -> None:
    rows = [{"text": TEXT * 3}, *({"text": text} for text in "abc")]
    table, spec = prompts(tmp_path, rows, too_long="drop", limit=2)
    frame = encode(table, chatml(), spec, 20)
    rows_left = fitting({"a": frame}, {"a": 20}, [])
    table, frame = table[rows_left], frame[rows_left]
    assert table[shared_rows(table, {"a": frame}, {}, spec)]["text"].to_list() == ["a", "b"]


def test_columns_that_a_study_could_use_and_does_not_are_remarked(tmp_path: Path) -> None:
    table, spec = prompts(tmp_path, [{"text": "x", "system": "s", "prefill": "p"}])
    assert [line.split("'")[1] for line in unused_columns(table, spec)] == ["system", "prefill"]
    table, spec = prompts(tmp_path, [{"text": "x", "system": "s"}], columns={"system": "system"})
    assert unused_columns(table, spec) == []
