"""The contexts behind which both models are asked for the next token, and which of them count.

What is said behind a token depends on the tokens up to it. A beginning that rows of several units share (a
chat template's, say) is one context, however many rows have it: it is nobody's observation, and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Int

from engine.diff_mining.spec import DiffMining
from engine.difference_lens.texts import NEUTRAL
from engine.difference_lens.units import opened_by, units_of
from engine.errors import PatchError
from engine.lab.experiment import Lab, chosen_rows

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Contexts:
    """Rows of token ids, and the contexts that count.

    Attributes:
        ids: of every row. row, token: (N,) of each context the row and the index of its last token.
        unit: (N,) 0 … G − 1 of each context. name: what a unit is called. shared: beginnings left out.
        called: the id of each prompt; "text 3" of plain texts.
    """

    ids: Ids
    row: Int[np.ndarray, " n"]
    token: Int[np.ndarray, " n"]
    unit: Int[np.ndarray, " n"]
    name: str
    shared: int
    called: Sequence[str]

    @property
    def units(self) -> int:
        """How many units have a context."""
        return int(self.unit.max()) + 1


def contexts(spec: DiffMining, lab: Lab) -> Contexts:
    """Every context of the texts or prompts that belongs to one unit alone, once.

    Raises:
        PatchError: models that read them as different tokens; nothing that two units don't share.
    """
    if spec.over == "texts":
        texts = spec.texts or NEUTRAL
        called = [f"text {number}" for number in range(len(texts))]
        both = [[lab.typed(model, text, raw=True) for text in texts] for model in spec.models()]
        _alike(both)
        unit, name = opened_by(both[0]), "text"
    else:
        rows = chosen_rows(lab.prompts, spec.split, spec.where)
        both = [lab.token_ids(model, rows) for model in spec.models()]
        _alike(both)
        called = lab.prompts["id"][rows.tolist()].to_list()
        unit, name = units_of(spec.unit, lab.prompts[rows])
    return told_apart(both[0], unit, name, called)


def told_apart(ids: Ids, unit: Int[np.ndarray, " r"], name: str, called: Sequence[str]) -> Contexts:
    """The contexts of rows: each different beginning once, those of several units not at all."""
    begun: dict[tuple[int, int], int] = {}  # a beginning by the number of the shorter one and its last token
    owner: list[int] = []
    place: list[tuple[int, int]] = []
    for row, own in enumerate(ids):
        at = -1
        for token, last in enumerate(own):
            at = begun.setdefault((at, last), len(owner))
            if at == len(owner):
                owner.append(int(unit[row]))
                place.append((row, token))
            elif owner[at] != unit[row]:
                owner[at] = -1
    kept = [(*where, whose) for where, whose in zip(place, owner, strict=True) if whose >= 0]
    if len({whose for *_, whose in kept}) < 2:
        raise PatchError(
            "There are no two observations: whatever is read belongs to one unit, or to all of them.",
            expected="prompts or texts of at least 2 units that part somewhere",
            given=f"{len(ids)} {'texts' if name == 'text' else 'prompts'}",
            next_step="read other texts, or more prompts; texts should begin with different words.",
        )
    held = np.array(kept)
    unit = np.unique(held[:, 2], return_inverse=True)[1]
    return Contexts(ids, held[:, 0], held[:, 1], unit, name, len(owner) - len(kept), called)


def _alike(both: Sequence[Ids]) -> None:
    apart = sum(list(a) != list(b) for a, b in zip(*both, strict=True))
    if apart:
        raise PatchError(
            "The two models read this as different tokens.",
            expected="the same token ids in both",
            given=f"{apart} of {len(both[0])} that differ",
            next_step="choose two models of one tokenizer.",
        )


def snippets(
    found: Contexts,
    tokens: Int[np.ndarray, " k"],
    signs: Int[np.ndarray, " k"],
    before: np.ndarray,
    after: np.ndarray,
    tokenizer: Any,
    most: int,
) -> pl.DataFrame:
    """Where each token gains or loses most: the text before it, and its probability in both models.

    Args:
        signs: 1 of tokens that gain, −1 of those that lose. before, after: (N, K) of the source and the
            target. most: rows for each token.
    """
    change = after - before
    lines = []
    for column, (token, sign) in enumerate(zip(tokens, signs, strict=True)):
        for at in np.argsort(-sign * change[:, column], kind="stable")[:most]:
            row, last = int(found.row[at]), int(found.token[at])
            lines.append(
                {
                    "token_id": int(token),
                    "where": found.called[row],
                    "token": last,
                    "context": str(tokenizer.decode(list(found.ids[row][max(0, last - WIDTH) : last + 1]))),
                    "p_source": float(before[at, column]),
                    "p_target": float(after[at, column]),
                }
            )
    return pl.DataFrame(lines, schema=CONTEXTS)


WIDTH = 15
"""Tokens of a context that are kept with it."""
CONTEXTS = {
    "token_id": pl.Int64,
    "where": pl.String,
    "token": pl.Int64,
    "context": pl.String,
    "p_source": pl.Float64,
    "p_target": pl.Float64,
}
