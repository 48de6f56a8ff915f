"""Both models' states, place by place: of the study's prompts, or of plain texts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from engine.difference_lens.spec import DifferenceLens
from engine.difference_lens.texts import NEUTRAL
from engine.difference_lens.units import ends_of, told_apart
from engine.errors import JobError, PatchError
from engine.lab.experiment import Lab
from engine.models.loading import LoadedModel
from engine.models.sites import Site, record
from engine.passes.capture import forward_hidden
from engine.stats.rounding_error import BITS

__all__ = ["Streams", "first_tokens", "of_prompts", "of_texts"]

TEXTS = 32
"""Texts in a batch."""


@dataclass(frozen=True)
class Streams:
    """Both models' states at one block and position, (k, d) each, of one row for each beginning.

    Attributes:
        kept: the dtype that rounded them, or "". unit: 0 … G − 1 of each row. first: (G,) of all units of the
            run the one that each goes by.
    """

    position: str
    layer: int
    target: np.ndarray
    source: np.ndarray
    kept: str
    unit: np.ndarray
    first: np.ndarray

    @classmethod
    def of(
        cls,
        position: str,
        layer: int,
        ends: Sequence[np.ndarray],
        unit: np.ndarray,
        beginnings: Sequence[Hashable],
        kept: str = "",
    ) -> Streams:
        """From the states of all rows (n, d), their units, and what tells their beginnings apart."""
        rows, own = told_apart(unit, beginnings)
        first = unit[rows][np.unique(own, return_index=True)[1]]
        return cls(position, layer, ends[0][rows], ends[1][rows], kept, own, first)

    @property
    def units(self) -> int:
        """How many differ here."""
        return len(self.first)


def of_prompts(
    spec: DifferenceLens, lab: Lab, rows: np.ndarray, unit: np.ndarray, blocks: Sequence[int]
) -> Iterator[Streams]:
    """At every position and block, of these prompts and the unit of each."""
    for position in spec.positions:
        beginnings = ends_of(spec, lab, position, rows)
        for layer in blocks:
            site = Site("resid_post", layer)
            ends = [lab.activations(model, site, position, rows) for model in spec.models()]
            said = [lab.origin(model, site, position).removeprefix("stored ") for model in spec.models()]
            kept = min((name for name in said if name in BITS), key=BITS.__getitem__, default="")
            yield Streams.of(position, layer, ends, unit, beginnings, kept)


def first_tokens(spec: DifferenceLens, lab: Lab) -> list[list[int]]:
    """The first tokens of every text that is long enough, the same in both models."""
    texts = spec.texts or NEUTRAL
    both = [[lab.typed(model, text, raw=True) for text in texts] for model in spec.models()]
    if both[0] != both[1]:
        raise PatchError(
            "The two models read these texts as different tokens.",
            expected="the same token ids in both",
            given=f"{sum(a != b for a, b in zip(*both, strict=True))} of {len(texts)} texts that differ",
            next_step="choose two models of one tokenizer.",
        )
    long = [ids[: spec.tokens] for ids in both[0] if len(ids) >= spec.tokens]
    if len(long) < 2:
        raise PatchError(
            "The texts are too short.",
            expected=f"at least 2 texts of {spec.tokens} tokens",
            given=f"{len(long)} of {len(texts)}",
            next_step="read fewer tokens, or longer texts.",
        )
    return long


def of_texts(
    spec: DifferenceLens,
    lab: Lab,
    ids: Sequence[Sequence[int]],
    unit: Int[np.ndarray, " n"],
    blocks: Sequence[int],
) -> Iterator[Streams]:
    """At every first token and block: no later token can be seen by them."""
    ends = [_states(lab, lab.model(model), ids, blocks) for model in spec.models()]
    for token in range(spec.tokens):
        beginnings = [tuple(one[: token + 1]) for one in ids]
        for layer in blocks:
            states = [end[layer][:, token] for end in ends]
            yield Streams.of(f"token {token}", layer, states, unit, beginnings)


def _states(
    lab: Lab, lm: LoadedModel, ids: Sequence[Sequence[int]], blocks: Sequence[int]
) -> dict[int, np.ndarray]:
    """Behind each block, float32 (texts, tokens, d)."""
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in blocks}
    for at in range(0, len(ids), TEXTS):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        with lm.lock, record(lm.taps, ("resid_post",), blocks) as seen:
            forward_hidden(lm, ids[at : at + TEXTS])
        for layer in blocks:
            found[layer].append(seen["resid_post", layer].float().cpu().numpy())
    return {layer: np.concatenate(parts) for layer, parts in found.items()}
