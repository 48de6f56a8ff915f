"""The number that a generated text answers with, compared by value.

A boxed number counts first, then the last number of the sentence behind the last answer cue, then the last
number of the text. Among several, those that are denied ("12, not 13") or stand in brackets behind another
one ("10 (7 plus 3)") come last. Read are signs, separated thousands, decimals with a point or a comma,
fractions and mixed numbers (1½, 三又二分之一, 5分之2), percents, 千分之, powers of ten, LaTeX fractions and
boxes, full-width digits, and Chinese numerals. A comma before three digits separates thousands, unless a zero
or points stand before it (0,125; 1.234,567). Chinese numerals that are parts of words (一共, 第二天) are no
numbers: they count in a box, behind a cue, or as compounds.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

CUES = (
    r"####",
    r"\banswers?\b\s*(?:is|are|was|=|:)?",
    r"\b(?:result|total)\s+is\b",
    r"\btherefore\b",
    r"答案(?:是|为|等于)?",
    r"答[:：]",
    r"结果(?:是|为)",
    r"因此",
    r"所以",
)
"""Phrases behind which an answer stands, searched without regard to case."""

_WIDE = str.maketrans(
    "０１２３４５６７８９，．／％－＋（）：−–﹣⁄∕﹪\u00a0\u202f\u2009", "0123456789,./%-+():---//%   "
)
_DIGITS = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "○": 0, "两": 2, "兩": 2}
_DIGITS |= {c: i + 1 for i, c in enumerate("壹贰叁肆伍陆柒捌玖")}
_TENS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_SCORES = {"廿": 20, "卅": 30, "卌": 40}
_HAN = "".join([*_DIGITS, *_TENS, *_MYRIADS, *_SCORES])
_VULGAR = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"

_WHOLE = r"(?:\d{1,3}(?:(?:,|\{,\}|\\,)\d{3})+|\d{1,3}(?: \d{3})+(?! ?\d)|\d+)"
_COMMA = r"(?:(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+,\d+|0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?![\d,]|\.\d))"
"""A decimal comma; 2,3,5 is a list and 1,234 are thousands."""
_DECIMAL = rf"(?:{_COMMA}|{_WHOLE}(?:\.\d+)?|(?<![\d.])\.\d+)"
_SIGN = r"(?:(?<![0-9A-Za-z_)\]}])(?<![0-9)\]}] )[-+]\s?|[负負])?"
_ARABIC = re.compile(
    rf"(?P<sign>{_SIGN})(?:"
    r"\\[dt]?frac\s*\{(?P<ltop>[^{}]*)\}\s*\{(?P<lbottom>[^{}]*)\}"
    rf"|(?P<ones>\d+)?\s?(?P<vulgar>[{_VULGAR}])"
    rf"|(?P<whole>\d+)(?:\s+|又)(?P<mtop>\d+)\s*/\s*(?P<mbottom>\d+)(?![./]?\d)"
    rf"|(?P<top>{_DECIMAL})\s*/\s*(?P<bottom>{_DECIMAL})"
    rf"|(?:[$€£¥￥]\s?)?(?P<plain>{_DECIMAL})"
    r"(?:[eE](?P<exponent>[-+]?\d{1,3})(?![\w])"
    r"|\s*(?:×|\\times|\*|x)\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>[-+]?\d{1,3})\}?)?"
    r")(?P<myriad>[万萬亿億])?\s?(?P<percent>\\?%|percent\b|per cent\b)?"
)
_CHINESE = re.compile(
    rf"(?P<hundredths>百分之)?(?P<sign>[负負])?(?P<first>[{_HAN}]+)"
    rf"(?:点(?P<decimals>[{''.join(_DIGITS)}]+))?"
)
_PART = rf"(?:\d+(?:\.\d+)?|[{_HAN}]+(?:点[{''.join(_DIGITS)}]+)?)"
_OF = re.compile(rf"(?P<sign>[负負-])?(?:(?P<mixed>{_PART})又)?(?P<bottom>{_PART})分之(?P<top>{_PART})")
"""Fractions in the Chinese order, denominator first, in either digits."""
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{[^{}]*\}(?:\{[^{}]*\})?)*)\}")
_CUE = re.compile("|".join(f"(?:{cue})" for cue in CUES), re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\b(?:not|rather than|instead of|isn't|wasn't)\s+(?:the\s+)?|(?:而不是|不是|并非|而非)\s*)$",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\([^()]*\)")
_SENTENCE_END = re.compile(r"[。！？!?\n]|\.(?=\s|$)")


@dataclass(frozen=True)
class Extracted:
    """A number found in a text.

    Attributes:
        value: exact; of "25%" it is 25. percent: whether it was a percentage.
        where: "box", "cue" or "last". start, end: place in the text.
    """

    value: Fraction
    percent: bool
    where: str
    start: int
    end: int

    def equals(self, other: Extracted) -> bool:
        """Whether two numbers are the same answer: 0.5 is 1/2; 25% is 25 and 1/4 where one has no sign."""
        if self.value == other.value:
            return True
        one, two = (self, other) if self.percent else (other, self)
        return one.percent and not two.percent and one.value / 100 == two.value


def extract(text: str) -> Extracted | None:
    """The number that a text answers with; None where there is none."""
    plain = text.translate(_WIDE)
    for box in reversed(list(_BOX.finditer(plain))):
        if (found := _last(plain, box.start(1), box.end(1), "box", single=True)) is not None:
            return found
    for cue in reversed(list(_CUE.finditer(plain))):
        ends = [m.start() for m in _SENTENCE_END.finditer(plain, cue.end()) if m.start() > cue.end() + 1]
        stop = ends[0] if ends else len(plain)
        if (found := _last(plain, cue.end(), stop, "cue", single=True)) is not None:
            return found
    return _last(plain, 0, len(plain), "last", single=False)


def same_answer(text: str, answer: str) -> bool | None:
    """Whether a text answers with the number in `answer`; None where `answer` holds no number."""
    wanted = extract(answer)
    if wanted is None:
        return None
    found = extract(text)
    return found is not None and found.equals(wanted)


def _last(plain: str, start: int, stop: int, where: str, *, single: bool) -> Extracted | None:
    """The last number of plain[start:stop]; single: Chinese numerals of one character count too."""
    found = [_arabic(match, where) for match in _ARABIC.finditer(plain, start, stop)]
    found += [_chinese(match, where, single) for match in _CHINESE.finditer(plain, start, stop)]
    found += [_part_of(match, where) for match in _OF.finditer(plain, start, stop)]
    usable = [number for number in found if number is not None and not _inside(number, found)]
    meant = [n for n in usable if not _DENIED.search(plain, max(start, n.start - 20), n.start)]
    asides = [
        m.span() for m in _BRACKETS.finditer(plain, start, stop) if any(n.end <= m.start() for n in meant)
    ]
    outside = [n for n in meant if not any(a <= n.start and n.end <= b for a, b in asides)]
    return max(outside or meant or usable, key=lambda number: number.end, default=None)


def _inside(number: Extracted, others: list[Extracted | None]) -> bool:
    """Whether a number is part of a longer one, as 万 is of 3万."""
    return any(
        o is not None and o is not number and o.start <= number.start and number.end <= o.end and o != number
        for o in others
    )


def _arabic(match: re.Match[str], where: str) -> Extracted | None:
    part = match.groupdict()
    try:
        if part["ltop"] is not None:
            value = _plain_number(part["ltop"]) / _plain_number(part["lbottom"])
        elif part["vulgar"] is not None:
            value = int(part["ones"] or 0) + Fraction(unicodedata.numeric(part["vulgar"])).limit_denominator(
                10
            )
        elif part["whole"] is not None:
            value = int(part["whole"]) + Fraction(int(part["mtop"]), int(part["mbottom"]))
        elif part["top"] is not None:
            value = _plain_number(part["top"]) / _plain_number(part["bottom"])
        else:
            value = _plain_number(part["plain"])
    except (ValueError, ZeroDivisionError):
        return None
    power = part["exponent"] or part["power"]
    value *= Fraction(10) ** int(power) if power else 1
    value *= _MYRIADS.get(part["myriad"] or "", 1)
    negative = part["sign"].strip() in ("-", "负", "負")
    return Extracted(
        -value if negative else value, part["percent"] is not None, where, match.start(), match.end()
    )


def _plain_number(text: str) -> Fraction:
    if re.fullmatch(_COMMA, text):
        text = text.replace(".", "").replace(",", ".")
    kept = re.sub(r"\{,\}|\\,|[,\s]", "", text)
    return Fraction("0" + kept if kept.startswith(".") else kept)


def _chinese(match: re.Match[str], where: str, single: bool) -> Extracted | None:
    """A Chinese numeral by value; None for parts of words and for what is no numeral (百万 alone, 第二)."""
    part, text = match.groupdict(), match.string
    before = text[match.start() - 1] if match.start() else ""
    if before == "第" or (part["hundredths"] is None and before == "分"):
        return None
    compound = any(part[key] for key in ("hundredths", "decimals"))
    if len(part["first"]) == 1 and not compound and (not single or part["first"] not in _DIGITS | _TENS):
        return None
    if single and not compound and len(part["first"]) == 1 and _in_word(text, match.end()):
        return None
    value = _numeral(part["first"])
    if value is None:
        return None
    if part["decimals"] is not None:
        value += _decimals(part["decimals"])
    return Extracted(
        -value if part["sign"] else value, part["hundredths"] is not None, where, match.start(), match.end()
    )


def _part_of(match: re.Match[str], where: str) -> Extracted | None:
    """A fraction 分之 by value, 百分之 as a percentage; None where a part of it is no numeral."""
    part = match.groupdict()
    top, mixed = (None if part[key] is None else _either(part[key]) for key in ("top", "mixed"))
    percent = part["bottom"] == "百" and mixed is None
    bottom = (
        Fraction(1)
        if percent
        else _either({"百": "100", "千": "1000", "万": "10000"}.get(part["bottom"], part["bottom"]))
    )
    if top is None or not bottom or (part["mixed"] is not None and mixed is None):
        return None
    value = (mixed or 0) + top / bottom
    return Extracted(-value if part["sign"] else value, percent, where, match.start(), match.end())


def _either(text: str) -> Fraction | None:
    """A number in Arabic or Chinese digits, with decimals."""
    if text[0].isdecimal():
        return Fraction(text)
    whole, _, decimals = text.partition("点")
    value = _numeral(whole)
    return value if value is None or not decimals else value + _decimals(decimals)


def _decimals(digits: str) -> Fraction:
    return Fraction(int("".join(str(_DIGITS[c]) for c in digits)), 10 ** len(digits))


def _in_word(text: str, end: int) -> bool:
    """Whether a single numeral begins a word rather than counting something: 一共, 一起, 一样, 一些 …"""
    return text[end : end + 1] in tuple("共起样些直定般切旦致同并律再半边点")


def _numeral(text: str) -> Fraction | None:
    """Value of a Chinese numeral, by places (二〇二四) or by units (两千零二十四); None for others."""
    if all(c in _DIGITS for c in text):
        return Fraction(int("".join(str(_DIGITS[c]) for c in text)))
    total, section, digit, last_unit = 0, 0, -1, 0
    for c in text:
        if c in _SCORES:
            if digit > 0:
                return None
            section += _SCORES[c]
            digit, last_unit = -1, 10
        elif c in _DIGITS:
            if digit > 0:
                return None
            digit = _DIGITS[c]
            last_unit = 0 if digit == 0 else last_unit
        elif c in _TENS:
            if digit < 0 and (section or c not in "十拾"):
                return None
            section += (1 if digit < 0 else digit) * _TENS[c]
            digit, last_unit = -1, _TENS[c]
        else:
            if digit > 0:
                section += digit
            if not section and not total:
                return None
            unit = _MYRIADS[c]
            # 三亿两千万: 万 multiplies what is behind 亿; 一万亿: 亿 multiplies all before
            total = total + section * unit if total >= unit and section else (total + section) * unit
            section, digit, last_unit = 0, -1, _MYRIADS[c]
    if digit > 0:
        # 一百二 is 120, 一百零二 is 102
        section += digit * (last_unit // 10 if last_unit >= 100 else 1)
    return Fraction(total + section)
