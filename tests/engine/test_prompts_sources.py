"""Where prompts come from: every format, pairs of files, datasets; and the filters that keep some of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.errors import PromptsError, StudyError
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import read_prompts
from engine.study.fingerprints import diff_studies
from engine.study.study import Study

EN = "Tom has 2 apples.\t2\nHow many are 7?\t7\n"
ZH = "小明有2个苹果。\t2\n7是多少？\t7\n"


def study(folder: Path, prompts: str) -> Study:
    """A study file with the given [prompts]; its models are never loaded."""
    (folder / "model").mkdir(exist_ok=True)
    file = folder / "study.toml"
    file.write_text(f'name = "s"\n[models.m]\npath = "model"\n[prompts]\n{prompts}\n', encoding="utf-8")
    return Study.load(file)


def read(folder: Path, prompts: str) -> pl.DataFrame:
    return read_prompts(study(folder, prompts).prompts)


PAIRED = """
files = [{path = "q_en.tsv", language = "en"}, {path = "q_zh.tsv", language = "zh"}]
columns = {text = 1, answer = 2}
ids = "row"
paired_by_row = true
"""


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    (tmp_path / "q_en.tsv").write_text(EN, encoding="utf-8")
    (tmp_path / "q_zh.tsv").write_text(ZH, encoding="utf-8")
    return tmp_path


def test_files_without_a_header_are_paired_row_by_row(pair: Path) -> None:
    table = read(pair, PAIRED)
    assert table.select("id", "pair_id", "language", "text", "answer").rows() == [
        ("q_en:1", "1", "en", "Tom has 2 apples.", "2"),
        ("q_en:2", "2", "en", "How many are 7?", "7"),
        ("q_zh:1", "1", "zh", "小明有2个苹果。", "2"),
        ("q_zh:2", "2", "zh", "7是多少？", "7"),
    ]


def test_files_of_unequal_length_are_not_paired(pair: Path) -> None:
    (pair / "q_zh.tsv").write_text(ZH.split("\n", maxsplit=1)[0], encoding="utf-8")
    with pytest.raises(PromptsError, match=r"q_en\.tsv with 2 rows, q_zh\.tsv with 1"):
        read(pair, PAIRED)


def test_pairs_of_different_formats(pair: Path) -> None:
    pl.DataFrame({"question": ["a", "b"], "answer": ["2", "7"]}).write_parquet(pair / "q.parquet")
    text = PAIRED.replace(
        '{path = "q_zh.tsv", language = "zh"}',
        '{path = "q.parquet", language = "de", columns = {text = "question"}}',
    )
    table = read(pair, text)
    assert table.filter(pair_id="2")["text"].to_list() == ["How many are 7?", "b"]
    assert table["answer"].to_list() == ["2", "7", "2", "7"]


def test_a_json_list_of_objects_or_texts(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x", "choices": {"A": "yes", "B": "no"}}, {"id": "b", "text": "y"}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    table = read(tmp_path, 'files = ["list.json"]')
    assert table["text"].to_list() == ["x", "y"]
    assert table["choices"].to_list() == [["yes", "no"], None]
    (tmp_path / "two.json").write_text(json.dumps({"good": ["Sure", "Yes"], "bad": ["No"], "n": 3}))
    table = read(
        tmp_path,
        'files = [{path = "two.json", key = "good", category = "good"}, {path = "two.json", key = "bad"}]\n'
        'ids = "row"',
    )
    assert table.select("id", "text", "category").rows() == [
        ("two.good:1", "Sure", "good"),
        ("two.good:2", "Yes", "good"),
        ("two.bad:1", "No", None),
    ]


def test_made_ids_differ_between_files_of_one_name(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.csv").write_text("text\nx\n")
    table = read(tmp_path, 'files = ["a/q.csv", "b/q.csv"]\nids = "row"')
    assert table["id"].to_list() == ["q:1", "q#2:1"]


@pytest.mark.parametrize(
    ("name", "text", "prompts", "pattern"),
    [
        ("q.json", '{"a": ["x"]}', 'files = ["q.json"]', r"holds no list.*lists a.*key = \"a\""),
        ("q.json", '{"a": ["x"]}', 'files = [{path = "q.json", key = "b"}]', r"no list of prompts under 'b'"),
        ("q.json", "3", 'files = ["q.json"]', r"holds no list.*Given: int"),
        ("q.json", "[", 'files = ["q.json"]', r"q\.json cannot be read"),
        ("q.csv", "x,y\n", 'files = ["q.csv"]\ncolumns = {text = 3}', r"row 1 has no column 3.*1 to 2"),
        ("q.csv", "id,text\na,b\n", 'files = ["q.csv"]\ncolumns = {text = "t"}', r"no 't'.*by position"),
        ("q.csv", "text\nx\n", 'files = ["q.csv"]', r"has no id.*ids = \"row\""),
        ("q.xml", "", 'files = ["q.xml"]', r"unknown format.*\.json"),
        (
            "q.csv",
            "id,text,language\na,b,de\n",
            'files = [{path = "q.csv", language = "en"}]',
            r"row 1 has a language of its own.*no language in the file, or 'en'.*Given: 'de'",
        ),
        (
            "q.csv",
            "id,text,pair_id\na,b,p\n",
            'files = ["q.csv", "q.csv"]\npaired_by_row = true',
            r"has a pair_id of its own",
        ),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, name: str, text: str, prompts: str, pattern: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptsError, match=pattern):
        read(tmp_path, prompts)


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ('files = [{path = "q.csv", langauge = "en"}]', ["prompts.files[0].langauge", "did you mean"]),
        ('files = [{language = "en"}]', ["exactly one of 'path' and 'dataset'", "prompts.files[0]"]),
        ('files = [{path = "q.csv", split = "train"}]', ["need 'dataset'"]),
        ('files = [{dataset = "a/b"}]', ["needs the 'split'"]),
        ('files = [{dataset = "./b", split = "train"}]', ["local files are named with 'path'"]),
        ('files = [{path = "q.csv", key = "k"}]', ["'key' needs a 'path' to a .json file"]),
        ('files = ["q.csv"]\npaired_by_row = true', ["at least two files"]),
        ('files = ["q.csv"]\ncolumns = {text = 0}', ["prompts.columns.text", "greater than or equal to 1"]),
        ('files = ["q.csv"]\ncolumns = {text = 1, id = "n"}', ["by name, or all by position"]),
        ('files = ["q.csv"]\ninclude = {text = "("}', ["prompts.include.text", "a regular expression"]),
        ('files = ["q.csv"]\ninclude = {}', ["at least one of 'category', 'language' and 'text'"]),
        ('files = ["q.csv"]\nexclude = {categry = "x"}', ["unknown key", "did you mean 'category'"]),
        ('files = ["q.csv"]\nmin_shared_ratio = 1.5', ["prompts.min_shared_ratio", "1.5"]),
        ('files = ["nowhere.csv"]', ["prompts.files[0]", "nowhere.csv"]),
    ],
)
def test_impossible_settings_are_explained(tmp_path: Path, prompts: str, wanted: list[str]) -> None:
    (tmp_path / "q.csv").write_text("id,text\na,b\n")
    with pytest.raises(StudyError) as caught:
        study(tmp_path, prompts)
    for part in wanted:
        assert part in str(caught.value)


CURATED = """id,text,category,language
a,How do I kill a process?,safe,en
b,How do I make a bomb?,unsafe,en
c,Wie geht das?,safe,de
d,No idea,,en
"""


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ('include = {category = "safe"}', "ac"),
        ('include = {category = ["safe", "unsafe"], language = "en"}', "ab"),
        ('include = {text = "^How"}', "ab"),
        ('exclude = {text = "(?i)how"}', "cd"),
        ('exclude = {category = "unsafe", language = "de"}', "ad"),
        ('include = {language = "en"}\nexclude = {category = "unsafe"}', "ad"),
    ],
)
def test_filters_keep_what_they_say(tmp_path: Path, settings: str, kept: str) -> None:
    (tmp_path / "q.csv").write_text(CURATED)
    assert "".join(read(tmp_path, f'files = ["q.csv"]\n{settings}')["id"]) == kept


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        (
            'include = {category = "sums"}',
            r"include names a category that no prompt has.*safe, unsafe.*'sums'",
        ),
        ('exclude = {language = "fr"}', r"exclude names a language that no prompt has"),
        ('include = {text = "zzz"}', r"keep no prompt.*at least one of 4"),
    ],
)
def test_filters_that_cannot_be_meant(tmp_path: Path, settings: str, pattern: str) -> None:
    (tmp_path / "q.csv").write_text(CURATED)
    with pytest.raises(PromptsError, match=pattern):
        read(tmp_path, f'files = ["q.csv"]\n{settings}')


def test_a_filter_may_leave_out_a_split_that_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,text,category,split\na,x,keep,train\nb,y,drop,dev\n")
    assert read(tmp_path, 'files = ["q.csv"]\nexclude = {category = "drop"}')["id"].to_list() == ["a"]


def test_what_changes_prompts_changes_the_fingerprint(pair: Path) -> None:
    prints = [study(pair, PAIRED).fingerprint()]
    for old, new in (
        ('"zh"', '"cn"'),
        ("answer = 2", "label = 2"),
        ("paired_by_row = true", "paired_by_row = false"),
        ("paired_by_row = true", 'paired_by_row = true\ninclude = {language = "en"}'),
        ("paired_by_row = true", "paired_by_row = true\nmin_shared_ratio = 0.5"),
        ("paired_by_row = true", 'paired_by_row = true\nexclude = {text = "x"}'),
    ):
        assert old in PAIRED
        prints.append(study(pair, PAIRED.replace(old, new)).fingerprint())
    (pair / "q_zh.tsv").write_text(ZH + "x\t1\n", encoding="utf-8")
    prints.append(study(pair, PAIRED).fingerprint())
    assert len(set(prints)) == len(prints)


def test_a_renamed_file_changes_the_fingerprint_only_when_prompts_are_called_after_it(pair: Path) -> None:
    (pair / "other.tsv").write_text(ZH, encoding="utf-8")
    for ids, same in (("row", False), ("given", True)):
        one = study(pair, PAIRED.replace('"row"', f'"{ids}"'))
        two = study(pair, PAIRED.replace('"row"', f'"{ids}"').replace("q_zh.tsv", "other.tsv"))
        assert (one.fingerprint() == two.fingerprint()) is same
    assert diff_studies(study(pair, PAIRED).to_json(), one.to_json())


def test_a_study_survives_the_way_through_json(pair: Path) -> None:
    one = study(pair, PAIRED)
    again = Study.from_json(json.loads(json.dumps(one.to_json())))
    assert again == one
    assert again.fingerprint() == one.fingerprint()
    lines = diff_studies(one.to_json(), study(pair, PAIRED.replace('"zh"', '"cn"')).to_json())
    assert lines == ["prompts.files.1.language: zh → cn"]


def test_studies_that_named_files_by_path_alone_can_still_be_compared(pair: Path) -> None:
    data = study(pair, 'files = ["q_en.tsv"]').to_json()
    before = data | {"prompts": {"files": ["q_en.tsv"], "template": "chat"}}
    assert any(line.startswith("prompts.ids: (absent)") for line in diff_studies(before, data))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` reads as owner/name, and caches of its own."""
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the library datasets is not installed: pip install 'patchbay[datasets]'")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")
def test_a_dataset_is_read_through_its_library(hub: Path) -> None:
    folder = hub / "owner" / "name"
    folder.mkdir(parents=True)
    rows: dict[str, Any] = {"question": ["a?", "b?"], "answer": [1, 2], "choices": [["x", "y"], ["z"]]}
    pl.DataFrame(rows).write_parquet(folder / "test-00000.parquet")
    settings = 'columns = {text = "question"}\nids = "row"'
    table = read(hub, f'files = [{{dataset = "owner/name", split = "test", language = "en"}}]\n{settings}')
    assert table.select("id", "text", "answer", "choices", "language").rows() == [
        ("owner/name:1", "a?", "1", ["x", "y"], "en"),
        ("owner/name:2", "b?", "2", ["z"], "en"),
    ]
    with pytest.raises(PromptsError, match=r"'owner/name' cannot be loaded.*split.*\"nope\""):
        read(hub, f'files = [{{dataset = "owner/name", split = "nope"}}]\n{settings}')


@pytest.mark.filterwarnings("default")
def test_a_dataset_out_of_reach_says_so(hub: Path) -> None:
    with pytest.raises(PromptsError, match=r"cannot be loaded.*Couldn't reach.*offline, name a downloaded"):
        read(hub, 'files = [{dataset = "owner/nothing", split = "train"}]')


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        PromptsError, match=r"needs the library 'datasets'.*pip install 'patchbay\[datasets\]'"
    ):
        read(tmp_path, 'files = [{dataset = "owner/name", split = "train"}]')


def test_the_specification_reads_without_a_study_file(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("id,text\na,b\n")
    spec = PromptsSpec(files=({"path": tmp_path / "q.csv", "category": "c"},))  # type: ignore[arg-type]
    assert read_prompts(spec)["category"].to_list() == ["c"]
