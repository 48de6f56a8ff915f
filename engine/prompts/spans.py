"""Where the spans of a study lie: characters of every rendered prompt, and from them tokens."""

from __future__ import annotations

from typing import Any

import polars as pl

from engine.errors import PromptsError
from engine.prompts.positions import PARTS, Positions, part_position, without_part
from engine.prompts.span_spec import SpanPosition
from engine.texts.patterns import search

__all__ = ["lacking", "span_position"]

Span = tuple[int, int] | None
BOUNDS = {"text": ("content_start", "content_end"), "answer": ("answer_start", "answer_end")}


def span_position(encoded: pl.DataFrame, table: pl.DataFrame, wanted: SpanPosition) -> Positions:
    """Resolves a span on encoded prompts.

    Args:
        encoded: from `engine.prompts.tokens.encode`.
        table: the same prompts, from `read_prompts`.

    Returns:
        Positions as `engine.prompts.positions.positions` gives them: the tokens that cover at least one
        character of the span, or the first or last of them.

    Raises:
        PromptsError: a prompt in which the span doesn't occur, or a column that isn't there or holds no
            characters of the text. AnalysisError: a pattern that takes too long.
    """
    marked = _marked(encoded, table, wanted)
    lost = marked.filter(pl.col("span_start").is_null())["id"]
    if len(lost):
        raise PromptsError(
            f"The position {wanted.name!r} is not in every prompt.",
            expected=_said(wanted),
            given=f"{len(lost)} of {encoded.height} prompts without it: {', '.join(map(repr, lost[:3]))}"
            + (" …" if len(lost) > 3 else ""),
            next_step="correct the position in capture.positions, or leave these prompts out.",
        )
    return part_position(marked, "span", wanted.name, wanted.take)


def lacking(encoded: pl.DataFrame, table: pl.DataFrame, position: str | SpanPosition) -> pl.Series:
    """Which prompts have no token of a position, Boolean (n,); arguments as in `span_position`.

    None of them where the prompts have no such part at all: that is no fault of single ones.
    """
    if isinstance(position, SpanPosition):
        return without_part(_marked(encoded, table, position), "span")
    part = PARTS.get(position, ("content", ""))[0]
    if f"{part}_start" not in encoded.columns:
        return pl.Series([False] * encoded.height, dtype=pl.Boolean)
    return without_part(encoded, part)


def _marked(encoded: pl.DataFrame, table: pl.DataFrame, wanted: SpanPosition) -> pl.DataFrame:
    """Encoded prompts with the characters of the span, null where it doesn't occur."""
    spans = _matched(encoded, wanted) if wanted.regex is not None else _counted(encoded, table, wanted)
    where = {
        "span_start": [None if span is None else span[0] for span in spans],
        "span_end": [None if span is None else span[1] for span in spans],
    }
    return encoded.with_columns(pl.Series(name, values, pl.Int32) for name, values in where.items())


def _said(wanted: SpanPosition) -> str:
    if wanted.regex is not None:
        return f"a match of {wanted.regex[:200]!r} in the {wanted.within}, at least one character long"
    where = f"characters {wanted.chars[0]} to {wanted.chars[1]}" if wanted.chars else "characters"
    named = f" that the columns {' and '.join(wanted.columns)} name" if wanted.columns else ""
    return f"{where} of the user's own text{named}, not the white space around it"


def _matched(encoded: pl.DataFrame, wanted: SpanPosition) -> list[Span]:
    """The first match in each prompt, None where there is none of any length."""
    rendered = encoded["rendered"].to_list()
    starts, ends = [0] * len(rendered), [len(text) for text in rendered]
    if wanted.within in BOUNDS:
        first, last = BOUNDS[wanted.within]
        if first not in encoded.columns:
            return [None] * len(rendered)
        starts, ends = encoded[first].fill_null(0).to_list(), encoded[last].fill_null(0).to_list()
    assert wanted.regex is not None
    found = search(wanted.regex, [t[s:e] for t, s, e in zip(rendered, starts, ends, strict=True)])
    return [
        None if match is None or match[0] == match[1] else (start + match[0], start + match[1])
        for match, start in zip(found, starts, strict=True)
    ]


def _counted(encoded: pl.DataFrame, table: pl.DataFrame, wanted: SpanPosition) -> list[Span]:
    """[start, end) of the text as the file has it, brought to the rendered prompt."""
    bounds = [_bounds(row, wanted) for row in table.iter_rows(named=True)]
    rows = encoded.select("rendered", *BOUNDS["text"]).iter_rows()
    return [
        None if span is None else _shifted(span, text, whole[start:end], start)
        for span, text, (whole, start, end) in zip(bounds, table["text"], rows, strict=True)
    ]


def _bounds(row: dict[str, Any], wanted: SpanPosition) -> Span:
    if wanted.chars is not None:
        return wanted.chars
    assert wanted.columns is not None
    missing = [name for name in wanted.columns if name not in row]
    if missing:
        raise PromptsError(
            f"The position {wanted.name!r} names a column that the prompts don't have.",
            expected="one of " + ", ".join(row),
            given=repr(missing[0]),
            next_step="correct its 'columns' in capture.positions.",
        )
    try:
        start, end = (int(float(row[name])) for name in wanted.columns)
    except (TypeError, ValueError, OverflowError):
        return None
    return start, end


def _shifted(span: tuple[int, int], text: str, shown: str, start: int) -> Span:
    """A span of the file's text in the rendered prompt; None outside of it, or where the text was changed."""
    visible, before = text.strip(), len(text) - len(text.lstrip())
    first, last = max(span[0] - before, 0), min(span[1] - before, len(visible))
    if not 0 <= span[0] < span[1] <= len(text) or shown != visible or first >= last:
        return None
    return start + first, start + last
