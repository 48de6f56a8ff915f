"""Which prompts take part in a patch map, and which of their tokens stand for each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from engine.errors import PatchError
from engine.lab.experiment import Lab
from engine.lab.rows import row_of
from engine.patch_map.numbers import aligned, nearest
from engine.patch_map.spec import PatchMap

__all__ = ["Prompts", "unrelated"]

MOST_READ = 2000
"""Prompts whose lengths are looked at for those that are nearest."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a map.

    Attributes:
        row, donor_row: of the receiving prompt and the donor's. ids, donor_ids: their tokens.
        tokens, donor_tokens: indices of the tokens that stand for each other, (k,), ascending.
        null_rows, null_ids: unrelated prompts of at least k / 2 tokens, and theirs.
    """

    row: int
    donor_row: int
    ids: list[int]
    donor_ids: list[int]
    tokens: np.ndarray
    donor_tokens: np.ndarray
    null_rows: tuple[int, ...]
    null_ids: list[list[int]]

    @classmethod
    def of(cls, spec: PatchMap, lab: Lab) -> Prompts:
        """Reads the prompts of a map; models aren't loaded.

        Raises:
            PatchError: no such prompt, models that read one of them as different tokens, or whose streams
                or depths don't fit.
        """
        _fit(spec, lab)
        row, donor_row = row_of(lab.prompts, spec.prompt), row_of(lab.prompts, spec.donor)
        both = [row, donor_row]
        ids, donor_ids = lab.token_ids(spec.target, both)
        if spec.source != spec.target:
            _same_tokens(spec, [ids, donor_ids], lab.token_ids(spec.source, both))
        tokens, donor_tokens = aligned(len(ids), len(donor_ids), spec.last)
        nulls = unrelated(lab.prompts, row, donor_row, spec.seed)
        lengths = np.array([len(one) for one in lab.token_ids(spec.source, nulls)], dtype=np.int64)
        kept = nulls[nearest(lengths, len(donor_ids), len(tokens), spec.nulls, spec.seed)]
        return cls(
            row,
            donor_row,
            ids,
            donor_ids,
            tokens,
            donor_tokens,
            tuple(kept.tolist()),
            lab.token_ids(spec.source, kept),
        )

    @property
    def count(self) -> int:
        """Tokens that are patched."""
        return len(self.tokens)

    @property
    def compared(self) -> int:
        """The last ones of the patched tokens, as many as every unrelated prompt has."""
        return min([self.count, *map(len, self.null_ids)])

    def null_tokens(self, number: int) -> np.ndarray:
        """Tokens of an unrelated prompt that stand for the last ones of the donor's; at most k."""
        length = len(self.null_ids[number])
        return np.arange(max(0, length - self.count), length)

    def notes(self) -> list[str]:
        """What a reader must know of the alignment."""
        own, given, count = len(self.ids), len(self.donor_ids), self.count
        said = []
        if own != given:
            said.append(
                f"The prompts have {own} and {given} tokens: they were aligned from the end, {count} of them."
            )
        if count < min(own, given):
            said.append(f"Only the last {count} of {min(own, given)} tokens were patched.")
        return said


def unrelated(prompts: pl.DataFrame, row: int, donor_row: int, seed: int) -> np.ndarray:
    """Prompts in the donor's language that are of no pair with either, no corruption of one and no copy.

    Returns:
        rows, int64, ascending; of more than `MOST_READ` a draw.
    """
    both = prompts[[row, donor_row]]
    copy = pl.col("text").is_in(both["text"].implode()) & (pl.col("text") != "")  # "": given as token ids
    keep = ~copy.fill_null(False) & ~pl.col("id").is_in(both["id"].implode())
    if "pair_id" in prompts.columns:
        keep &= ~pl.col("pair_id").is_in(both["pair_id"].drop_nulls().implode()).fill_null(False)
    if "corrupt_of" in prompts.columns:
        origins = pl.concat([both["id"].cast(pl.String), both["corrupt_of"].cast(pl.String).drop_nulls()])
        for column in ("id", "corrupt_of"):
            keep &= ~pl.col(column).cast(pl.String).is_in(origins.implode()).fill_null(False)
    if "language" in prompts.columns:
        keep &= pl.col("language").eq_missing(both["language"][1])
    rows = np.flatnonzero(prompts.select(keep.alias("keep"))["keep"].to_numpy()).astype(np.int64)
    if rows.size > MOST_READ:
        rows = np.sort(np.random.default_rng(seed).choice(rows, MOST_READ, replace=False))
    return rows


def _same_tokens(spec: PatchMap, own: Sequence[list[int]], given: Sequence[list[int]]) -> None:
    for prompt, one, other in zip((spec.prompt, spec.donor), own, given, strict=True):
        if list(one) != list(other):
            raise PatchError(
                f"The two models read the prompt {prompt} as different tokens.",
                expected="the same token ids in both",
                given=f"{len(one)} tokens of {spec.target}, {len(other)} of {spec.source}",
                next_step="choose two models of one tokenizer, or two prompts of one model.",
            )


def _fit(spec: PatchMap, lab: Lab) -> None:
    own, given = (lab.sizes(name) for name in spec.models())
    if any(own[key] != given[key] for key in ("d", "n_layers")):
        raise PatchError(
            f"What {spec.source} holds cannot be put into {spec.target} as it is.",
            expected=f"{own['n_layers']} blocks of width {own['d']}, as {spec.target} has",
            given=f"{given['n_layers']} of width {given['d']}",
            next_step="choose two models of one architecture, or patch through a transport map.",
        )
