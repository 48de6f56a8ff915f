"""Windows' editors begin a UTF-8 file with a mark; every text file that is read may have one."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.live.headless import read_experiments
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import read_prompts
from engine.study.study import Study

MARK = b"\xef\xbb\xbf"
TABLES = {
    "a.jsonl": '{"id": "a", "text": "Tom"}\n{"id": "b", "text": "Ann"}',
    "a.json": '[{"id": "a", "text": "Tom"}, {"id": "b", "text": "Ann"}]',
    "a.csv": "id,text\na,Tom\nb,Ann\n",
    "a.tsv": "id\ttext\na\tTom\nb\tAnn\n",
    "headless.csv": "a,Tom\nb,Ann\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_prompts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(MARK + TABLES[name].encode())
    columns = {"id": 1, "text": 2} if name.startswith("headless") else {}
    spec = PromptsSpec.model_validate({"files": [tmp_path / name], "columns": columns})
    table = read_prompts(spec)
    assert table["id"].to_list() == ["a", "b"]
    assert table["text"].to_list() == ["Tom", "Ann"]


def test_study(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(TABLES["a.jsonl"], encoding="utf-8")
    text = 'name = "x"\n[models.base]\npath = "."\n[prompts]\nfiles = ["a.jsonl"]\n'
    (tmp_path / "study.toml").write_bytes(MARK + text.encode())
    assert Study.load(tmp_path / "study.toml").name == "x"


def test_experiments(tmp_path: Path) -> None:
    text = '{"job": "patch", "target": "a", "source": "b", "component": "resid_post", "layer": 1}'
    (tmp_path / "experiments.json").write_bytes(MARK + text.encode())
    assert read_experiments([str(tmp_path / "experiments.json")]) == read_experiments([text])
