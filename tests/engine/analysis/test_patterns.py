"""Patterns of strangers end in time; Patchbay's own match what Python's `re` matches."""

from __future__ import annotations

import re
import time
from contextlib import suppress

import pytest

from engine.behaviour.spec import Wording
from engine.errors import AnalysisError, PatchError, StudyError
from engine.study.study import Study
from engine.texts import answers
from engine.texts.patterns import LONGEST, compiled, matches, search

OWN = [
    pattern
    for lists in (answers.REFUSALS, answers.AGREES, answers.DISAGREES)
    for patterns in lists.values()
    for pattern in patterns
] + [p for own in answers.STYLE.values() for lists in own.values() for p in lists]
TEXTS = (
    "I'm sorry, but I can't help with that. As an AI I must decline.",
    "Yes, exactly: you're right. Absolutely!",
    "No, that is not right; I never agree more. You are wrong.",
    "很抱歉，我不能提供帮助。作为一个AI，这违反了规定。",
    "是的，你说得对。当然同意！并非不对，没错。",
    "It is absolutely not true. I don't think you're right, of course not.",
    "",
)


@pytest.mark.parametrize("pattern", OWN)
def test_our_own_patterns_match_as_in_python(pattern: str) -> None:
    for text in TEXTS:
        theirs = re.compile(pattern, re.IGNORECASE)
        first = theirs.search(text)
        assert search(pattern, [text], ignore_case=True) == [None if first is None else first.span()]
        assert matches(pattern, text, ignore_case=True) == len(list(theirs.finditer(text)))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*$", "(.*a){20}$", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_pattern_that_would_never_end_is_given_up(pattern: str) -> None:
    text, begun = "a" * 200 + "!", time.process_time()
    with suppress(AnalysisError):  # some of them the engine sees through
        matches(pattern, text)
    with suppress(AnalysisError):
        search(pattern, [text] * 1000)
    assert time.process_time() - begun < 8


def test_the_time_is_for_all_texts_together() -> None:
    with pytest.raises(AnalysisError, match=r"takes too long.*Next: "):
        search("(a|b|ab)*c", ["ab" * 12] * 1_000_000)


@pytest.mark.parametrize("pattern", ["(", "(?P<x", "[a", "*", "x" * (LONGEST + 1), "(" * 900 + ")" * 899])
def test_what_is_no_pattern_is_refused_in_studies_and_experiments(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        compiled(pattern)
    with pytest.raises(PatchError, match="not a regular expression"):
        Wording(refuses={"en": (pattern,)})
    data = {"name": "s", "models": {"m": {"hub": "a/b"}}, "prompts": {"files": ["p.jsonl"]}}
    data["prompts"] = {"files": ["p.jsonl"], "include": {"text": pattern}}
    with pytest.raises(StudyError, match="a regular expression"):
        Study.from_dict(data, "/nowhere")
