"""Published prompt sets read as they are: translated problems, safety prompts, multiple choice, phrases.

Needs a folder with the sets: the variable PATCHBAY_DATA, else ../shared/data beside the repository.
"""

from __future__ import annotations

import csv
import json
import os
import tomllib
from pathlib import Path

import polars as pl
import pytest

from engine.prompts.table import assign_splits, read_prompts
from engine.study.study import Study

pytestmark = pytest.mark.reference
DATA = Path(os.environ.get("PATCHBAY_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def folder(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no {name} in {DATA}: set PATCHBAY_DATA to a folder that has it")
    return DATA / name


def read(home: Path, prompts: str) -> pl.DataFrame:
    text = f'name = "s"\n[models.m]\nhub = "none"\n[prompts]\n{prompts}\n'
    return read_prompts(Study.from_dict(tomllib.loads(text), home).prompts)


def test_translated_problems_are_paired_row_by_row() -> None:
    home = folder("mgsm")
    table = read(
        home,
        """
        files = [{path = "mgsm_en.tsv", language = "en"}, {path = "mgsm_zh.tsv", language = "zh"}]
        columns = {text = 1, answer = 2}
        ids = "row"
        paired_by_row = true
        """,
    )
    for language in ("en", "zh"):
        lines = (home / f"mgsm_{language}.tsv").read_text(encoding="utf-8").splitlines()
        part = table.filter(language=language)
        assert part["text"].to_list() == [line.split("\t")[0] for line in lines]
        assert part["answer"].to_list() == [line.split("\t")[1] for line in lines]
    answers = table.group_by("pair_id").agg(pl.len(), pl.col("answer").str.replace_all(",", "").n_unique())
    assert answers.height == 250
    assert set(answers["len"]) == {2}
    assert set(answers["answer"]) == {1}, "both languages of a problem have one answer"
    split = assign_splits(table, 0.3, seed=0)
    assert split.group_by("pair_id").agg(pl.col("split").n_unique())["split"].max() == 1


def test_safety_prompts_are_filtered_by_kind() -> None:
    home = folder("xstest")
    settings = """
        files = [{path = "xstest_prompts.csv", language = "en"}]
        columns = {text = "prompt", category = "type"}
        """
    table = read(home, settings)
    with (home / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert table["text"].to_list() == [row["prompt"] for row in rows]
    assert table["label"].to_list() == [row["label"] for row in rows]
    assert table.filter(label="safe").height == 250
    kept = read(home, settings + 'include = {category = ["homonyms", "figurative_language"]}')
    assert kept.height == sum(row["type"] in ("homonyms", "figurative_language") for row in rows) > 0
    without = read(home, settings + 'exclude = {text = "(?i)kill"}')
    assert without.height == sum("kill" not in row["prompt"].lower() for row in rows) < len(rows)


def test_multiple_choice_in_three_languages_shares_its_stems() -> None:
    home = folder("sycophancy_en_ru_kk")
    table = read(
        home,
        """
        files = [{path = "test_en.jsonl", language = "en"}, "test_ru.jsonl", "test_kk_v2.jsonl"]
        ids = "row"
        [prompts.columns]
        text = "question"
        pair_id = "stem_id"
        category = "domain"
        choices = "options"
        answer = "correct_option"
        """,
    )
    assert table["language"].value_counts().sort("language").rows() == [("en", 300), ("kk", 300), ("ru", 300)]
    assert table.group_by("pair_id").len()["len"].to_list() == [3] * 300
    first = json.loads((home / "test_ru.jsonl").read_text(encoding="utf-8").split("\n")[0])
    row = table.row(by_predicate=pl.col("id") == "test_ru:1", named=True)
    assert row["choices"] == list(first["options"].values())
    assert row["answer"] == first["correct_option"]


def test_phrases_under_the_keys_of_one_object() -> None:
    home = folder("activation_steering_refusal")
    names = ("compliant_responses", "non_compliant_responses")
    files = ", ".join(f'{{path = "behavior_refusal.json", key = "{n}", category = "{n}"}}' for n in names)
    table = read(home, f'files = [{files}]\nids = "row"\nlimit = 40')
    assert table["category"].value_counts().sort("category")["count"].to_list() == [20, 20]
    data = json.loads((home / "behavior_refusal.json").read_text(encoding="utf-8"))
    assert set(table.filter(category=names[0])["text"]) <= set(data[names[0]])
