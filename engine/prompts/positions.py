"""Token positions: which tokens of a rendered prompt an activation is taken from.

`decision` is the last token of the rendered prompt; `last_content` the last token of the user's own
text, found through the tokenizer's character offsets; `last_nonspecial` the last token whose id is not
special (behind a chat template this is usually the newline after the assistant header); `mean` pools
the tokens of the user's own text, `mean_all` all tokens; `tokens` keeps every token;
`sample(k=4,skip_last=1)` draws k words of the user's own text with a seed, leaving out the last ones, and
takes each one's last token; `sample(k=4,skip_last=1,draw=2)` is the second of them alone. Words are found in
the text, so that models with other tokenizers read theirs behind the same characters.

`assistant_start` is the first token of what opens the assistant's turn: of the generation prompt or, where
the prompt holds what the assistant says, of the header before that. `first_answer` is the first token of
what the assistant says, `answer_mean` pools its tokens.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from engine.errors import PromptsError

Kind = Literal["one", "mean", "many"]
Tokens = np.ndarray[Any, np.dtype[np.int64]]
Indices = tuple[Tokens, ...]

KINDS: dict[str, Kind] = {
    "decision": "one",
    "last_content": "one",
    "last_nonspecial": "one",
    "mean": "mean",
    "mean_all": "mean",
    "assistant_start": "one",
    "first_answer": "one",
    "answer_mean": "mean",
    "tokens": "many",
    "sample": "many",
}
PARTS = {
    "last_content": ("content", "last"),
    "mean": ("content", "mean"),
    "assistant_start": ("assistant", "first"),
    "first_answer": ("answer", "first"),
    "answer_mean": ("answer", "mean"),
}
"""Positions that are the last or first token of a part of the prompt, or the mean over its tokens."""
DRAW = "words-2"
"""Which tokens `sample` means; changes with the draw or with what a word is, so that stores don't mix."""
_ALONE = (
    r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Japanese, Chinese
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Burmese, Khmer
)
_MARK = "[{}\U000e0100-\U000e01ef]".format(
    "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code))[0] == "M")
)
_WORD = re.compile(
    rf"[{_ALONE}]{_MARK}*|[^\W{_ALONE}]+(?:{_MARK}+[^\W{_ALONE}]*)*|[^\w\s]{_MARK}*",
)
"""Words of a text: runs of letters and digits, single characters of scripts without spaces between words,
single signs; each with its combining marks (Unicode category M)."""
_CALL = re.compile(r"(?P<name>[a-z_]+)(?:\((?P<args>[^()]*)\))?")


@dataclass(frozen=True)
class PositionName:
    """A parsed position name; `k`, `skip_last` and `draw` (from 1; 0: all) are used by `sample` only."""

    name: str
    kind: Kind
    k: int = 0
    skip_last: int = 0
    draw: int = 0

    def __str__(self) -> str:
        if self.name != "sample":
            return self.name
        one = f",draw={self.draw}" if self.draw else ""
        return f"sample(k={self.k},skip_last={self.skip_last}{one})"


@dataclass(frozen=True)
class Positions:
    """Resolved positions of one model's encoded prompts.

    Attributes:
        name: canonical name.
        kind: "one" token per prompt, the "mean" over tokens, or "many" tokens kept apart.
        indices: for each prompt the token indices, ascending, int64, at least one.
        stats: how many, where, fallbacks (see `positions`).
    """

    name: str
    kind: Kind
    indices: Indices
    stats: dict[str, Any] = field(default_factory=dict)

    def of(self, prompts: Sequence[int]) -> Positions:
        """The same positions of some prompts alone, in the order given."""
        return Positions(self.name, self.kind, tuple(self.indices[prompt] for prompt in prompts))


