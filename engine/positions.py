"""Token positions: which tokens of a rendered prompt an activation is taken from.

`decision` is the last token of the rendered prompt; `last_content` the last token of the user's own
text, found through the tokenizer's character offsets; `last_nonspecial` the last token whose id is not
special (behind a chat template this is usually the newline after the assistant header); `mean` pools
the tokens of the user's own text, `mean_all` all tokens; `tokens` keeps every token;
`sample(k=4,skip_last=1)` draws k tokens per prompt with a seed, leaving out the last ones.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from engine.errors import PromptsError

Kind = Literal["one", "mean", "many"]
Indices = tuple[np.ndarray[Any, np.dtype[np.int64]], ...]

KINDS: dict[str, Kind] = {
    "decision": "one",
    "last_content": "one",
    "last_nonspecial": "one",
    "mean": "mean",
    "mean_all": "mean",
    "tokens": "many",
    "sample": "many",
}
_CALL = re.compile(r"(?P<name>[a-z_]+)(?:\((?P<args>[^()]*)\))?")


@dataclass(frozen=True)
class PositionName:
    """A parsed position name; `k` and `skip_last` are used by `sample` only."""

    name: str
    kind: Kind
    k: int = 0
    skip_last: int = 0

    def __str__(self) -> str:
        return f"sample(k={self.k},skip_last={self.skip_last})" if self.name == "sample" else self.name


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
    return PositionName(name, "many", values["k"], values["skip_last"])


def _sample_arguments(text: str, args: str) -> dict[str, int]:
    values = {"k": 4, "skip_last": 0}
    for part in filter(None, args.split(",")):
        key, _, value = part.partition("=")
        if key not in values or not value.isdigit():
            raise PromptsError(
                f"The arguments of {text!r} could not be read.",
                expected="sample(k=4,skip_last=1) with whole numbers",
                given=repr(part),
            )
        values[key] = int(value)
    if values["k"] < 1:
        raise PromptsError("sample needs at least one token.", expected="k of 1 or more", given=repr(text))
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
    """Resolves a position name on encoded prompts (see `engine.prompts.encode`).

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
    special = frozenset(tokenizer.all_special_ids) if parsed.name == "last_nonspecial" else frozenset()
    names = encoded["id"].to_list() if "id" in encoded.columns else list(range(encoded.height))
    choose = _CHOOSERS[parsed.name]
    indices, fallbacks, straddling = [], 0, 0
    for key, row in zip(names, encoded.iter_rows(named=True), strict=True):
        chosen, fell_back = choose(row, _Context(parsed, special, seed, str(key)))
        indices.append(np.asarray(chosen, dtype=np.int64))
        fallbacks += fell_back
        straddling += _straddles(row)
    stats = _statistics(indices, encoded["token_ids"].list.len().to_list())
    return Positions(
        str(parsed), parsed.kind, tuple(indices), stats | {"fallbacks": fallbacks, "straddling": straddling}
    )


@dataclass(frozen=True)
class _Context:
    position: PositionName
    special: frozenset[int]
    seed: int
    key: str


_Choice = tuple[Any, bool]


def _content(row: dict[str, Any], context: _Context) -> np.ndarray[Any, Any]:
    found = content_tokens(row["offsets"], row["content_start"], row["content_end"])
    if not len(found):
        raise PromptsError(
            f"Prompt {context.key!r} has no token of the user's own text.",
            expected="at least one token whose characters lie in the text",
            given=f"characters {row['content_start']} to {row['content_end']} of {row['rendered']!r}",
            next_step="check the tokenizer's character offsets, or use the position 'decision'.",
        )
    return found


def _decision(row: dict[str, Any], _context: _Context) -> _Choice:
    return [len(row["token_ids"]) - 1], False


def _last_content(row: dict[str, Any], context: _Context) -> _Choice:
    return _content(row, context)[-1:], False


def _last_nonspecial(row: dict[str, Any], context: _Context) -> _Choice:
    plain = [i for i, token in enumerate(row["token_ids"]) if token not in context.special]
    return (plain[-1:], False) if plain else ([len(row["token_ids"]) - 1], True)


def _mean(row: dict[str, Any], context: _Context) -> _Choice:
    return _content(row, context), False


def _all(row: dict[str, Any], _context: _Context) -> _Choice:
    return np.arange(len(row["token_ids"])), False


def _sample(row: dict[str, Any], context: _Context) -> _Choice:
    k, available = context.position.k, len(row["token_ids"]) - context.position.skip_last
    if available < 1:
        return [0], True
    if available <= k:
        return np.arange(available), available < k
    digest = hashlib.sha256(f"{context.seed}\0{context.key}".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    return np.sort(generator.choice(available, size=k, replace=False)), False


_CHOOSERS: dict[str, Callable[[dict[str, Any], _Context], _Choice]] = {
    "decision": _decision,
    "last_content": _last_content,
    "last_nonspecial": _last_nonspecial,
    "mean": _mean,
    "mean_all": _all,
    "tokens": _all,
    "sample": _sample,
}


def _straddles(row: dict[str, Any]) -> bool:
    found = content_tokens(row["offsets"], row["content_start"], row["content_end"])
    return bool(len(found)) and row["offsets"][found[-1]][1] > row["content_end"]


def _statistics(indices: list[np.ndarray[Any, Any]], lengths: list[int]) -> dict[str, Any]:
    counts = np.array([len(i) for i in indices])
    from_end = [length - 1 - i for i, length in zip(indices, lengths, strict=True)]
    flat = np.concatenate(from_end) if from_end else np.zeros(0)
    return {
        "prompts": len(indices),
        "tokens": int(counts.sum()),
        "per_prompt": _three(counts),
        "from_end": _three(flat),
    }


def _three(values: np.ndarray[Any, Any]) -> list[float]:
    if not len(values):
        return []
    return [float(np.min(values)), float(np.median(values)), float(np.max(values))]
