"""Personas put on prompts, and which prompts subspace scores use."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tiny_tokenizers import chatml, gemma, llama3

from engine.errors import PromptsError, StudyError
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import COLUMNS
from engine.study.fingerprints import diff_studies
from engine.study.study import Study
from engine.study.subspaces import SubspacesSpec
from engine.subspaces.prompts import SubspacePrompts, choose_rows, subspace_prompts

SPEC = SubspacesSpec(positive=("You agree.", "Please them."), negative=("You check.", "Be strict."))


def prompts(n: int = 12, **columns: Any) -> pl.DataFrame:
    rows = [
        {"id": f"p{i}", "text": f"Is {i} right?", "category": "ab"[i % 2], "language": "en"} for i in range(n)
    ]
    table = pl.DataFrame([dict.fromkeys(COLUMNS) | row for row in rows], schema=COLUMNS)
    split = ["train" if i % 3 else "validation" for i in range(n)]
    return table.with_columns(pl.Series("split", split), **columns)


def made(
    tokenizer: Any, spec: SubspacesSpec = SPEC, table: pl.DataFrame | None = None, **said: Any
) -> SubspacePrompts:
    table = prompts() if table is None else table
    said = {"files": ["x.jsonl"], "date": "2024-07-26"} | said
    how = PromptsSpec.model_validate(said)
    return subspace_prompts(table, tokenizer, how, spec, seed=0, max_length=512)


def test_a_persona_takes_the_place_of_the_system_message() -> None:
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is 1 right?"}]
    table = prompts(
        messages=pl.Series([own if i == 1 else None for i in range(12)], dtype=COLUMNS["messages"])
    )
    found = made(chatml(), table=table, system="Be kind.")
    assert found.notes == ()
    assert found.fit.tolist() == [1, 2, 4, 5, 7, 8, 10, 11]
    assert found.entries.tolist() == [0, 1] * 4
    for persona, texts in (("positive", SPEC.positive), ("negative", SPEC.negative)):
        for number, row in enumerate(found.fit):
            wanted = (
                f"<|im_start|>system\n{texts[number % 2]}<|im_end|>\n"
                f"<|im_start|>user\nIs {row} right?<|im_end|>\n<|im_start|>assistant\n"
            )
            assert found.encoded[persona]["rendered"][number] == wanted
            assert chatml().decode(found.token_ids(persona)[number]) == wanted


@pytest.mark.parametrize("template", ["refusing", "dropping", "plain"])
def test_without_a_system_role_a_persona_stands_before_the_users_text(template: str) -> None:
    tokenizer, said = gemma(), {}
    if template == "dropping":  # as some templates do, in silence
        tokenizer = copy.deepcopy(chatml())
        tokenizer.chat_template = tokenizer.chat_template.replace(
            "{{- '<|im_start|>'", "{%- if message.role != 'system' %}{{- '<|im_start|>'"
        ).replace("'<|im_end|>' + '\n' }}", "'<|im_end|>' + '\n' }}{%- endif %}")
    if template == "plain":
        said = {"template": "plain"}
    found = made(tokenizer, **said)
    assert len(found.notes) == 1
    assert "in front of the user's text" in found.notes[0]
    assert ("plain" in found.notes[0]) == (template == "plain")
    text = found.encoded["negative"]["rendered"][1]
    assert "Be strict.\n\nIs 2 right?" in text
    assert text == "Be strict.\n\nIs 2 right?" or template != "plain"
    assert "system" not in text


@pytest.mark.parametrize(("of_study", "of_personas"), [("plain", "chat"), ("chat", "plain")])
def test_personas_may_be_rendered_where_other_prompts_are_not(of_study: str, of_personas: str) -> None:
    """Raw clean and label prompts with templated personas, and the other way round."""
    usual = SPEC.model_copy(update={"template": "prompts"})
    assert "template" not in usual.model_dump()
    spec = SPEC.model_copy(update={"template": of_personas})
    found = made(chatml(), spec, template=of_study)
    wanted = {
        "chat": "<|im_start|>system\nYou agree.<|im_end|>\n<|im_start|>user\nIs 1 right?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "plain": "You agree.\n\nIs 1 right?",
    }
    assert found.encoded["positive"]["rendered"][0] == wanted[of_personas]
    assert made(chatml(), usual, template=of_study).encoded["positive"]["rendered"][0] == wanted[of_study]


def test_the_start_token_is_bos_or_without_one_eos() -> None:
    tokenizer = llama3()
    assert made(tokenizer).start == tokenizer.bos_token_id
    chat = chatml()
    assert chat.bos_token_id is None
    assert made(chat).start == chat.eos_token_id


def test_a_second_set_of_prompts_carries_the_label() -> None:
    """Of either split, without those that build bases; nothing else changes."""
    table = prompts(30)
    plain = SubspacesSpec.model_validate(SPEC.model_dump() | {"where": {"category": "a"}})
    spec = SubspacesSpec.model_validate(plain.model_dump() | {"probe": {"category": "b"}})
    fit, evaluate = choose_rows(table, spec, 0)
    np.testing.assert_array_equal(fit, choose_rows(table, plain, 0)[0])
    np.testing.assert_array_equal(evaluate, np.flatnonzero((table["category"] == "b").to_numpy()))
    assert set(table["split"].gather(evaluate)) == {"train", "validation"}
    assert "probe" not in plain.model_dump()
    every = SubspacesSpec.model_validate(SPEC.model_dump() | {"probe": {"category": "b"}})
    fit, evaluate = choose_rows(table, every, 0)
    assert not set(fit.tolist()) & set(evaluate.tolist())
    assert set(table["split"].gather(evaluate)) == {"validation"}, "train prompts build bases"
    for probe, match in (({"category": "c"}, "subspaces.probe names a category"), ({"text": "^none"}, "few")):
        wrong = SubspacesSpec.model_validate(SPEC.model_dump() | {"probe": probe})
        with pytest.raises(PromptsError, match=match) as raised:
            choose_rows(table, wrong, 0)
        assert "subspaces.probe" in str(raised.value)


def test_prompts_come_from_their_splits_and_categories() -> None:
    table = prompts(200)
    fit, evaluate = choose_rows(table, SPEC, 0)
    assert (len(fit), len(evaluate)) == (40, 40)
    assert set(table["split"].gather(fit)) == {"train"}
    assert set(table["split"].gather(evaluate)) == {"validation"}
    assert (np.diff(fit) > 0).all()
    assert not np.array_equal(fit, np.flatnonzero((table["split"] == "train").to_numpy())[:40])  # drawn
    np.testing.assert_array_equal(choose_rows(table, SPEC, 0)[0], fit)
    assert not np.array_equal(choose_rows(table, SPEC, 1)[0], fit)
    only = SubspacesSpec.model_validate(SPEC.model_dump() | {"where": {"category": "b"}, "fit": 1000})
    fit, evaluate = choose_rows(table, only, 0)
    assert set(table["category"].gather([*fit, *evaluate])) == {"b"}
    assert len(fit) == table.filter((pl.col("category") == "b") & (pl.col("split") == "train")).height


@pytest.mark.parametrize(
    ("where", "n", "said"),
    [
        ({"category": "c"}, 12, r"where names a category that no prompt has.*a, b.*'c'"),
        ({"language": "zh"}, 12, r"where names a language that no prompt has.*en.*'zh'"),
        (
            {"text": "^Is [1245] "},
            12,
            r"to evaluate.*at least 2 of the validation split that.*0 of 12",
        ),
        (None, 3, r"too few prompts to evaluate.*at least 2 of the validation split.*1 of 3"),
        (None, 4, None),
    ],
)
def test_prompts_that_there_are_not_are_named(where: Any, n: int, said: str | None) -> None:
    spec = SubspacesSpec.model_validate(SPEC.model_dump() | {"where": where})
    table = prompts(n)
    if said is None:
        assert len(choose_rows(table, spec, 0)[1]) == 2
        return
    with pytest.raises(PromptsError, match="(?s)" + said):
        choose_rows(table, spec, 0)


def test_a_persona_that_makes_a_prompt_too_long_is_an_error() -> None:
    spec = SPEC.model_copy(update={"positive": ("You agree. " * 400, "x")})
    with pytest.raises(PromptsError, match="longer than the model's context"):
        made(chatml(), spec)


BASIC: dict[str, Any] = {
    "name": "s",
    "models": {"base": {"hub": "a/b"}, "tuned": {"hub": "a/c"}, "other": {"hub": "a/d"}},
    "prompts": {"files": []},
    "contrasts": {"more": {"plus": "tuned", "minus": "other"}},
}


def study(folder: Path, **subspaces: Any) -> Study:
    (folder / "p.jsonl").write_text('{"id": "a", "text": "b"}')
    given = {"positive": "Yes.", "negative": "No."} | subspaces
    return Study.from_dict(BASIC | {"prompts": {"files": ["p.jsonl"]}, "subspaces": given}, folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"positive": ["a", "b"]}, "as many positive as negative personas: 2 and 1"),
        ({"positive": []}, "subspaces.positive"),
        ({"negative": "  "}, "says something"),
        ({"deltas": ["tuned", "nobody"]}, "'nobody' is not in the study; known are tuned, other, more"),
        ({"deltas": "base"}, "'base' is the first model"),
        ({"deltas": ["more", "more"]}, "each weight change once"),
        ({"fit": 1}, "greater than or equal to 2"),
        ({"evaluate": 1}, "greater than or equal to 2"),
        ({"persona": "x"}, "unknown key 'subspaces.persona'"),
        ({"where": {}}, "at least one of 'category', 'language' and 'text'"),
    ],
)
def test_a_wrong_section_is_refused(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError) as error:
        study(tmp_path, **given)
    assert said in str(error.value)


def test_all_that_changes_a_number_is_in_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    seen = {}
    cases: dict[str, dict[str, Any]] = {
        "as is": {},
        "positive": {"positive": "Yes!"},
        "negative": {"negative": "No!"},
        "deltas": {"deltas": ["tuned"]},
        "order": {"deltas": ["other", "tuned"]},
        "where": {"where": {"category": "a"}},
        "fit": {"fit": 39},
        "evaluate": {"evaluate": 39},
        "candidates": {"candidates": "mine.py"},
    }
    for name, given in cases.items():
        seen[study(tmp_path, **given).fingerprint()] = name
    (tmp_path / "mine.py").write_text("x = 2")
    changed = study(tmp_path, candidates="mine.py")
    seen[changed.fingerprint()] = "its content"
    assert len(seen) == len(cases) + 1
    (tmp_path / "moved.py").write_text("x = 2")
    moved = study(tmp_path, candidates="moved.py")
    assert moved.fingerprint() == changed.fingerprint()
    assert Study.from_json(moved.to_json()).fingerprint() == moved.fingerprint()
    lines = diff_studies(study(tmp_path).to_json(), changed.to_json())
    assert len(lines) == 1
    assert lines[0].startswith("content.subspaces.candidates: (absent)")


def test_a_study_without_the_section_keeps_its_fingerprint(tmp_path: Path) -> None:
    with_it = study(tmp_path).to_json()
    data = {key: value for key, value in with_it.items() if key != "subspaces"}
    without = Study.from_json(data)
    assert without.subspaces is None
    stored = without.to_json()
    old = {key: value for key, value in stored.items() if key != "subspaces"}  # as written before
    assert not diff_studies(old, stored)
    assert diff_studies(old, with_it)


def test_a_missing_file_of_candidates_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"subspaces\.candidates names something that isn't there"):
        study(tmp_path, candidates="mine.py").check_files()


def test_a_persona_that_makes_a_prompt_too_long_is_named_as_such() -> None:
    wordy = SubspacesSpec(positive=("You agree.",), negative=("You check every claim. " * 200,))
    with pytest.raises(
        PromptsError, match=r"negative persona.*'p1'.*at most 512.*shorten subspaces\.negative"
    ):
        made(chatml(), wordy)


def test_a_first_persona_that_is_too_long_does_not_pass_for_a_template_without_system_messages() -> None:
    tokenizer = chatml()
    how = PromptsSpec.model_validate({"files": ["x.jsonl"]})
    bare = subspace_prompts(prompts(), tokenizer, how, SPEC, seed=0, max_length=512)
    longest = max(len(ids) for persona in ("positive", "negative") for ids in bare.token_ids(persona))
    # A persona before the user's text would fit, as it needs no turn of its own.
    with pytest.raises(PromptsError, match="persona of"):
        subspace_prompts(prompts(), tokenizer, how, SPEC, seed=0, max_length=longest - 1)