def parse_position(text: str) -> PositionName:
    """Reads a position name.

    Raises:
        PromptsError: unknown name (with the closest known one) or impossible arguments.
    """
    match = _CALL.fullmatch(text.replace(" ", ""))
    name = match["name"] if match else text
    if match is None or name not in KINDS:
        close = difflib.get_close_matches(name, KINDS, n=1)
        raise PromptsError(
            f"There is no position {text!r}.",
            expected=", ".join(name for name in KINDS if name != "sample") + " or sample(k=4,skip_last=1)",
            given=repr(text),
            next_step=f"did you mean {close[0]!r}?" if close else None,
        )
    if name != "sample":
        if match["args"] is not None:
            raise PromptsError(f"The position {name} takes no arguments.", expected=name, given=repr(text))
        return PositionName(name, KINDS[name])
    values = _sample_arguments(text, match["args"] or "")
    return PositionName(name, "one" if values["draw"] else "many", **values)


def kind_of(text: str) -> Kind | None:
    """The kind of a position by its name, None for one that only a study can know."""
    try:
        return parse_position(text).kind
    except PromptsError:
        return None


def _sample_arguments(text: str, args: str) -> dict[str, int]:
    values = {"k": 4, "skip_last": 0, "draw": 0}
    for part in filter(None, args.split(",")):
        key, _, value = part.partition("=")
        if key not in values or not re.fullmatch(r"[0-9]{1,6}", value):
            raise PromptsError(
                f"The arguments of {text!r} could not be read.",
                expected="sample(k=4,skip_last=1) or sample(k=4,skip_last=1,draw=2) with whole numbers of at "
                "most 6 digits",
                given=repr(part),
            )
        values[key] = int(value)
    if values["k"] < 1:
        raise PromptsError("sample needs at least one token.", expected="k of 1 or more", given=repr(text))
    if values["draw"] > values["k"]:
        raise PromptsError(
            "There is no such draw.", expected=f"draw from 1 to {values['k']}", given=repr(text)
        )
    return values


def content_tokens(offsets: Sequence[Sequence[int]], start: int, end: int) -> np.ndarray[Any, Any]:
    """Indices of the tokens that cover at least one character of [start, end), ascending int64.

    A token that joins the text's last character with the template behind it counts as content; a token
    without characters of its own (special tokens added outside the text) does not.
    """
    spans = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    inside = (spans[:, 0] < end) & (spans[:, 1] > start) & (spans[:, 1] > spans[:, 0])
    return np.flatnonzero(inside)


def positions(encoded: pl.DataFrame, name: str, tokenizer: Any, seed: int = 0) -> Positions:
    """Resolves a position name on encoded prompts (see `engine.prompts.tokens.encode`).

    Args:
        encoded: columns token_ids, offsets, content_start, content_end (and id, which makes the draw of
            `sample` independent of the other prompts).
        name: a position name.
        tokenizer: gives `all_special_ids` for last_nonspecial; unused otherwise.
        seed: for `sample`.

    Returns:
        Positions; `stats` has prompts, tokens (total), per_prompt [min, median, max], from_end [min,
        median, max] (0 is the prompt's last token), straddling (content ends inside a token) and
        fallbacks (prompts for which the rule had to give way: nothing to choose from).

    Raises:
        PromptsError: unknown name, or a prompt without any token of its own text.
    """
    parsed = parse_position(name)
    if parsed.name in PARTS:
        part, take = PARTS[parsed.name]
        return part_position(encoded, part, parsed.name, take)
    rows = _Rows.of(encoded, "content")
    special = set(tokenizer.all_special_ids) if parsed.name == "last_nonspecial" else set()
    fallbacks = 0
    if parsed.name == "decision":
        indices = _each(rows.lengths - 1)
    elif parsed.name == "last_nonspecial":
        last = rows.last_where(~np.isin(rows.ids, np.fromiter(special, np.int64, len(special))))
        indices, fallbacks = _each(np.where(last < 0, rows.lengths - 1, last)), int((last < 0).sum())
    elif parsed.name in ("mean_all", "tokens"):
        indices = [np.arange(length) for length in rows.lengths]
    else:
        rows.require(encoded, "content", str(parsed))
        drawn = [_sample(row, parsed, seed) for row in _texts(encoded, parsed)]
        indices, fallbacks = [chosen for chosen, _ in drawn], sum(fell_back for _, fell_back in drawn)
    stats = _statistics(indices, rows.lengths)
    stats |= {"fallbacks": fallbacks, "straddling": rows.straddling}
    return Positions(str(parsed), parsed.kind, tuple(indices), stats)


