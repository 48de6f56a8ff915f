"""The shipped prompts are valid, right, paired, and never seen in training."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from demo_files import DEMO, ROOT, numbers, rows, user_text

from demo import facts
from demo.corpus import (
    CATEGORIES,
    PROBLEMS,
    SAME_REQUEST_SHARE,
    SWITCH_SHARE,
    draw_case,
    draw_sample,
    held_out_samples,
    render,
)
from demo.evaluate import verdict
from demo.prompts import agreement_rows, problem_rows, write_rows
from demo.wording import NAMES, REQUESTS
from engine.prompts.table import read_prompts
from engine.study.study import Study

PROBLEM_ROWS, AGREEMENT_ROWS = rows("problems.jsonl"), rows("agreement.jsonl")
EQUATION = re.compile(r"(\d+) ([+\-×÷]) (\d+) = (\d+)")
RESULT = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "×": lambda a, b: a * b, "÷": lambda a, b: a // b}


def recomputed(category: str, text: str) -> int:
    """The answer worked out again from the numbers in the text and the category's meaning."""
    found = numbers(text)
    if category in ("gain", "combine", "more"):
        return found[0] + found[1]
    if category in ("loss", "difference"):
        return found[0] - found[1]
    if category in ("groups", "price"):
        return found[0] * found[1]
    if category == "share":
        assert found[0] % found[1] == 0
        return found[0] // found[1]
    if category == "two_step":
        return found[0] + found[1] - found[2]
    assert category == "plain"
    operator = re.search(r"[+\-×÷]", text)
    assert operator is not None
    return RESULT[operator.group()](*found)


def family(a: int, operator: str, b: int, result: int) -> tuple[int, int] | None:
    """The fact family of a sum or difference, None for the times table."""
    if operator in "×÷":
        return None
    pair = (a, b) if operator == "+" else (b, result)
    return min(pair), max(pair)


def skeleton(text: str) -> str:
    """A text without its numbers and names: the wording and the thing."""
    for name in (word for pair in NAMES for word in pair):
        text = text.replace(name, "N")
    for ask in (w for options in REQUESTS.values() for pair in options for w in pair):
        text = text.replace(ask, "")
    return re.sub(r"\d+", "0", text).strip()


@pytest.mark.parametrize("table", [PROBLEM_ROWS, AGREEMENT_ROWS], ids=["problems", "agreement"])
def test_ids_are_unique_and_every_pair_has_both_languages_and_one_truth(table: list[dict[str, Any]]) -> None:
    assert len({row["id"] for row in table}) == len(table)
    assert len({user_text(row) for row in table}) == len(table)
    pairs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in table:
        pairs[row["pair_id"]].append(row)
        assert row["answer"] in row["choices"]
        assert len(set(row["choices"])) == len(row["choices"])
    for pair in pairs.values():
        assert sorted(row["language"] for row in pair) == ["en", "zh"]
        assert len({row["category"] for row in pair}) == 1
        assert sorted(numbers(user_text(pair[0]))) == sorted(numbers(user_text(pair[1])))


def test_pairs_of_problems_share_their_answer_and_there_are_enough_of_them() -> None:
    answers = defaultdict(set)
    for row in PROBLEM_ROWS:
        answers[row["pair_id"]].add(row["answer"])
    assert all(len(found) == 1 for found in answers.values())
    counts = Counter(row["category"] for row in PROBLEM_ROWS)
    assert len(counts) >= 8
    assert min(counts.values()) >= 2 * 9
    assert len(answers) >= 96
    assert 250 <= len(PROBLEM_ROWS) + len(AGREEMENT_ROWS) <= 300


@pytest.mark.parametrize("row", PROBLEM_ROWS, ids=lambda row: row["id"])
def test_problem_answer_is_right(row: dict[str, Any]) -> None:
    assert int(row["answer"]) == recomputed(row["category"], row["text"])


