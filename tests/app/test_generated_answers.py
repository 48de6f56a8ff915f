"""Answers that a model of the study gives while the store is built, against plain Hugging Face."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from streamlit.testing.v1 import AppTest
from tiny_study import save_model, write_study
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import precompute
from app.build import answers as answers_module
from app.build import plan_times
from app.build.answers import GENERATED_TABLE, stored_answers
from app.build.build import build
from app.build.prepare import Prepared, describe_plan
from engine.errors import PromptsError, StoreError, StudyError
from engine.passes.cost import BLOCK_SECONDS
from engine.prompts.generated import ask, text_of
from engine.prompts.spec import PromptsSpec
from engine.study.study import Study
from store.reader import Store
from store.writer import StoreWriter

MOST = 10
POSITIONS: list[Any] = [
    "decision",
    "assistant_start",
    "first_answer",
    "answer_mean",
    {"name": "opening", "regex": "(?s).", "within": "answer"},
]


def study_of(folder: Path, *, positions: Any = POSITIONS, models: Any = None, **prompts: Any) -> Study:
    answers = {"generate": "tuned", "max_tokens": MOST}
    data = {
        "name": "generated",
        "models": models or {name: {"path": name, "device": "cpu"} for name in ("base", "tuned")},
        "prompts": {"files": ["prompts.jsonl"], "answers": answers, **prompts},
        "capture": {"positions": positions, "dtype": "float32", "unit_prompts": 4, "batch_tokens": 256},
    }
    return Study.from_dict(data, folder)


def asked(row: dict[str, Any], tokenizer: Any) -> list[int]:
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["text"]}]
    text = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def said(model: Any, ids: list[int]) -> list[int]:
    """Greedy continuation by Hugging Face, the token that ends it included."""
    one = torch.tensor([ids])
    made = model.generate(one, attention_mask=torch.ones_like(one), do_sample=False, max_new_tokens=MOST,
                          pad_token_id=0)  # fmt: skip
    found: list[int] = made[0, len(ids) :].tolist()
    return found


def speak(folder: Path) -> None:
    """Gives a model an unembedding under which the likeliest token is always a piece of a word."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    words = [re.fullmatch("Ġ?[A-Za-z]+", token) is not None for token in
             tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]  # fmt: skip
    torch.manual_seed(5)
    with torch.no_grad():
        model.lm_head.weight.normal_().mul_(torch.tensor(words)[:, None])
        model.model.embed_tokens.weight.mul_(4)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models; the second one says words, and ends answers with one that it gives early in one of them."""
    folder = tmp_path_factory.mktemp("generated")
    save_model(folder / "base", max_position_embeddings=256)
    save_model(folder / "tuned", seed=1, tie_word_embeddings=False, max_position_embeddings=256)
    speak(folder / "tuned")
    write_study(folder, pairs=7)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned").eval()
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    told = [said(model, asked(row, tokenizer)) for row in rows]
    later = {token for one in told for token in one[2:]} - {one[0] for one in told}
    ends = min(sorted(later), key=lambda token: abs(sum(token in one for one in told) - 5))
    GenerationConfig(eos_token_id=[ends]).save_pretrained(folder / "tuned")
    return folder


@pytest.fixture(scope="module")
def store(folder: Path) -> Store:
    return build(study_of(folder, system="Be brief."), folder / "store", quiet=True)


def test_every_model_reads_the_named_models_own_greedy_answer(folder: Path, store: Store) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    models = {name: AutoModelForCausalLM.from_pretrained(folder / name).eval() for name in ("base", "tuned")}
    ends = models["tuned"].generation_config.eos_token_id
    table = {row["id"]: row for row in store.table(GENERATED_TABLE).iter_rows(named=True)}
    assert len(table) == 14
    ended, otherwise = 0, 0
    for number, row in enumerate(store.prompts.iter_rows(named=True)):
        ids = asked(row, tokenizer)
        made = said(models["tuned"], ids)
        whole = made[-1] not in ends
        made = made if whole else made[:-1]
        assert (table[row["id"]]["token_ids"], table[row["id"]]["ended"]) == (made, not whole), row["id"]
        text = tokenizer.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        assert row["generated_answer"] == table[row["id"]]["text"] == text
        assert (row["generated_by"], row["generated_ended"]) == ("tuned", not whole)
        ended += not whole

        question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": row["text"]}]
        turns = [*question, {"role": "assistant", "content": text}]
        rendered = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False) + text
        assert tokenizer.apply_chat_template(turns, tokenize=False).startswith(rendered)
        forced = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
        otherwise += forced["input_ids"] != [*ids, *made]
        start, end = len(rendered) - len(text.lstrip()), len(rendered.rstrip())
        inside = [i for i, (a, b) in enumerate(forced["offset_mapping"]) if a < end and b > start]
        for name, model in models.items():
            assert store.tokens(name)["token_ids"][number].to_list() == forced["input_ids"]
            with torch.no_grad():
                hidden = model.model(torch.tensor([forced["input_ids"]]), output_hidden_states=True)
            state = hidden.hidden_states[1][0].numpy()
            wanted = {"decision": [-1], "first_answer": inside[:1], "answer_mean": inside}
            wanted["opening"] = inside[:1]  # no character of these answers has two tokens
            for position, places in wanted.items():
                found = store.activations(name, "resid_post", 0, position)[number]
                np.testing.assert_allclose(found, state[places].mean(0), atol=2e-5, err_msg=position)
    assert 0 < ended < len(table), "answers must end by themselves and be cut"
    notes = store.manifest["prompt_notes"]
    cut = (
        f"answers are those of 'tuned', greedily, of at most {MOST} tokens; {14 - ended} of 14 were cut there"
    )
    assert notes[0] == cut
    assert [note for note in notes if "read as other tokens" in note] == (
        [f"{otherwise} of 14 answers are read as other tokens than 'tuned' gave: a tokenizer may write the "
         "same text otherwise, and templates may trim it"] if otherwise else []
    )  # fmt: skip


def files(path: Path) -> dict[str, bytes]:
    kept = (file for file in path.rglob("*") if file.is_file() and file.name != "manifest.json")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in kept}


@pytest.mark.parametrize("torn", [b"", b'{"part": 1, "said": [[[5'])
def test_a_killed_generation_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bytes
) -> None:
    monkeypatch.setattr(answers_module, "TOGETHER", 5)
    study, real, calls = study_of(folder, system="Be brief."), answers_module.generate, []

    def counted(lm: Any, token_ids: Any, **options: Any) -> Any:
        calls.append(len(token_ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(lm, token_ids, **options)

    whole = build(study, tmp_path / "whole", quiet=True)
    monkeypatch.setattr(answers_module, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        build(study, tmp_path / "killed", quiet=True)
    (kept,) = (tmp_path / "killed").iterdir()
    kept.write_bytes(kept.read_bytes() + torn)
    build(study, tmp_path / "killed", quiet=True)
    assert calls == [5, 5, 5, 4], "the first part is not asked for again"
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".[tb]*-*"))
    assert Store(tmp_path / "killed").prompts.equals(whole.prompts)


def test_a_capture_goes_on_with_the_stored_answers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    study = study_of(folder, system="Be brief.")
    path = tmp_path / "store"
    real = build.__globals__["capture_into"]
    calls = []

    def stopped(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*given)

    monkeypatch.setitem(build.__globals__, "capture_into", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(study, path, quiet=True)
    monkeypatch.setattr(answers_module, "generate", None)  # nothing is generated again
    build(study, path, quiet=True)
    assert files(path) == files(Path(str(store.path)))
    other = study_of(folder, system="Be brief.", answers={"generate": "tuned", "max_tokens": 3})
    with pytest.raises(StoreError, match=r"another study.*prompts.answers.max_tokens: 10 → 3"):
        build(other, path, quiet=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match="is not a store and not empty"):
        build(other, tmp_path / "else", quiet=True)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, StoreError])
@pytest.mark.parametrize("before", ["_lay_out", "write_table", "set_state"])
def test_answers_outlive_a_stop_before_their_table_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: Any, before: str, store: Store
) -> None:
    """A kill leaves what is there, a refusal the answers alone; both go on without generating again."""
    study, path = study_of(folder, system="Be brief."), tmp_path / "new" / "store"

    def stop(*_: Any, **__: Any) -> None:
        raise stopped("stopped", expected="", given="", next_step="") if stopped is StoreError else stopped

    with monkeypatch.context() as patch:
        if before == "set_state":
            patch.setitem(build.__globals__, "_check_values", stop)
        else:
            patch.setattr(StoreWriter, before, stop)
        with pytest.raises(stopped):
            build(study, path, quiet=True)
    found = [file.name for file in path.iterdir()]
    kept = [name for name in found if name.startswith(".before-answers-")]
    assert len(kept) == 1
    assert (found == kept) == (stopped is StoreError)
    monkeypatch.setattr(answers_module, "generate", None)  # nothing is generated again
    build(study, path, quiet=True)
    assert files(path) == files(Path(str(store.path)))


def test_a_refusal_before_anything_is_answered_leaves_no_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise StoreError("no", expected="", given="", next_step="")

    monkeypatch.setattr(answers_module, "load", refused)
    with pytest.raises(StoreError, match="no"):
        build(study_of(folder, system="Be brief."), tmp_path / "new" / "store", quiet=True)
    assert not (tmp_path / "new").exists()


def test_an_end_that_is_kept_stands_behind_the_answer_not_before_it(folder: Path, tmp_path: Path) -> None:
    """Plain text of a tokenizer that appends EOS: the model answers the text, and EOS follows that."""
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    eos = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[(tokenizer.eos_token, eos)]
    )
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    GenerationConfig.from_pretrained(folder / "tuned").save_pretrained(tmp_path / "tuned")
    models = {"tuned": {"path": str(tmp_path / "tuned"), "device": "cpu"}}
    study = study_of(folder, models=models, template="plain", keep_eos=True, positions=["decision"])
    made = build(study, tmp_path / "store", quiet=True)
    ends, otherwise = model.generation_config.eos_token_id, 0
    for row, read in zip(
        made.prompts.iter_rows(named=True), made.tokens("tuned")["token_ids"].to_list(), strict=True
    ):
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        given = said(model, ids)
        given = given[:-1] if given[-1] in ends else given
        text = tokenizer.decode([*ids, *given], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["text"] + row["generated_answer"] == text.rstrip("\N{REPLACEMENT CHARACTER}")
        assert read == [*tokenizer(text, add_special_tokens=False)["input_ids"], eos]
        otherwise += read != [*ids, *given, eos]
    told = [note for note in made.manifest["prompt_notes"] if "read as other tokens" in note]
    assert [note.split()[0] for note in told] == ([str(otherwise)] if otherwise else [])
    assert otherwise < made.prompts.height


def test_verify_runs_on_the_stored_answers(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        'name = "generated"\n[models.base]\npath = "base"\ndevice = "cpu"\n'
        '[models.tuned]\npath = "tuned"\ndevice = "cpu"\n[prompts]\nfiles = ["prompts.jsonl"]\n'
        f'system = "Be brief."\nanswers = {{generate = "tuned", max_tokens = {MOST}}}\n[capture]\n'
        'positions = ["decision", "assistant_start", "first_answer", "answer_mean", '
        '{name = "opening", regex = "(?s).", within = "answer"}]\n'
        'dtype = "float32"\nunit_prompts = 4\nbatch_tokens = 256\n'
    )
    (folder / "study.toml").write_text(text)
    monkeypatch.setattr(answers_module, "generate", None)
    assert precompute.main([str(folder / "study.toml"), "--store", str(store.path), "--verify"]) == 0
    study = Study.load(folder / "study.toml")
    prepared = Prepared.of(study, stored_answers(study, Path(str(store.path))))
    assert prepared.table.equals(store.prompts)
    capsys.readouterr()


def test_the_plan_reckons_with_answers_as_long_as_they_may_be(folder: Path, store: Store) -> None:
    study = study_of(folder, system="Be brief.")
    prepared = Prepared.of(study)
    plan = describe_plan(prepared)
    assert "answers: tuned gives 14 before anything is captured; what follows takes each as 10" in plan
    taken = plan_times.seconds(prepared, prepared.costs())
    assert taken["answers"] > 0
    assert re.search(r"time: about .* \(start [^,]*, answers \d", plan)
    longer = study_of(folder, system="Be brief.", answers={"generate": "tuned", "max_tokens": 50})
    more = Prepared.of(longer)
    steps = (50 - MOST) * more.shapes["tuned"].n_layers * BLOCK_SECONDS  # one batch
    added = plan_times.seconds(more, more.costs())["answers"] - taken["answers"]
    assert 0.9 * steps < added < steps + 2
    tokens = [len(ids) for ids in prepared.token_ids("tuned")]
    bare = [len(ids) for ids in prepared.asked.token_ids] if prepared.asked else []
    assert sum(bare) + 14 * MOST * 0.5 < sum(tokens) < sum(bare) + 14 * MOST * 1.5
    known = Prepared.of(study, stored_answers(study, Path(str(store.path))))
    assert plan_times.seconds(known, known.costs())["answers"] == 0
    assert "before anything is captured" not in describe_plan(known)


def test_the_plan_refuses_what_cannot_be_answered(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"generate is one of base, tuned, unlike 'tunde'"):
        study_of(folder, answers={"generate": "tunde", "max_tokens": 5})
    with pytest.raises(StudyError, match=r"prompts.answers.max_tokens"):
        study_of(folder, answers={"generate": "tuned", "max_tokens": 0})
    with pytest.raises(StudyError, match=r"prompts.answers.max_token'.*max_tokens"):
        study_of(folder, answers={"generate": "tuned", "max_token": 5})
    save_model(tmp_path / "tuned")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tuned")
    tokenizer.chat_template = None
    (tmp_path / "tuned" / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(tmp_path / "tuned")
    models = {"tuned": {"path": str(tmp_path / "tuned"), "device": "cpu"}}
    with pytest.raises(PromptsError, match="The tokenizer has no chat template"):
        Prepared.of(study_of(folder, models=models))
    assert Prepared.of(study_of(folder, models=models, template="plain", positions=["answer_mean"])).asked
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps({"id": "a", "text": "x", "generated_answer": "y"}) + "\n" + json.dumps(
            {"id": "b", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
        )
    )  # fmt: skip
    files = [str(tmp_path / "prompts.jsonl")]
    with pytest.raises(PromptsError, match="have a column 'generated_answer'"):
        Prepared.of(study_of(folder, files=files))
    (tmp_path / "prompts.jsonl").write_text(
        json.dumps(
            {"id": "b", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
        )
    )
    with pytest.raises(PromptsError, match="'b' ends with the assistant"):
        Prepared.of(study_of(folder, files=files))


def test_prompts_without_room_for_an_answer_are_refused_or_dropped(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "prompts.jsonl").read_text("utf-8")
    words = "Tom " * 200
    lines = rows + "\n" + json.dumps({"id": "long", "pair_id": "long", "text": words.strip()})
    (tmp_path / "prompts.jsonl").write_text(lines, "utf-8")
    files, answers = [str(tmp_path / "prompts.jsonl")], {"generate": "tuned", "max_tokens": 59}
    with pytest.raises(PromptsError, match=r"'long' leaves 'tuned' no room.*1 of 15 prompts"):
        Prepared.of(study_of(folder, files=files, answers=answers))
    prepared = Prepared.of(study_of(folder, files=files, answers=answers, too_long="drop"))
    assert "1 of 15 leave no room for an answer of 59 tokens and are dropped: 'long'" in prepared.remarks
    assert prepared.asked is not None
    assert len(prepared.asked.ids) == 14


def test_answers_of_nothing_are_refused_or_dropped(folder: Path, tmp_path: Path) -> None:
    """A model that ends at once where another one goes on."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tuned")
    model = AutoModelForCausalLM.from_pretrained(folder / "tuned").eval()
    rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text("utf-8").splitlines()]
    firsts = [said(model, asked(row, tokenizer))[0] for row in rows]
    ends = max(set(firsts), key=lambda token: (firsts.count(token) < len(firsts), firsts.count(token)))
    silent = [row["id"] for row, first in zip(rows, firsts, strict=True) if first == ends]
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    GenerationConfig(eos_token_id=[ends]).save_pretrained(tmp_path / "tuned")
    models = {"tuned": {"path": str(tmp_path / "tuned"), "device": "cpu"}}
    ask: dict[str, Any] = {"models": models, "system": "Be brief."}
    with pytest.raises(PromptsError, match=rf"'tuned' answers prompts with nothing.*{len(silent)} of 14"):
        build(study_of(folder, **ask), tmp_path / "store", quiet=True)
    made = build(study_of(folder, **ask, unusable="drop"), tmp_path / "dropped", quiet=True)
    assert set(made.prompts["id"]) == {row["id"] for row in rows} - set(silent)
    assert made.table(GENERATED_TABLE).filter(pl.col("text") == "")["id"].sort().to_list() == sorted(silent)
    assert any(f"{len(silent)} of 14 get no answer from 'tuned'" in n for n in made.manifest["prompt_notes"])


