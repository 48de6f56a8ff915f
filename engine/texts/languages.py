"""The language that a text is written in, by its letters, and texts that say nothing."""

from __future__ import annotations

import math
import re
from typing import Literal

from engine.texts.numbers import extract

Language = Literal["en", "mixed", "zh", "other", "none"]
Degenerate = Literal["empty", "repetition", "no answer"]

EN_BELOW, ZH_ABOVE = 0.05, 0.30
"""Share of Han among Han and Latin letters: below the first it is English, above the second Chinese."""

_HAN = re.compile(r"[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd]")
_LATIN = re.compile(r"[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\uff21-\uff3a\uff41-\uff5a]")
_LATEX = re.compile(r"\\[A-Za-z]+")
_REPEATED = re.compile(r"(.{1,40}?)\1{3,}", re.DOTALL)
_LEAST_REPEATED, _LEAST_SHARE = 12, 0.5


def han_share(text: str) -> float:
    """Share of Han among Han and Latin letters; NaN without either. LaTeX commands are not words."""
    plain = _LATEX.sub(" ", text)
    han, latin = len(_HAN.findall(plain)), len(_LATIN.findall(plain))
    return han / (han + latin) if han + latin else float("nan")


def language(text: str, en_below: float = EN_BELOW, zh_above: float = ZH_ABOVE) -> Language:
    """ "en" below the first threshold, "zh" above the second, "mixed" from the one to the other.

    Texts of letters of other scripts only are "other", without any letter "none". Being a letter without case
    is not being Han: so are kana, Arabic, Thai and many more.
    """
    share = han_share(text)
    if math.isnan(share):
        return "other" if any(c.isalpha() for c in _LATEX.sub(" ", text)) else "none"
    if share < en_below:
        return "en"
    return "zh" if share > zh_above else "mixed"


def degenerate(text: str, *, numeric: bool = True) -> Degenerate | None:
    """Why a text says nothing: it is empty, half of it or more is one piece over and over, or (numeric) it
    holds no number; None for a usable one."""
    stripped = text.strip()
    if not stripped:
        return "empty"
    longest = max((len(m.group(0)) for m in _REPEATED.finditer(stripped)), default=0)
    if longest >= max(_LEAST_REPEATED, _LEAST_SHARE * len(stripped)):
        return "repetition"
    return "no answer" if numeric and extract(text) is None else None
