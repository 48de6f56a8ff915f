"""The prompts of subspace scores: which build bases, which carry the label, and both personas."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.errors import PromptsError
from engine.prompts.spec import PromptFilter, PromptsSpec
from engine.prompts.table import matches
from engine.prompts.tokens import encode
from engine.study.subspaces import SubspacesSpec

__all__ = ["PERSONAS", "SubspacePrompts", "choose_rows", "subspace_prompts"]

_OWN = {"template"}
"""Columns by which a prompt says how it is rendered."""
PERSONAS = ("positive", "negative")


@dataclass(frozen=True)
class SubspacePrompts:
    """Chosen prompts and how the personas' versions of them read.

    Attributes:
        fit, evaluate: ascending rows of the prompts table, of the train and of the validation split.
        entries: per fit prompt, which message of both personas it takes.
        encoded: per persona, fit prompts as `engine.prompts.tokens.encode` gives them.
        start: the token that attention sinks into: the tokenizer's BOS, else its EOS; None without either.
        notes: what a reader needs to know of the rendering.
    """

    fit: np.ndarray
    evaluate: np.ndarray
    entries: np.ndarray
    encoded: dict[str, pl.DataFrame]
    start: int | None
    notes: tuple[str, ...] = ()

    def token_ids(self, persona: str) -> list[list[int]]:
        """Tokens of every fit prompt under a persona."""
        found: list[list[int]] = self.encoded[persona]["token_ids"].to_list()
        return found

    def table(self) -> pl.DataFrame:
        """row, split, persona (entry of both lists; null where no persona is put on)."""
        n, m = len(self.fit), len(self.evaluate)
        return pl.DataFrame(
            {
                "row": np.concatenate([self.fit, self.evaluate]).astype(np.int64),
                "split": ["fit"] * n + ["evaluate"] * m,
                "persona": [*self.entries.tolist(), *[None] * m],
            },
            schema={"row": pl.Int64, "split": pl.String, "persona": pl.Int64},
        )

    def tokens_table(self) -> pl.DataFrame:
        """Where the tokens of every fit prompt lie in the arrays over tokens, and what was rendered."""
        parts = []
        for persona, encoded in self.encoded.items():
            counts = encoded["token_ids"].list.len().cast(pl.Int64)
            parts.append(
                encoded.select(
                    pl.lit(persona).alias("persona"),
                    pl.Series("prompt", self.fit.astype(np.int64)),
                    (counts.cum_sum() - counts).alias("start"),
                    counts.alias("count"),
                    "rendered",
                    "token_ids",
                )
            )
        return pl.concat(parts)


def choose_rows(table: pl.DataFrame, spec: SubspacesSpec, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the prompts that build bases, and of those that carry the label; drawn where there are more.

    Raises:
        PromptsError: `where` or `probe` names what no prompt has, or leaves fewer than two of either.
    """
    keep = _matching(table, spec.where, "where")
    train = keep & (table["split"] == "train")
    held, named = keep & (table["split"] == "validation"), "where"
    if spec.probe is not None:
        held, named = _matching(table, spec.probe, "probe") & ~train, "probe"
    rng = np.random.default_rng(seed)
    found = []
    for chosen, most, key, by in (
        (train, spec.fit, "fit", "where"),
        (held, spec.evaluate, "evaluate", named),
    ):
        rows = np.flatnonzero(chosen.to_numpy())
        if len(rows) < 2:
            of = {"fit": "of the train split", "where": "of the validation split"}
            raise PromptsError(
                f"There are too few prompts to {key} subspace scores.",
                expected=f"at least 2 {of.get(key) or of.get(by) or 'that build no bases'}"
                + (f" that subspaces.{by} matches" if getattr(spec, by) else ""),
                given=f"{len(rows)} of {table.height}",
                next_step=f"widen subspaces.{by}, or add prompts.",
            )
        found.append(np.sort(rng.permutation(rows)[:most]))
    return found[0], found[1]


def _matching(table: pl.DataFrame, wanted: PromptFilter | None, key: str) -> pl.Series:
    """Which prompts a filter of `[subspaces]` keeps; all without one."""
    if wanted is None:
        return pl.Series([True] * table.height)
    for column, values in (("category", wanted.category), ("language", wanted.language)):
        known = set(table[column].drop_nulls())
        unknown = sorted(set(values) - known)
        if unknown:
            raise PromptsError(
                f"subspaces.{key} names a {column} that no prompt has.",
                expected=", ".join(sorted(known)) or f"prompts with a {column}",
                given=repr(unknown[0]),
                next_step=f"correct subspaces.{key}.{column}.",
            )
    return matches(table, wanted)