def part_position(encoded: pl.DataFrame, part: str, name: str, take: str) -> Positions:
    """The first or last token of a part of every prompt, or the mean over its tokens, as a position.

    Args:
        encoded: with the columns `<part>_start` and `<part>_end`, characters of the rendered prompt.
        take: "first", "last" or "mean".

    Raises:
        PromptsError: a prompt without any token of that part.
    """
    if f"{part}_start" not in encoded.columns:
        raise _without(part, name)
    rows = _Rows.of(encoded, part)
    rows.require(encoded, part, name)
    tokens = np.split(rows.within[rows.inside], np.cumsum(rows.counts)[:-1])
    indices = tokens if take == "mean" else [one[:1] if take == "first" else one[-1:] for one in tokens]
    stats = _statistics(indices, rows.lengths) | {"fallbacks": 0, "straddling": rows.straddling}
    return Positions(name, "mean" if take == "mean" else "one", tuple(indices), stats)


def without_part(encoded: pl.DataFrame, part: str) -> pl.Series:
    """Which prompts have no token of a part, Boolean (n,)."""
    return pl.Series(_Rows.of(encoded, part).counts == 0)


_PARTS = {
    "content": (
        "the user's own text",
        "check the tokenizer's character offsets, or use the position 'decision'.",
    ),
    "answer": (
        "an answer",
        "give its text: prompts.answers names its column or the model that says it, prompts.prefill begins "
        "the assistant's turn.",
    ),
    "assistant": ("the assistant's header", "use a chat template, or leave 'assistant_start' out."),
    "span": ("the span", "check the tokenizer's character offsets, or the position in capture.positions."),
}


def _without(part: str, name: str) -> PromptsError:
    what, next_step = _PARTS[part]
    return PromptsError(
        f"The prompts have no position {name!r}.",
        expected=f"prompts with {what}",
        given="none",
        next_step=next_step,
    )


