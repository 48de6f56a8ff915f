"""A study with answers and positions of its own: planned, captured, patched at one token, shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest
from tiny_study import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.build.build import build
from app.build.prepare import Prepared, describe_plan
from app.frame.opened import read_facts
from app.live.run import run_live
from engine.errors import PatchError, PromptsError
from engine.patching.spec import Condition
from engine.study.study import Study
from store.reader import Store

Open = Callable[..., AppTest]
PAIRS = 10


def write(folder: Path, positions: list[Any], **prompts: Any) -> Study:
    """Two tiny models and questions with a subject and a reply."""
    for seed, name in enumerate(("base", "tuned")):
        if not (folder / name).exists():
            save_model(folder / name, seed=seed)
    rows = []
    for i in range(PAIRS):
        for language, ask in (("en", f"Tom buys {i} apples. How many?"), ("zh", f"小明有{i}个苹果。")):
            row = {"id": f"{language}{i}", "pair_id": str(i), "language": language, "text": ask}
            place = ask.index(str(i))
            rows.append(row | {"reply": f"Tom has {i}.", "from": place, "to": place + 1})
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = {
        "name": "answers",
        "models": {name: {"path": name, "device": "cpu"} for name in ("base", "tuned")},
        "prompts": {"files": ["prompts.jsonl"], "validation": 0.4, **prompts},
        "capture": {"positions": positions, "dtype": "float32", "unit_prompts": 4},
    }
    return Study.from_dict(data, folder)


POSITIONS: list[Any] = [
    "decision",
    "assistant_start",
    "first_answer",
    "answer_mean",
    {"name": "count", "columns": ["from", "to"]},
    {"name": "name", "regex": "(Tom|小明)", "take": "mean"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    study = write(folder, POSITIONS, answers="reply", system="Be brief.")
    return build(study, folder / "store", quiet=True)


def test_the_store_holds_the_models_own_activations_at_every_position(folder: Path, store: Store) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    for row in store.prompts.with_row_index("row").iter_rows(named=True):
        question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["text"]}]
        answered = [*question, {"role": "assistant", "content": row["reply"]}]
        whole = tokenizer.apply_chat_template(answered, continue_final_message=True, tokenize=False)
        made = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        with torch.no_grad():
            hidden = (
                model.model(torch.tensor([made["input_ids"]]), output_hidden_states=True)
                .hidden_states[1][0]
                .numpy()
            )
        spans = made["offset_mapping"]

        def tokens(piece: str, start: int, spans: Any = spans) -> list[int]:
            end = start + len(piece)
            return [i for i, (a, b) in enumerate(spans) if a < end and b > start]

        text_at = whole.index(row["text"])
        answer = tokens(row["reply"], whole.rindex(row["reply"]))
        number = str(row["id"][2:])
        named = next(name for name in ("Tom", "小明") if name in row["text"])
        wanted = {
            "decision": [len(spans) - 1],
            "assistant_start": tokens("<|im_start|>", whole.rindex("<|im_start|>")),
            "first_answer": answer[:1],
            "answer_mean": answer,
            "count": tokens(number, text_at + row["text"].index(number))[-1:],
            "name": tokens(named, text_at + row["text"].index(named)),
        }
        assert store.table("positions-base").row(row["row"], named=True) == wanted
        for name, places in wanted.items():
            found = store.activations("base", "resid_post", 0, name)[row["row"]]
            np.testing.assert_allclose(found, hidden[places].mean(0), atol=2e-5, err_msg=name)


def test_pages_know_which_positions_are_one_token(store: Store) -> None:
    facts = read_facts(store)
    assert facts.positions == ("decision", "assistant_start", "first_answer", "answer_mean", "count", "name")
    assert facts.averages == ("answer_mean", "name")
    assert facts.tokens == ("decision", "assistant_start", "first_answer", "count")


@pytest.mark.parametrize("position", ["count", "first_answer", "assistant_start"])
def test_one_token_of_the_study_is_patched(store: Store, position: str) -> None:
    own = Condition(
        target="tuned", source="tuned", component="resid_post", layer=1, position=position, kind="self",
        alphas=(1.0,),
    )  # fmt: skip
    _, result = run_live(str(store.path), own)
    assert result.summary["self_check"]["value"] <= result.summary["self_check"]["limit"]
    other = own.model_copy(update={"source": "base", "kind": "literal"})
    _, moved = run_live(str(store.path), other)
    assert max(row["median"] for row in moved.summary["curve"]) > 0


def test_a_mean_and_an_unknown_position_are_not_patched(store: Store) -> None:
    ask = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 1}
    with pytest.raises(PatchError, match="'answer_mean' cannot be patched: it is not one token"):
        Condition(**ask, position="answer_mean")
    for position, given in (("name", "a mean or several tokens"), ("subject", "no position of this store")):
        with pytest.raises(PatchError, match=rf"'{position}' cannot be patched.*count.*{given}"):
            run_live(str(store.path), Condition(**ask, position=position))


def test_pages_take_a_position_of_the_study(store: Store, open_app: Open) -> None:
    for page, position in (("similarity", "name"), ("transport", "answer_mean"), ("patching", "count")):
        app = open_app(store.path, page, position=position)
        said = "\n".join(element.value for element in (*app.markdown, *app.caption))
        assert not app.exception, page
        assert "Something went wrong" not in said, page
        assert "cannot be used" not in said, page
        assert app.query_params["position"] in (position, [position]), page


def test_the_plan_refuses_a_span_that_prompts_do_not_have_and_names_them(folder: Path) -> None:
    study = write(folder, [{"name": "buyer", "regex": "Tom"}])
    with pytest.raises(PromptsError, match=r"'buyer' is not in every prompt.*10 of 20 prompts.*'zh"):
        Prepared.of(study)
    prepared = Prepared.of(write(folder, [{"name": "buyer", "regex": "Tom"}], unusable="drop"))
    assert prepared.table["language"].unique().to_list() == ["en"]
    assert prepared.remarks[0].startswith("10 of 20 lack the position 'buyer' and are dropped: 'zh")
    with pytest.raises(PromptsError, match="all lack the position 'buyer'"):
        Prepared.of(write(folder, [{"name": "buyer", "regex": "nobody"}], unusable="drop"))
    with pytest.raises(PromptsError, match="no position 'first_answer'"):
        Prepared.of(write(folder, ["first_answer"]))


def test_the_plan_and_the_store_say_what_is_dropped_and_unused(folder: Path) -> None:
    study = write(folder, ["decision"], too_long="drop")
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    rows[3] |= {"text": "How many? " * 3000, "system": "Be kind."}
    (folder / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    prepared = Prepared.of(study)
    assert len(prepared.table) == 2 * PAIRS - 1
    plan = describe_plan(prepared)
    assert "note: prompts: 1 of 20 are longer than a model's context and are dropped: 'zh1'" in plan
    assert "the column 'system' is kept but changes no prompt" in plan
    made = build(study, folder / "dropped", quiet=True)
    assert made.manifest["prompt_notes"] == list(prepared.remarks)
    with pytest.raises(PromptsError, match=r"'zh1' is longer than the model's context"):
        Prepared.of(Study.from_json(study.to_json() | {"prompts": {"files": ["prompts.jsonl"]}}))
