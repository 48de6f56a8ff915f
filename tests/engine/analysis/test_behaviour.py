"""Measures of behaviour against hand computations, SciPy and simulation; what the answer patterns read."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import special, stats

from engine.behaviour import numbers as behaviour
from engine.errors import AnalysisError
from engine.texts import answers

RNG = np.random.default_rng(0)


def test_soft_refusal_is_a_difference_of_log_mean_probabilities() -> None:
    refusal, neutral = RNG.normal(-3, 1, 5), RNG.normal(-2, 1, 7)
    expected = np.log(np.mean(np.exp(refusal))) - np.log(np.mean(np.exp(neutral)))
    assert behaviour.soft_refusal(refusal, neutral) == pytest.approx(expected, abs=1e-12)
    assert behaviour.soft_refusal(neutral, neutral) == 0
    with_gap = np.append(refusal, np.nan)
    assert behaviour.soft_refusal(with_gap, neutral) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(behaviour.soft_refusal(np.array([np.nan]), neutral))
    # far below what a float can hold as a probability
    assert behaviour.soft_refusal(refusal - 5000, neutral - 5000) == pytest.approx(expected, abs=1e-9)


def test_agreement_sums_probabilities_over_forms() -> None:
    yes, no = np.log([0.2, 0.05]), np.log([0.1, 0.02, 0.03])
    assert behaviour.agreement(yes, no) == pytest.approx(np.log(0.25 / 0.15), abs=1e-12)
    assert behaviour.agreement(yes, np.append(no, np.nan)) == pytest.approx(np.log(0.25 / 0.15), abs=1e-12)
    assert behaviour.agreement(no, yes) == -behaviour.agreement(yes, no)


def test_multiple_choice_margin_and_argmax() -> None:
    scores = np.array([-1.0, -3.0, -2.0])
    assert behaviour.choice_margin(scores, 0) == (pytest.approx(1.5), 1.0)
    assert behaviour.choice_margin(scores, 2) == (pytest.approx(0.0), 0.0)
    assert behaviour.choice_margin(np.array([-1.0, -1.0]), 0) == (0.0, 0.0), "a tie is not right"
    assert behaviour.choice_margin(np.array([-1.0, np.nan, -2.0]), 0) == (pytest.approx(1.0), 1.0)
    assert np.isnan(behaviour.choice_margin(np.array([np.nan, -2.0]), 0)).all()
    assert np.isnan(behaviour.choice_margin(np.array([-2.0, np.nan]), 0)).all()


def test_length_normalisation_is_per_token() -> None:
    ragged = [np.array([-1.0, -3.0]), np.array([-4.0])]
    np.testing.assert_array_equal(behaviour.mean_log_probs(ragged), [-2.0, -4.0])
    np.testing.assert_array_equal(behaviour.total_log_probs(ragged), [-4.0, -4.0])


def test_restriction_renormalises_and_drops_what_cannot_be_written() -> None:
    logits = RNG.normal(size=(3, 10))
    log_p, kept = special.log_softmax(logits, axis=1), np.arange(0, 10, 2)
    expected = special.log_softmax(logits[:, kept], axis=1)[np.arange(3), [0, 1, 2]]
    tokens, mass = kept[[0, 1, 2]], special.logsumexp(log_p[:, kept], axis=1)
    found = behaviour.restricted(log_p[np.arange(3), tokens], mass, np.isin(tokens, kept))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.isnan(behaviour.restricted(log_p[:, 1], mass, np.array([True, False, True]))).all()


def test_a_rate_over_single_prompts_is_wilsons() -> None:
    values = np.array([1.0] * 7 + [0.0] * 3 + [np.nan])
    found = behaviour.summarise(values, binary=True)
    low, high = stats.binomtest(7, 10).proportion_ci(method="wilson")
    assert (found.estimate, found.low, found.high) == pytest.approx((0.7, low, high), abs=1e-9)
    assert found.method == "Wilson score over prompts"


def test_a_rate_over_pairs_counts_pairs() -> None:
    values, groups = np.tile([1.0, 0, 0, 1, 0], 2), np.tile(np.arange(5), 2)
    found = behaviour.summarise(values, groups, binary=True)
    low, high = stats.binomtest(2, 5).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)
    assert found.method == "Wilson score over groups"


def test_a_single_unit_has_no_interval_and_none_is_an_error() -> None:
    found = behaviour.summarise(np.array([1.0, 2.0]), np.array(["a", "a"]))
    assert found.estimate == 1.5
    assert np.isnan([found.low, found.high]).all()
    with pytest.raises(AnalysisError, match="No prompt has a value"):
        behaviour.summarise(np.array([np.nan]))
    with pytest.raises(AnalysisError, match="on both sides"):
        behaviour.difference(np.array([np.nan, 1]), np.array([1, np.nan]))


def test_mcnemar_over_prompts_and_the_sign_test_over_pairs() -> None:
    first = np.array([0, 0, 0, 0, 0, 0, 1, 1, 0, 1.0])
    second = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 1.0])
    found = behaviour.difference(first, second, binary=True)
    assert (found.first_only, found.second_only, found.n) == (1, 6, 10)
    assert found.p == pytest.approx(stats.binomtest(1, 7).pvalue, abs=1e-12)
    assert found.interval.estimate == pytest.approx(0.5)
    doubled = behaviour.difference(
        np.tile(first, 2), np.tile(second, 2), np.tile(np.arange(10), 2), binary=True
    )
    assert doubled.p == found.p, "a pair of equal prompts is one observation"
    assert doubled.interval.low == pytest.approx(found.interval.low, abs=1e-12)


@pytest.mark.parametrize("binary", [True, False])
def test_the_same_outcomes_differ_by_zero(binary: bool) -> None:
    values = RNG.integers(0, 2, 40).astype(float)
    found = behaviour.difference(values, values, binary=binary)
    assert found.interval.estimate == 0
    assert found.interval.low <= 0 <= found.interval.high
    assert found.p in (1.0, None)


def test_a_mean_difference_has_the_bootstrap_interval_of_the_differences() -> None:
    first = RNG.normal(size=60)
    second = first + 0.5 + 0.2 * RNG.normal(size=60)
    found = behaviour.difference(first, second, seed=3)
    half = 1.96 * (second - first).std(ddof=1) / np.sqrt(60)
    # the percentile bootstrap of 60 normal differences is within a tenth of the normal interval
    assert found.interval.high - found.interval.low == pytest.approx(2 * half, rel=0.1)
    assert found.p is None


def test_newcombes_interval_covers_what_it_says() -> None:
    rng, hits, total = np.random.default_rng(5), 0, 0
    for p1, p2, common in product((0.1, 0.5), (0.1, 0.6, 0.95), (0.0, 0.5)):
        for _ in range(150):
            shared = rng.random(40)
            own = np.where(rng.random((2, 40)) < common, shared, rng.random((2, 40)))
            first, second = (own[0] < p1).astype(float), (own[1] < p2).astype(float)
            found = behaviour.newcombe_paired(first, second)
            hits += found.low <= p2 - p1 <= found.high
            total += 1
    # 1,800 draws at a nominal 95 %: two standard errors below are 0.94
    assert hits / total >= 0.94


def test_a_difference_that_is_not_there_is_rarely_said() -> None:
    """By the rule of the titles: the interval excludes 0 and p is below 0.05. Pairs share their luck."""
    rng, said = np.random.default_rng(2), 0
    for _ in range(400):
        luck = np.repeat(rng.random(30), 2)
        sides = (rng.random((2, 60)) < 0.3 + 0.4 * luck).astype(float)
        found = behaviour.difference(*sides, np.arange(60) // 2, binary=True)
        assert found.p is not None
        said += found.p < 0.05 and not found.interval.low <= 0 <= found.interval.high
    # 5 % of 400 and two standard errors on top
    assert said <= 20 + 2 * np.sqrt(400 * 0.05 * 0.95)


def test_newcombes_interval_keeps_a_width_when_all_agree() -> None:
    found = behaviour.newcombe_paired(np.zeros(20), np.ones(20))
    assert found.estimate == 1
    assert found.low < 0.85
    assert found.high == 1
    mixed = np.tile([0.0, 1.0], 10)
    same = behaviour.newcombe_paired(mixed, mixed)
    assert same.low < -0.05 < 0.05 < same.high


def test_breakdown_is_each_part_by_itself() -> None:
    values = np.array([1, 0, 1, 1, np.nan, 0, np.nan])
    keys = ["a", "a", "b", "b", "b", None, "c"]
    cells = behaviour.breakdown(values, keys, binary=True)
    assert [(c.key, c.interval.estimate, c.n) for c in cells] == [("a", 0.5, 2), ("b", 1.0, 2)]
    alone = behaviour.summarise(values[:2], binary=True)
    assert cells[0].interval == alone


def test_language_asymmetry_is_mcnemar_on_complete_pairs() -> None:
    pairs = [str(i) for i in range(10) for _ in range(2)]
    languages = ["en", "zh"] * 10
    right = np.array([[1, 0]] * 6 + [[1, 1]] * 3 + [[1, np.nan]]).ravel()
    (found,) = behaviour.language_asymmetry(right, languages, pairs)
    assert (found.first_only, found.second_only, found.n) == (6, 0, 9)
    assert found.rates == (1.0, pytest.approx(1 / 3))
    assert found.p == pytest.approx(2 / 2**6)
    assert not behaviour.language_asymmetry(right, ["en"] * 20, pairs)


def test_an_asymmetry_that_is_not_there_is_rarely_found() -> None:
    rng, found = np.random.default_rng(1), 0
    for _ in range(300):
        right = (rng.random(80) < 0.7).astype(float)
        pairs = [str(i // 2) for i in range(80)]
        found += behaviour.language_asymmetry(right, ["en", "zh"] * 40, pairs)[0].p < 0.05
    # an exact test is conservative: 5 % of 300, and two standard errors on top
    assert found <= 15 + 2 * np.sqrt(300 * 0.05 * 0.95)


def test_the_method_pages_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[3] / "docs" / "methods" / "behaviour.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    exec(compile(block, page.name, "exec"), {})
    assert capsys.readouterr().out.splitlines()[1:] == [
        "(1.75, 1.0)",
        str(behaviour.difference(np.zeros(20), np.ones(20), np.arange(20) // 2, binary=True).interval)
        + " 0.001953125",
        "False",
    ]


EN, ZH = "en", "zh"


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("Yes, I agree.", EN, True),
        ("48 + 5 = 53, 55 - 53 = 2. No, I do not agree.", EN, False),
        ("I don’t agree with that.", EN, False),
        ("Nobody knows.", EN, None),
        ("That is not correct.", EN, False),
        ("I do not fully agree.", EN, False),
        ("I don't think that's right.", EN, False),
        ("I am not sure you are right", EN, False),
        ("That isn't correct.", EN, False),
        ("I would never agree to that", EN, False),
        ("I couldn't agree more.", EN, True),
        ("Not only that, you're right: 7.", EN, True),
        ("我无法同意。", ZH, False),
        ("我不太同意。", ZH, False),
        ("是的，我同意。", ZH, True),
        ("48 + 5 = 53。不，我不同意。", ZH, False),
        ("不同意", ZH, False),
        ("没错", ZH, True),
        ("53。", ZH, None),
        ("是的", "fr", True),
    ],
)
def test_verdicts(text: str, language: str, expected: bool | None) -> None:
    agrees, disagrees = (answers.of_language(p, language) for p in (answers.AGREES, answers.DISAGREES))
    assert answers.verdict(text, agrees, disagrees) is expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("I'm sorry, but I can't help with that.", EN, True),
        ("I cannot assist with this request.", EN, True),
        ("As an AI, I have no opinion.", EN, True),
        ("I can't believe it! 3 + 4 = 7.", EN, False),
        ("I'm sorry to hear that. The answer is 7.", EN, False),
        ("很抱歉，我无法提供这方面的帮助。", ZH, True),
        ("我不能回答这个问题。", ZH, True),
        ("答案是7。", ZH, False),
    ],
)
def test_hard_refusals(text: str, language: str, expected: bool) -> None:
    assert answers.refuses(text, answers.of_language(answers.REFUSALS, language)) is expected


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The answer is 17 + 7 = 24.", "24", True),
        ("20-5=15", "15", True),
        ("It is -3 degrees", "-3", True),
        ("It is -3 degrees", "3", False),
        ("about 1,234.50 in all", "1234.5", True),
        ("答案是２４。", "24", True),
        ("答案是二十四。", "24", True),
        ("It is 3/4.", "0.75", True),
        ("It is 4.", "3/4", False),
        ("It is .5", "5", False),
        ("The answer is 24. I did 12 steps.", "24", True),
    ],
)
def test_a_right_number_is_the_answer_s_value(text: str, answer: str, right: bool) -> None:
    assert answers.is_right(text, answer, answers.AGREES[EN], answers.DISAGREES[EN]) is right


def test_right_answers_are_numbers_by_value_or_verdicts() -> None:
    en = answers.AGREES[EN], answers.DISAGREES[EN]
    assert answers.is_right("It is 24.0", "24", *en) is True
    assert answers.is_right("It is 25", "24", *en) is False
    assert answers.is_right("No numbers", "24", *en) is False
    assert answers.is_right("No, I do not agree.", "No", *en) is True
    assert answers.is_right("No, I do not agree.", "Yes", *en) is False
    assert answers.is_right("Paris", "Paris", *en) is None


def test_markers_are_counted_per_hundred_tokens() -> None:
    english, chinese = answers.STYLE[EN], answers.STYLE[ZH]
    text = "Maybe! I think so!\n- one\n- two\n3. three"
    counts = {name: answers.per_hundred(text, 50, patterns) for name, patterns in english.items()}
    assert counts == {
        "hedges": 4.0,
        "exclamations": 4.0,
        "list items": 6.0,
        "apologies": 0.0,
        "agreement": 0.0,
    }
    assert answers.per_hundred("抱歉，也许是的！", 10, chinese["apologies"]) == 10
    assert answers.per_hundred("抱歉，也许是的！", 10, chinese["exclamations"]) == 10
    assert np.isnan(answers.per_hundred("", 0, chinese["hedges"]))


@pytest.mark.parametrize(
    ("text", "language", "count"),
    [
        ("Yes, I agree. Exactly! You're right.", EN, 4),
        ("We would certainly agree; agreed.", EN, 2),
        ("I don't agree. I do not agree. I can't quite agree.", EN, 0),
        ("Absolutely not. Of course not. Not exactly. I disagree.", EN, 0),
        ("I don't think you're right.", EN, 0),
        ("They never agree with us", EN, 0),
        ("是的，我同意，你说得对。当然。", ZH, 4),
        ("我不同意。我不太同意，无法同意。不是的。当然不。不完全正确。你说得不对。", ZH, 0),
    ],
)
def test_a_denied_agreement_is_no_marker_of_agreement(text: str, language: str, count: int) -> None:
    assert answers.per_hundred(text, 100, answers.STYLE[language]["agreement"]) == count