def test_an_answers_text_keeps_the_white_space_it_begins_with_and_no_half_character() -> None:
    class Spaced:
        """Decodes as tokenizers do that drop the white space at the beginning."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", "replace").lstrip()

    assert text_of(Spaced(), list(b"The capital is"), list(" Bern, dès".encode())) == " Bern, dès"
    half = " Bern, é".encode()[:-1]
    assert text_of(Spaced(), list(b"Where?"), list(half)) == " Bern, "


def test_pages_show_such_a_store(store: Store, open_app: Callable[..., AppTest]) -> None:
    for page in ("prompts", "overview", "about"):
        app = open_app(store.path, page)
        said = "\n".join(element.value for element in (*app.markdown, *app.caption))
        assert not app.exception, page
        assert "Something went wrong" not in said, page
    told = " ".join(str(table.value.to_dict()) for table in app.dataframe)
    assert "answers are those of 'tuned', greedily" in told


def test_answers_that_could_cross_the_rotary_switch_are_refused_or_dropped() -> None:
    table = pl.DataFrame({"id": ["short", "near", "long"], "text": ["x"] * 3})
    encoded = pl.DataFrame({"id": table["id"], "token_ids": [[5] * n for n in (20, 45, 60)]})
    spec = PromptsSpec.model_validate({"files": ["p.jsonl"], "answers": {"generate": "m", "max_tokens": 10}})
    with pytest.raises(PromptsError, match=r"'near' leaves 'm' no room.*48 tokens, where its rotary factors"):
        ask(table, encoded, spec, 100, 48, [])
    remarks: list[str] = []
    dropping = spec.model_copy(update={"too_long": "drop"})
    kept, asked_of = ask(table, encoded, dropping, 100, 48, remarks)
    assert kept["id"].to_list() == list(asked_of.ids) == ["short", "long"]
    assert "'near'" in remarks[0]
    assert ask(table, encoded, spec, 100, None, [])[0].height == 3