def subspace_prompts(
    table: pl.DataFrame,
    tokenizer: Any,
    prompts: PromptsSpec,
    spec: SubspacesSpec,
    *,
    seed: int,
    max_length: int,
) -> SubspacePrompts:
    """Chooses prompts and renders the fit ones under both personas.

    Args:
        table: prompts with their split.
        tokenizer, max_length: of the first model.

    Raises:
        PromptsError: see `choose_rows` and `engine.prompts.tokens.encode`.
    """
    fit, evaluate = choose_rows(table, spec, seed)
    entries = np.arange(len(fit)) % len(spec.positive)
    chosen = table[fit]
    _refuse_tokens(chosen, prompts)
    if spec.template != "prompts":
        prompts = prompts.model_copy(update={"template": spec.template})
        chosen = chosen.with_columns(
            pl.lit(None).cast(chosen.schema[c]).alias(c) for c in _OWN & set(chosen.columns)
        )
    as_system = prompts.template == "chat" and _takes_system(chosen, tokenizer, prompts, spec)
    rendered = {}
    for persona, texts in zip(PERSONAS, (spec.positive, spec.negative), strict=True):
        put_on = _with_persona(chosen, [texts[i] for i in entries], as_system)
        rendered[persona] = _encode(put_on, persona, tokenizer, prompts, max_length)
    notes = () if as_system else (_why(prompts),)
    return SubspacePrompts(fit, evaluate, entries, rendered, _start(tokenizer), notes)


def _refuse_tokens(chosen: pl.DataFrame, prompts: PromptsSpec) -> None:
    """PromptsError for prompts given as token ids, which take no persona."""
    if "token_ids" not in prompts.roles:
        return
    given = chosen.filter(pl.col("token_ids").is_not_null())["id"]
    if len(given):
        raise PromptsError(
            "Prompts that are given as token ids can't take the personas of [subspaces].",
            expected="prompts as text",
            given=f"{len(given)} as token ids, e.g. {given[0]!r}",
            next_step="leave them out with subspaces.where.",
        )


def _encode(
    table: pl.DataFrame, persona: str, tokenizer: Any, prompts: PromptsSpec, max_length: int
) -> pl.DataFrame:
    """`encode`, whose errors are told of the persona: the prompt alone may be fine."""
    try:
        return encode(
            table,
            tokenizer,
            prompts.model_copy(update={"too_long": "refuse", "unusable": "refuse"}),
            max_length,
        )
    except PromptsError as error:
        raise PromptsError(
            f"A prompt can't take the {persona} persona of [subspaces]. {error.what}",
            expected=error.expected,
            given=f"{error.given} with the persona",
            next_step=f"shorten subspaces.{persona}, or leave the prompt out with subspaces.where.",
        ) from error


def _why(prompts: PromptsSpec) -> str:
    because = (
        "plain prompts have no system message"
        if prompts.template == "plain"
        else "the chat template takes no system message"
    )
    return f"Personas stand in front of the user's text, with a blank line between: {because}."


def _takes_system(chosen: pl.DataFrame, tokenizer: Any, prompts: PromptsSpec, spec: SubspacesSpec) -> bool:
    """Whether the template puts a system message into the prompt; some refuse one, some drop it."""
    probe = spec.positive[0]
    try:  # of any length: a persona that is too long is another error
        made = encode(_with_persona(chosen[:1], [probe], as_system=True), tokenizer, prompts, sys.maxsize)
    except PromptsError:
        return False
    return probe.strip() in made["rendered"][0]


def _with_persona(table: pl.DataFrame, personas: Sequence[str], as_system: bool) -> pl.DataFrame:
    """Prompts with a persona as their system message, instead of their own, or before the user's text."""
    rows = []
    for prompt, persona in zip(table.iter_rows(named=True), personas, strict=True):
        messages = [dict(message) for message in prompt["messages"] or ()]
        messages = messages or [{"role": "user", "content": prompt["text"]}]
        if as_system:
            rows.append(prompt | _with_system(messages, prompt, persona))
        else:
            rows.append(prompt | _prefixed(messages, persona))
    return pl.DataFrame(rows, schema=table.schema)


def _with_system(messages: list[dict[str, str]], prompt: dict[str, Any], persona: str) -> dict[str, Any]:
    """Messages under a persona, and what else templates print of them, in the place of the prompt's own."""
    kept = [place for place, message in enumerate(messages) if message["role"] != "system"]
    put_on = {"messages": [{"role": "system", "content": persona}, *(messages[place] for place in kept)]}
    found: dict[str, Any] = put_on | ({"system": None} if "system" in prompt else {})
    if prompt.get("message_fields") is not None:
        more = json.loads(prompt["message_fields"])
        found["message_fields"] = json.dumps([{}, *(more[place] for place in kept)], ensure_ascii=False)
    return found


def _prefixed(messages: list[dict[str, str]], persona: str) -> dict[str, Any]:
    first = next(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[first]["content"] = f"{persona}\n\n{messages[first]['content']}"
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    return {"messages": messages, "text": messages[last]["content"]}


def _start(tokenizer: Any) -> int | None:
    special = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return None if special is None else int(special)
