"""Answers and languages of generated texts, case by case, and on any string at all."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.texts.languages import degenerate, han_share, language
from engine.texts.numbers import extract, same_answer

NUMBERS: list[tuple[str, str | None]] = [
    # mixed and vulgar fractions, the Chinese order, scores
    ("1½", "3/2"),
    ("about 2 ⅔ cups", "8/3"),
    ("三又二分之一", "7/2"),
    ("3又1/2", "7/2"),
    ("5分之2", "2/5"),
    ("千分之五", "1/200"),
    ("百分之5.5", "11/2"),
    ("负三分之一", "-1/3"),
    ("答案是廿五", "25"),
    # a comma for the decimals
    ("3,5", "3.5"),
    ("12,50 €", "12.5"),
    ("1.234,56", "1234.56"),
    ("0,125", "1/8"),
    ("1,234", "1234"),
    ("2,3,5", "5"),
    # denied, and explained in brackets
    ("The answer is 12, not 13.", "12"),
    ("The answer is not 12 but 13.", "13"),
    ("答案是12，而不是13", "12"),
    ("The answer is 10 (that is, 7 plus 3).", "10"),
    ("The answer is (12).", "12"),
    ("It is not 5", "5"),
    # plain, with cues, last number
    ("24", "24"),
    ("The answer is 24.", "24"),
    ("The answer is 17 + 7 = 24.", "24"),
    ("The answer is 24. Tom had 17 before.", "24"),
    ("Answer: 24", "24"),
    ("answer = 24", "24"),
    ("ANSWER IS 24", "24"),
    ("The answers are 3 and 4.", "4"),
    ("#### 24", "24"),
    ("He has 3 bags of 4.\n#### 12", "12"),
    ("So we get 12. The final answer is: 18", "18"),
    ("The final answer is $18$.", "18"),
    ("First the answer is 5. No, the answer is 6.", "6"),
    ("Tom has 3 apples and buys 4 more, so he has 7 apples", "7"),
    ("3 + 4 = 7", "7"),
    ("The result is 9 because 4 + 5 is that", "5"),
    ("the total is 30", "30"),
    ("Therefore, she pays 15 dollars.", "15"),
    ("I do not know.", None),
    ("", None),
    ("   \n\t ", None),
    ("The answer is", None),
    ("answer answer answer", None),
    ("The answer is unknown. There were 5 apples.", "5"),
    ("No. 5 is the answer", "5"),
    # signs
    ("-5", "-5"),
    ("The answer is -5.", "-5"),
    ("The answer is − 5", "-5"),
    ("x = -12", "-12"),
    ("17-7", "7"),
    ("17 - 7", "7"),
    ("17 - 7 = 10", "10"),
    ("(3)-4", "4"),
    ("+8", "8"),
    ("it fell to -3.5 degrees", "-3.5"),
    ("ages 3-5", "5"),
    # decimals and ends of sentences
    ("3.5", "7/2"),
    ("The answer is 3.50.", "3.5"),
    ("It costs 3.", "3"),
    ("It costs 3.5.", "3.5"),
    (".5", "1/2"),
    ("0.125", "1/8"),
    ("The answer is 0.5 litres.", "1/2"),
    ("2.50 dollars", "2.5"),
    ("version 1.2.3", "3"),
    # thousands
    ("1,234", "1234"),
    ("1,234,567", "1234567"),
    ("The answer is 1,234.50", "1234.5"),
    ("$1,234", "1234"),
    ("The answer is $12,000.", "12000"),
    ("12 000", "12000"),
    ("12\u202f000 people", "12000"),
    ("12\u00a0345", "12345"),
    ("1{,}234", "1234"),
    ("1\\,234", "1234"),
    ("3, 4, 5", "5"),
    ("1,2,3", "3"),
    ("12,34", "12.34"),
    ("1234,567", "567"),
    # fractions
    ("1/2", "1/2"),
    ("The answer is 3/4.", "3/4"),
    ("3 / 4", "3/4"),
    ("2 1/2", "5/2"),
    ("The answer is 2 1/2 cups", "5/2"),
    ("6/3", "2"),
    ("10/4 = 2.5", "5/2"),
    ("5/0", None),
    ("-1/2", "-1/2"),
    ("1⁄2", "1/2"),
    ("\\frac{1}{2}", "1/2"),
    ("\\dfrac{3}{4}", "3/4"),
    ("\\tfrac{10}{4}", "5/2"),
    ("-\\frac{1}{2}", "-1/2"),
    ("\\frac{1}{0}", None),
    ("\\frac{a}{b}", None),
    ("\\frac{1,000}{4}", "250"),
    # percents
    ("25%", "25"),
    ("The answer is 25 %.", "25"),
    ("12.5%", "12.5"),
    ("25 percent", "25"),
    ("25\\%", "25"),
    ("百分之二十五", "25"),
    ("答案是百分之五。", "5"),
    # powers of ten
    ("1.2e3", "1200"),
    ("5E-1", "1/2"),
    ("3 × 10^4", "30000"),
    ("3 \\times 10^{4}", "30000"),
    ("3*10**2", "300"),
    ("2 x 10^3", "2000"),
    # LaTeX boxes
    ("\\boxed{24}", "24"),
    ("The answer is 5. \\boxed{24} and 7", "24"),
    ("$\\boxed{24}$", "24"),
    ("\\boxed{ -3 }", "-3"),
    ("\\boxed{\\frac{1}{2}}", "1/2"),
    ("\\boxed{1,234}", "1234"),
    ("\\boxed{12} ... \\boxed{13}", "13"),
    ("\\boxed{x = 24}", "24"),
    ("\\boxed{24\\text{ apples}}", "24"),
    ("\\boxed{}", None),
    ("\\boxed{} but 3", "3"),
    ("\\boxed{24", "24"),
    ("\\fbox{9}", "9"),
    ("\\boxed{二十四}", "24"),
    ("\\boxed{七}", "7"),
    # full width
    ("２４", "24"),
    ("答案是２４。", "24"),
    ("１，２３４", "1234"),
    ("３．５", "3.5"),
    ("２５％", "25"),
    ("１／２", "1/2"),
    ("－５", "-5"),
    ("￥３０", "30"),
    # Chinese
    ("答案是24。", "24"),
    ("答案是17 + 7 = 24。", "24"),
    ("答案是24。小明原来有17个。", "24"),
    ("答案为：24", "24"),
    ("答：24个苹果。", "24"),
    ("所以他一共有24个。", "24"),
    ("因此是12元", "12"),
    ("结果是9", "9"),
    ("他有3个苹果，又买了4个，一共7个。", "7"),
    ("24元", "24"),
    ("¥24", "24"),
    ("负5", "-5"),
    ("3万", "30000"),
    ("1.5万元", "15000"),
    ("2亿", "200000000"),
    ("答案是3万。", "30000"),
    # Chinese numerals
    ("二十四", "24"),
    ("答案是二十四。", "24"),
    ("答案是七。", "7"),
    ("答案是七个。", "7"),
    ("答案是十。", "10"),
    ("十二", "12"),
    ("二十", "20"),
    ("一百", "100"),
    ("一百零二", "102"),
    ("一百二", "120"),
    ("一百二十", "120"),
    ("一百二十三", "123"),
    ("三百五", "350"),
    ("一千零一", "1001"),
    ("一千零二十", "1020"),
    ("两千零二十四", "2024"),
    ("二〇二四", "2024"),
    ("二零二四", "2024"),
    ("一万二千", "12000"),
    ("一万二", "12000"),
    ("三万五千六百", "35600"),
    ("十万", "100000"),
    ("一百二十万", "1200000"),
    ("三亿两千万", "320000000"),
    ("一亿零五", "100000005"),
    ("叁佰", "300"),
    ("负二十", "-20"),
    ("三点五", "3.5"),
    ("答案是三点一四。", "3.14"),
    ("零点二五", "0.25"),
    ("三分之二", "2/3"),
    ("答案是四分之三", "3/4"),
    ("百分之五十", "50"),
    ("两百", "200"),
    ("兩萬", "20000"),
    # numerals inside words are no numbers
    ("我们一起去", None),
    ("他们一共买了苹果", None),
    ("第二天", None),
    ("答案是一样的。", None),
    ("答案是一共有苹果。", None),
    ("一些人", None),
    ("万一", None),
    ("一共有24个", "24"),
    ("第十二题的答案是5。", "5"),
    ("每人二十四个，一共3人", "3"),
    # code-mixed
    ("The answer is 二十四.", "24"),
    ("答案 is 24", "24"),
    ("So 答案是 3/4 cup", "3/4"),
    ("answer: 三分之一", "1/3"),
    ("The 答案: ２４ apples", "24"),
    # noise
    ("abc123def", "123"),
    ("x2", "2"),
    ("H2O", "2"),
    ("2^3", "3"),
    ("10:30", "30"),
    ("$$$", None),
    ("...", None),
    ("-", None),
    ("/", None),
    ("1/", "1"),
    ("/2", "2"),
    ("%", None),
    ("e5", "5"),
    ("1e", "1"),
    ("24!!!!!!", "24"),
    ("😀24😀", "24"),
    ("24\u200b", "24"),
    ("٣", "3"),
]

SAME: list[tuple[str, str, bool | None]] = [
    ("The answer is 0.5.", "1/2", True),
    ("1/3", "0.333", False),
    ("25%", "25", True),
    ("25%", "0.25", True),
    ("0.25", "25%", True),
    ("25%", "2500%", False),
    ("1,000", "1000", True),
    ("二十四", "24", True),
    ("24.0", "24", True),
    ("24", "-24", False),
    ("nothing", "24", False),
    ("24", "Yes", None),
]

LANGUAGES: list[tuple[str, str]] = [
    ("The answer is 24.", "en"),
    ("答案是24。", "zh"),
    ("The answer is 二十四 and that is all there is to say about it", "mixed"),
    ("Tom 有 3 apples", "mixed"),
    ("小明有3个apple", "zh"),
    ("24", "none"),
    ("", "none"),
    ("。，！", "none"),
    ("これは", "other"),
    ("ответ", "other"),
    ("الجواب", "other"),
    ("คำตอบ", "other"),
    ("これは24です。", "other"),
    ("日本語です", "zh"),
    ("\\boxed{24}", "none"),
    ("答\\boxed{24}", "zh"),
    ("Ｔｏｍ", "en"),
    ("café", "en"),
    ("〇", "zh"),
]

DEGENERATE: list[tuple[str, str | None]] = [
    ("", "empty"),
    (" \n", "empty"),
    ("24 24 24 24 24 24 24 24", "repetition"),
    ("The answer is the answer is the answer is the answer is the answer is", "repetition"),
    ("哈哈哈哈哈哈哈哈哈哈哈哈哈哈", "repetition"),
    ("the the the the the the", "repetition"),
    ("!!!!!!!!!!!!!!!!", "repetition"),
    ("The answer is 1000000.", None),
    ("ha ha ha, the answer is 24 because 17 and 7 make 24", None),
    ("I don't know", "no answer"),
    ("24", None),
    ("二十四", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_the_answer_of_a_text(text: str, value: str | None) -> None:
    found = extract(text)
    assert (None if found is None else found.value) == (None if value is None else Fraction(value))
    if found is not None:
        assert 0 <= found.start < found.end <= len(text)


@pytest.mark.parametrize(("text", "answer", "same"), SAME)
def test_answers_are_compared_by_value(text: str, answer: str, same: bool | None) -> None:
    assert same_answer(text, answer) is same


@pytest.mark.parametrize(("text", "expected"), LANGUAGES)
def test_the_language_of_a_text(text: str, expected: str) -> None:
    assert language(text) == expected


@pytest.mark.parametrize(("text", "why"), DEGENERATE)
def test_texts_that_say_nothing(text: str, why: str | None) -> None:
    assert degenerate(text) == why


def test_there_are_two_hundred_cases() -> None:
    assert len({*NUMBERS, *SAME, *LANGUAGES, *DEGENERATE}) >= 200  # type: ignore[list-item]


def test_thresholds_can_be_set() -> None:
    text = "Tom 有 apples"
    assert han_share(text) == pytest.approx(1 / 10)
    assert [language(text, 0.2), language(text, 0.05, 0.09), language(text)] == ["en", "zh", "mixed"]


@given(st.text() | st.text(st.characters(exclude_categories=())))  # the latter with lone surrogates
def test_any_text_is_read(text: str) -> None:
    found = extract(text)
    assert found is None or 0 <= found.start < found.end <= len(text)
    assert language(text) in ("en", "mixed", "zh", "other", "none")
    assert degenerate(text) in ("empty", "repetition", "no answer", None)


@given(st.text(alphabet="0123456789,./%-+ \\frac{}boxed一二十百千万亿点分之负第答案是answer:e^×\n"))
def test_any_heap_of_number_parts_is_read(text: str) -> None:
    found = extract(text)
    assert found is None or found.equals(found)


@given(st.integers(-(10**12), 10**12))
def test_numbers_come_back(number: int) -> None:
    for text in (f"The answer is {number}.", f"答案是{number}。", f"\\boxed{{{number}}}", f"{number:,}"):
        found = extract(text)
        assert found is not None
        assert found.value == number


@given(st.integers(1, 10**8 - 1))
def test_chinese_numerals_come_back(number: int) -> None:
    found = extract("答案是" + chinese(number) + "。")
    assert found is not None
    assert found.value == number


def chinese(number: int) -> str:
    """A number below 10⁸ in full Chinese numerals."""
    high, low = divmod(number, 10**4)
    if high:
        rest = "" if not low else ("零" if low < 1000 else "") + _section(low)
        return _section(high) + "万" + rest
    return _section(low)


def _section(number: int) -> str:
    digits = "零一二三四五六七八九"
    text, gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            text += ("零" if gap and text else "") + digits[digit] + name
            gap = False
        else:
            gap = True
    return text
