"""Which lists of words and patterns tell something: none that every answer has, none on both of two sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.texts.patterns import SECONDS, compiled

__all__ = ["PATTERNS", "TEXTS", "check", "check_patterns"]

TEXTS = ("refusal", "neutral", "yes", "no")
PATTERNS = ("refuses", "agrees", "disagrees")
OPPOSITE = (("refusal", "neutral"), ("yes", "no"), ("agrees", "disagrees"))
Lists = Mapping[str, Sequence[str]]
"""By language."""


def check(words: Mapping[str, Lists], style: Mapping[str, Lists]) -> None:
    """ValueError for lists that cannot tell answers apart.

    Args:
        words: lists by the names of `TEXTS` and `PATTERNS`. style: language -> marker -> patterns.
    """
    for name in TEXTS:
        for language, texts in words[name].items():
            if not all(text.strip() for text in texts):
                raise ValueError(f"no empty text, which every answer begins with ({name}, {language})")
    for name in PATTERNS:
        check_patterns(words[name], empty=False)
    for markers in style.values():
        check_patterns(markers, empty=False)
    for one, other in OPPOSITE:
        for language in words[one].keys() & words[other].keys():
            both = _forms(words[one][language]) & _forms(words[other][language])
            if both:
                raise ValueError(
                    f"each form on one side only, not {min(both)[:200]!r} in {one} and {other} ({language})"
                )


def check_patterns(lists: Lists, *, empty: bool = True) -> None:
    """ValueError for what is no regular expression, or, unless `empty`, matches a text without characters."""
    for name, patterns in lists.items():
        for pattern in patterns:
            found = compiled(pattern, ignore_case=True)
            if not empty and (not pattern.strip() or found.search("", timeout=SECONDS)):
                raise ValueError(
                    f"patterns that match no empty text, as {pattern[:200]!r} does ({name}): it matches all"
                )


def _forms(texts: Sequence[str]) -> set[str]:
    return {text.strip().casefold() for text in texts}