@dataclass(frozen=True)
class _Rows:
    """All prompts' tokens end to end.

    Attributes:
        lengths: tokens of each prompt. ids, within: each token's id and index in its prompt.
        inside: whether a token covers at least one character of its prompt's part.
        counts: such tokens of each prompt.
        straddling: prompts whose part ends inside a token.
    """

    lengths: np.ndarray[Any, Any]
    ids: np.ndarray[Any, Any]
    within: np.ndarray[Any, Any]
    inside: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    straddling: int

    @staticmethod
    def of(encoded: pl.DataFrame, part: str) -> _Rows:
        lengths = encoded["token_ids"].list.len().to_numpy().astype(np.int64)
        ids = encoded["token_ids"].explode().drop_nulls().to_numpy().astype(np.int64)
        spans = encoded["offsets"].explode().drop_nulls().explode().to_numpy().astype(np.int64).reshape(-1, 2)
        bounds = (encoded[f"{part}_{side}"].fill_null(-1) for side in ("start", "end"))
        starts, ends = (bound.to_numpy().astype(np.int64) for bound in bounds)
        begins = np.cumsum(lengths) - lengths
        within = np.arange(len(ids)) - np.repeat(begins, lengths)
        inside = (spans[:, 0] < np.repeat(ends, lengths)) & (spans[:, 1] > np.repeat(starts, lengths))
        inside = inside & (spans[:, 1] > spans[:, 0])
        rows = np.repeat(np.arange(len(lengths)), lengths)
        counts = np.bincount(rows[inside], minlength=len(lengths))
        last = _last(inside, rows, within, len(lengths))
        there = last >= 0
        straddling = int((spans[(begins + last)[there], 1] > ends[there]).sum())
        return _Rows(lengths, ids, within, inside, counts, straddling)

    def last_where(self, chosen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The last chosen token of each prompt, -1 where there is none."""
        rows = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return _last(chosen, rows, self.within, len(self.lengths))

    def require(self, encoded: pl.DataFrame, part: str, name: str) -> None:
        """PromptsError for a prompt without any token of the part."""
        without = np.flatnonzero(self.counts == 0)
        if not len(without):
            return
        number, (what, next_step) = int(without[0]), _PARTS[part]
        row = encoded.row(number, named=True)
        more = f"; {len(without)} such prompts" if len(without) > 1 else ""
        where = f"characters {row[f'{part}_start']} to {row[f'{part}_end']}"
        raise PromptsError(
            f"Prompt {str(row.get('id', number))!r} has no token of {what}.",
            expected=f"for the position {name!r}, at least one token whose characters lie in it",
            given=f"{where} of {row['rendered']!r}{more}",
            next_step=next_step,
        )


def _last(
    chosen: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], within: np.ndarray[Any, Any], n: int
) -> np.ndarray[Any, Any]:
    found = np.full(n, -1, dtype=np.int64)
    found[rows[chosen]] = within[chosen]  # tokens ascend, so that the last one stays
    return found


def _each(tokens: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """One token of every prompt."""
    return list(tokens.reshape(-1, 1))


@dataclass(frozen=True)
class _Text:
    """A prompt as `sample` sees it: id, rendered text, where the user's own is, tokens' characters."""

    key: str
    rendered: str
    start: int
    end: int
    offsets: list[list[int]]


def _texts(encoded: pl.DataFrame, position: PositionName) -> Iterator[_Text]:
    if "rendered" not in encoded.columns:
        raise PromptsError(
            f"The position {position} draws words of a text, which isn't kept.",
            expected="the prompts' rendered text beside their tokens",
            given=", ".join(encoded.columns),
            next_step="precompute a new store, or use last_content.",
        )
    names = encoded["id"].to_list() if "id" in encoded.columns else list(range(encoded.height))
    columns = ("rendered", "content_start", "content_end", "offsets")
    for key, (text, start, end, offsets) in zip(names, encoded.select(columns).iter_rows(), strict=True):
        yield _Text(str(key), text, int(start), int(end), offsets)


def _sample(prompt: _Text, position: PositionName, seed: int) -> tuple[Tokens, bool]:
    """The last tokens of drawn words of a prompt, and whether the rule had to give way.

    The draw knows the prompt's id and its own text alone: it is the same for every tokenizer. A token that
    ends two drawn words comes twice, so that rows of two models stay pairs.
    """
    own = prompt.rendered[prompt.start : prompt.end]
    ends = [prompt.start + found.end() for found in _WORD.finditer(own)]
    available, tokens = (
        len(ends) - position.skip_last,
        content_tokens(prompt.offsets, prompt.start, prompt.end),
    )
    if available < 1:
        return tokens[:1], True
    digest = hashlib.sha256(f"{seed}\0{prompt.key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    chosen = np.sort(generator.choice(available, size=min(position.k, available), replace=False))
    begins = np.array([prompt.offsets[token][0] for token in tokens])
    last = np.array([np.searchsorted(begins, ends[word], side="left") - 1 for word in chosen])
    found = tokens[np.maximum(last, 0)]
    if not position.draw:
        return found, available < position.k
    return found[[min(position.draw, len(found)) - 1]], len(found) < position.draw


def _statistics(indices: Sequence[np.ndarray[Any, Any]], lengths: np.ndarray[Any, Any]) -> dict[str, Any]:
    counts = np.array([len(i) for i in indices], dtype=np.int64)
    flat = np.concatenate(indices) if len(indices) else np.zeros(0, dtype=np.int64)
    return {
        "prompts": len(indices),
        "tokens": int(counts.sum()),
        "per_prompt": _three(counts),
        "from_end": _three(np.repeat(lengths - 1, counts) - flat),
    }


def _three(values: np.ndarray[Any, Any]) -> list[float]:
    if not len(values):
        return []
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]