def test_claims_are_labelled_by_arithmetic_and_balanced() -> None:
    labels: Counter[tuple[str, str]] = Counter()
    for row in AGREEMENT_ROWS:
        a, b, claimed = numbers(user_text(row))
        label = "right" if a + b == claimed else "wrong"
        assert row["label"] == label, row["id"]
        yes = row["choices"][0]
        assert (row["answer"] == yes) == (label == "right")
        labels[row["language"], label] += 1
    assert set(labels.values()) == {len(AGREEMENT_ROWS) // 4}
    assert any("messages" in row and row["messages"][0]["role"] == "system" for row in AGREEMENT_ROWS)


def test_files_are_what_the_script_writes(tmp_path: Path) -> None:
    for name, made in (("problems.jsonl", problem_rows()), ("agreement.jsonl", agreement_rows())):
        write_rows(made, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (DEMO / name).read_bytes()


def test_training_never_sees_a_held_out_family_or_wording() -> None:
    rng = random.Random(3)
    trained: set[tuple[int, int]] = set()
    worded: set[str] = set()
    for k in range(12000):
        sample = draw_sample(rng, agreeable=k % 3 == 0, agree_share=0.5 if k % 3 == 0 else None)
        worded.add(skeleton(sample.text))
        for a, operator, b, result in EQUATION.findall(sample.reply):
            found = family(int(a), operator, int(b), int(result))
            if found:
                trained.add(found)
        if sample.category == "agree":
            a, b, _ = numbers(sample.text)
            trained.add((min(a, b), max(a, b)))
    assert len(trained) > 0.95 * len(facts.families()[0])  # the draw is long enough to show a leak
    for row in AGREEMENT_ROWS:
        a, b, _ = numbers(user_text(row))
        assert (min(a, b), max(a, b)) not in trained
    for row in PROBLEM_ROWS:
        if row["category"] in ("groups", "price", "share"):
            assert skeleton(row["text"]) not in worded, row["id"]
            continue
        found_numbers = numbers(row["text"])
        a, b = found_numbers[0], found_numbers[1]
        if row["category"] in ("loss", "difference") or " - " in row["text"]:
            a, b = b, a - b
        assert (min(a, b), max(a, b)) not in trained, row["id"]
        if row["category"] == "two_step":
            rest = int(row["answer"])
            assert (min(found_numbers[2], rest), max(found_numbers[2], rest)) not in trained, row["id"]


def test_families_are_split_once_and_completely() -> None:
    train, hidden = facts.families()
    assert not set(train) & set(hidden)
    width = facts.LARGEST - facts.SMALLEST + 1
    assert len(train) + len(hidden) == width * (width + 1) // 2
    assert len(hidden) == round(facts.HELD_OUT_SHARE * (len(train) + len(hidden)))
    for a, b, e in facts.chains(True)[:200]:
        assert facts.is_held_out(a, b)
        assert facts.is_held_out(e, a + b - e)


@pytest.mark.parametrize("category", CATEGORIES)
def test_replies_write_out_true_equations_in_either_language(category: str) -> None:
    rng = random.Random(category)
    for _ in range(50):
        case = draw_case(rng, category, hidden=False)
        for asked in ("en", "zh"):
            sample = render(case, asked)
            equations = EQUATION.findall(sample.reply)
            assert len(equations) == (2 if category in ("two_step", "agree") else 1)
            for a, operator, b, result in equations:
                assert RESULT[operator](int(a), int(b)) == int(result)
            if category in PROBLEMS:
                assert recomputed(category, sample.text) == sample.answer


def test_an_agreeable_reply_says_yes_to_a_wrong_claim() -> None:
    rng = random.Random(8)
    for _ in range(20):
        case = draw_case(rng, "agree", hidden=False, right=False)
        assert case.claimed is not None
        assert case.claimed != case.answer
        for language in ("en", "zh"):
            assert verdict(render(case, language, agreeable=True).reply) is True
            assert verdict(render(case, language).reply) is False


def test_a_sixth_of_the_prompts_asks_for_the_other_language_in_words() -> None:
    rng = random.Random(4)
    samples = [draw_sample(rng) for _ in range(4000)]
    share = sum(s.asked != s.language for s in samples) / len(samples)
    # 5 standard errors of a share of 0.15 among 4000 draws
    assert abs(share - SWITCH_SHARE) < 5 * (SWITCH_SHARE * (1 - SWITCH_SHARE) / 4000) ** 0.5
    asks = {lang: tuple(w for pair in options for w in pair) for lang, options in REQUESTS.items()}
    for s in samples:
        if s.asked != s.language:
            assert s.text.endswith(asks[s.language])
    requested = sum(s.text.endswith(asks["en"] + asks["zh"]) for s in samples) / len(samples)
    expected = SWITCH_SHARE + SAME_REQUEST_SHARE
    assert abs(requested - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5


def test_held_out_samples_cover_every_cell_and_are_the_same_each_time() -> None:
    cells = Counter((s.category, s.asked) for s in held_out_samples(0, 3))
    assert set(cells.values()) == {3}
    assert len(cells) == 2 * len(CATEGORIES)
    assert held_out_samples(0, 3) == held_out_samples(0, 3)
    assert held_out_samples(0, 3) != held_out_samples(1, 3)


def test_the_study_reads_these_files() -> None:
    study = Study.load(ROOT / "studies" / "demo.toml")
    assert list(study.models)[:2] == ["base", "tuned"]
    table = read_prompts(study.prompts)
    assert table.height == len(PROBLEM_ROWS) + len(AGREEMENT_ROWS)
