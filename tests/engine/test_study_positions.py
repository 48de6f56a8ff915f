"""Positions in the answer, at the assistant's header and at spans that a study defines, against offsets."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from chat_inputs import DATE, FAMILIES, TEXT, assistant, prompts, user, with_template
from tiny_tokenizers import CHATML, chatml

from engine.errors import AnalysisError, PromptsError, StudyError
from engine.prompts.positions import Positions, positions
from engine.prompts.span_spec import SpanPosition
from engine.prompts.spans import span_position
from engine.prompts.tokens import encode
from engine.study.study import Study


def resolved(
    folder: Path, tokenizer: Any, rows: list[dict[str, Any]], name: str | SpanPosition, **settings: Any
) -> tuple[pl.DataFrame, Positions]:
    table, spec = prompts(folder, rows, **settings)
    frame = encode(table, tokenizer, spec, 10_000, header=name == "assistant_start")
    if isinstance(name, SpanPosition):
        return frame, span_position(frame, table, name)
    return frame, positions(frame, name, tokenizer)


def covering(tokenizer: Any, text: str, start: int, end: int, special: bool = False) -> list[int]:
    """Tokens that cover a character of [start, end), by the tokenizer's own offsets."""
    made = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    return [i for i, (a, b) in enumerate(made["offset_mapping"]) if b > a and a < end and b > start]


@pytest.mark.parametrize("said", ["", "The capital is"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistants_header_begins_where_the_other_turns_end(
    family: str, said: str, tmp_path: Path
) -> None:
    tokenizer = FAMILIES[family]()
    before = [user("Hi"), assistant("Hello"), user(TEXT)]
    row = {"messages": [*before, assistant(said)] if said else before}
    frame, found = resolved(tmp_path, tokenizer, [row], "assistant_start", template_args=DATE)
    turns = tokenizer.apply_chat_template(before, tokenize=False, **DATE)
    assert found.kind == "one"
    assert found.indices[0].tolist() == [len(tokenizer(turns, add_special_tokens=False)["input_ids"])]
    first = tokenizer.convert_ids_to_tokens(frame["token_ids"][0][int(found.indices[0][0])])
    assert first in ("<|im_start|>", "<|start_header_id|>", "<start_of_turn>")


def test_prompts_without_a_header_of_the_assistant_are_named(tmp_path: Path) -> None:
    for template, settings in ((CHATML, {"template": "plain"}), ("{{ messages[0].content }}", {})):
        with pytest.raises(PromptsError, match=r"'p:1' has no position 'assistant_start'"):
            resolved(tmp_path, with_template(template), [{"text": "x"}], "assistant_start", **settings)
    changing = "{% for m in messages %}{{ 'Q: ' if loop.last else 'q: ' }}{{ m.content }}{% endfor %}"
    with pytest.raises(PromptsError, match="changes earlier turns"):
        resolved(tmp_path, with_template(changing), [{"text": "x"}], "assistant_start", prefill="So")


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("family", FAMILIES)
def test_positions_in_the_answer(family: str, template: str, tmp_path: Path) -> None:
    tokenizer = FAMILIES[family]()
    rows = [{"text": TEXT, "reply": " Paris, of course."}, {"text": "17 + 7?", "reply": " 24"}]
    args = {"template_args": DATE} if template == "chat" else {}
    settings = {"answers": "reply", "template": template, **args}
    frame, first = resolved(tmp_path, tokenizer, rows, "first_answer", **settings)
    _, mean = resolved(tmp_path, tokenizer, rows, "answer_mean", **settings)
    assert (first.kind, mean.kind) == ("one", "mean")
    for row, text, one, all_of in zip(rows, frame["rendered"], first.indices, mean.indices, strict=True):
        start = text.rindex(row["reply"].strip())
        wanted = covering(tokenizer, text, start, len(text), special=template == "plain")
        assert all_of.tolist() == wanted
        assert one.tolist() == wanted[:1]


@pytest.mark.parametrize("name", ["first_answer", "answer_mean"])
def test_without_an_answer_there_is_no_position_in_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptsError, match=rf"no position '{name}'.*prompts\.answers"):
        resolved(tmp_path, chatml(), [{"text": TEXT, "answer": "Paris"}], name)
    rows = [{"messages": [user(), assistant("Paris")]}, {"text": "x"}, {"text": "y"}]
    with pytest.raises(PromptsError, match=rf"'p:2' has no token of an answer.*{name}.*2 such prompts"):
        resolved(tmp_path, chatml(), rows, name)


SUBJECTS = [
    {"name": "subject", "regex": r"(?<=of )\w+"},
    {"name": "subject", "chars": (24, 31)},  # two characters of white space are counted before it
    {"name": "subject", "columns": ("start", "end")},
]


@pytest.mark.parametrize("take", ["last", "first", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", SUBJECTS, ids=["regex", "chars", "columns"])
def test_a_span_is_found_through_the_characters_of_its_tokens(
    family: str, way: dict[str, Any], take: str, tmp_path: Path
) -> None:
    tokenizer = FAMILIES[family]()
    rows = [{"text": "  What is the capital of Francia?  ", "start": 25, "end": 32}]
    way = way | ({"chars": (25, 32)} if "chars" in way else {})
    settings = {"system": "The capital of Spain."} if family != "gemma" else {}
    wanted = SpanPosition(**way, take=take)
    frame, found = resolved(tmp_path, tokenizer, rows, wanted, template_args=DATE, **settings)
    text = frame["rendered"][0]
    start = text.index("Francia")
    tokens = covering(tokenizer, text, start, start + 7)
    assert len(tokens) > 1
    assert found.name == "subject"
    assert found.kind == ("mean" if take == "mean" else "one")
    assert found.indices[0].tolist() == {"last": tokens[-1:], "first": tokens[:1], "mean": tokens}[take]


def test_a_pattern_may_be_searched_in_the_answer_or_in_all_of_the_prompt(tmp_path: Path) -> None:
    rows = [{"text": "Is Paris big?", "reply": "Yes, Paris is."}]
    for within, turn in (("text", 0), ("answer", 1), ("prompt", 0)):
        wanted = SpanPosition(name="city", regex="Paris", within=within)
        frame, found = resolved(tmp_path, chatml(), rows, wanted, answers="reply")
        places = [m.span() for m in re.finditer("Paris", frame["rendered"][0])]
        assert found.indices[0].tolist() == covering(chatml(), frame["rendered"][0], *places[turn])[-1:]
    header = SpanPosition(name="header", regex=r"assistant", within="prompt")
    frame, found = resolved(tmp_path, chatml(), rows, header)
    assert frame["token_ids"][0][int(found.indices[0][0])] == chatml().convert_tokens_to_ids("assistant")


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ({"regex": "apples"}, r"2 of 3 prompts without it: 'p:1', 'p:3'"),
        ({"regex": "x*"}, "3 of 3"),  # matches nothing, everywhere
        ({"regex": "apples", "within": "answer"}, "3 of 3"),
        ({"chars": (0, 12)}, r"2 of 3 prompts without it: 'p:1', 'p:3'"),
        ({"columns": ("start", "end")}, r"2 of 3 prompts without it: 'p:2', 'p:3'"),
        ({"columns": ("from", "to")}, "a column that the prompts don't have"),
    ],
)
def test_prompts_without_the_span_are_named(tmp_path: Path, way: dict[str, Any], said: str) -> None:
    rows = [
        {"text": "No pears", "start": "0", "end": 2},
        {"text": "No apples here", "start": None, "end": 2},
        {"text": "No, pears", "start": "zero", "end": 9},
    ]
    with pytest.raises(PromptsError, match=said):
        resolved(tmp_path, chatml(), rows, SpanPosition(name="s", **way))


def test_characters_are_not_counted_in_a_text_that_the_template_changed(tmp_path: Path) -> None:
    changing = with_template("{% for m in messages %}{{ m.content | replace('  ', ' ') }}{% endfor %}")
    with pytest.raises(PromptsError, match="1 of 1 prompts without it"):
        resolved(tmp_path, changing, [{"text": "a  b c"}], SpanPosition(name="s", chars=(3, 4)))


def test_a_pattern_that_would_never_end_is_given_up(tmp_path: Path) -> None:
    rows = [{"text": "a" * 40 + "!"}]
    with pytest.raises(AnalysisError, match="takes too long"):
        resolved(tmp_path, chatml(), rows, SpanPosition(name="s", regex=r"(a|a)*$"))


def study(*places: Any, **prompt: Any) -> Study:
    data = {
        "name": "s",
        "models": {"a": {"hub": "x/y"}},
        "prompts": {"files": ["p.jsonl"], **prompt},
        "capture": {"positions": list(places)},
    }
    return Study.from_dict(data, "/tmp")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"name": "s", "regx": "a"}, r"positions\[0\]\.regx.*did you mean 'regex'"),
        ({"name": "s", "regex": "("}, r"positions\[0\]\.regex.*a regular expression"),
        ({"name": "s"}, "exactly one of"),
        ({"name": "s", "regex": "a", "chars": [0, 1]}, "exactly one of"),
        ({"name": "s", "chars": [3, 2]}, "start before end"),
        ({"name": "s", "chars": [0, 2], "within": "answer"}, "needs 'regex'"),
        ({"name": "S p", "regex": "a"}, "small letters"),
        ({"name": "mean", "regex": "a"}, "another name than 'mean'"),
        ("first_answers", "did you mean 'first_answer'"),
    ],
)
def test_positions_that_cannot_be_are_named(place: Any, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        study(place)
    with pytest.raises(StudyError, match="each position once"):
        study({"name": "s", "regex": "a"}, {"name": "s", "regex": "b"})


def test_what_is_new_enters_the_fingerprint_where_it_is_used_alone() -> None:
    plain = study("decision").fingerprint()
    spelled = study("decision", keep_eos=False, too_long="refuse")
    assert spelled.fingerprint() == plain
    others = [
        study("decision", "first_answer"),
        study("decision", {"name": "s", "regex": "a"}),
        study("decision", {"name": "s", "regex": "b"}),
        study("decision", keep_eos=True),
        study("decision", too_long="drop"),
        study("decision", prefill="So"),
        study("decision", answers="answer"),
        study("decision", columns={"system": "system"}),
        study("decision", template_args={"x": [{"a": 1, "b": 2}]}),
        study("decision", template_args={"x": [{"b": 2, "a": 1}]}),
    ]
    assert len({plain, *(one.fingerprint() for one in others)}) == 1 + len(others)
    for one in others:
        assert Study.from_json(one.to_json()).fingerprint() == one.fingerprint()


def test_the_positions_of_the_docs_are_a_study() -> None:
    docs = Path(__file__).parents[2] / "docs/prompts.md"
    (shown,) = re.findall(r"```toml\n(\[capture\]\n.*?)```", docs.read_text(encoding="utf-8"), re.S)
    own = study(*tomllib.loads(shown)["capture"]["positions"])
    assert own.capture.position_names == ("decision", "subject", "verdict", "clause", "opening")
    assert isinstance(own.capture.positions[1], SpanPosition)
    assert own.capture.positions[1].regex == r"(?<=capital of )\w+"


def test_positions_of_the_study_can_be_named_on_the_command_line() -> None:
    own = study("decision", {"name": "s", "regex": "a"}, "mean")
    chosen = own.with_overrides(positions=["s", "mean"]).capture
    assert chosen.position_names == ("s", "mean")
    assert chosen.positions[0] == own.capture.positions[1]
