"""What steering puts in: directions of unit length, amplitudes in units of a site's mean norm, ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from engine.errors import PatchError
from engine.lab.experiment import Lab, chosen_rows, width_text
from engine.models.sites import Site
from engine.passes.continuations import spelled
from engine.patching.tables import token_text
from engine.patching.vectors import readout
from engine.rank.numbers import leading_directions, random_basis
from engine.steering.spec import Steering


class Move(NamedTuple):
    """One condition.

    Attributes:
        series: direction, random, ablate (towards 0), ablate_mean (towards the train mean) or ablate_random
            (a random span of as many directions, towards 0).
        draw: of the random direction or span, from 1; 0 is v. alpha: signed; 0 for ablations.
    """

    series: str
    draw: int
    alpha: float


@dataclass(frozen=True)
class Steer:
    """Directions at a site of the target.

    Attributes:
        own: (n, d) the target's own activations. mean: (d,) over the train prompts.
        norm: their mean norm. directions: (1 + draws, d) unit rows, v first.
        spans: what is taken away, each (d, k) column-orthonormal: that of v, then random ones.
    """

    own: Float[np.ndarray, "n d"]
    mean: Float[np.ndarray, " d"]
    norm: float
    directions: Float[np.ndarray, "m d"]
    spans: tuple[Float[np.ndarray, "d k"], ...]

    def at(self, moves: Sequence[Move], prompts: Sequence[int]) -> Float32[np.ndarray, "c p d"]:
        """Vectors of every condition for some prompts."""
        own = self.own[list(prompts)]
        out = np.empty((len(moves), *own.shape), dtype=np.float32)
        for i, move in enumerate(moves):
            if move.series.startswith("ablate"):
                span, around = self.spans[move.draw], self.mean if move.series == "ablate_mean" else 0.0
                out[i] = own - ((own - around) @ span) @ span.T
            else:
                out[i] = own + move.alpha * self.norm * self.directions[move.draw]
        return out


def unit(vector: Float[np.ndarray, " d"], what: str) -> Float[np.ndarray, " d"]:
    """A vector at length 1; PatchError when it has none."""
    length = float(np.linalg.norm(vector))
    if not length > 0:
        raise PatchError(
            f"There is no direction: {what} is zero.",
            expected="two sides that differ on the train prompts",
            given="no difference",
            next_step="choose a site behind the first change, or another contrast.",
        )
    return vector / length


def random_directions(d: int, draws: int, seed: int) -> Float[np.ndarray, "draws d"]:
    """Uniformly random unit rows."""
    drawn = np.random.default_rng(seed).normal(size=(draws, d))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def direction(
    spec: Steering, lab: Lab, tokens: Tokens
) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d k"]]:
    """The unit direction v (d,) and the span that is taken away (d, k), from train prompts alone.

    Raises:
        PatchError: widths that differ, a site without an unembedding, a direction of no length.
    """
    site, what = Site(spec.component, spec.layer), spec.direction_text()

    def train(model: str, group: Any) -> np.ndarray:
        rows = chosen_rows(lab.prompts, "train", group)
        return lab.activations(model, site, spec.position, rows).astype(np.float64)

    if spec.direction == "contrast":
        sides = [train(spec.target, group).mean(axis=0) for group in (spec.plus, spec.minus)]
        return _alone(unit(sides[0] - sides[1], what))
    if spec.direction == "unembedding":
        if spec.component == "head_z":
            raise PatchError(
                "The unembedding has no direction among head values.",
                expected="a site of the residual stream's width",
                given=spec.site_text(),
            )
        weights, gain = readout(lab, spec.target)()
        wanted, against = (weights[list(ids)].mean(axis=0) for ids in (tokens.wanted, tokens.against))
        return _alone(unit(gain * (wanted - against), what))
    _same_width(spec, lab)
    apart = train(spec.source, spec.where) - train(spec.target, spec.where)
    mean = apart.mean(axis=0)
    if spec.direction == "difference":
        return _alone(unit(mean, what))
    found = leading_directions(apart).basis
    last = spec.leading + spec.dims - 1
    if last > found.shape[1]:
        raise PatchError(
            f"{spec.source} − {spec.target} has fewer directions at {spec.site_text()}.",
            expected=f"1 to {found.shape[1]}" if found.shape[1] else "models that differ there",
            given=last,
        )
    span = found[:, spec.leading - 1 : last]
    if spec.dims > 1:
        return unit(span @ (span.T @ mean), what), span
    return _alone(unit(span[:, 0] if span[:, 0] @ mean >= 0 else -span[:, 0], what))


def _alone(v: Float[np.ndarray, " d"]) -> tuple[Float[np.ndarray, " d"], Float[np.ndarray, "d 1"]]:
    return v, v[:, None]


def random_spans(d: int, k: int, draws: int, seed: int) -> tuple[Float[np.ndarray, "d k"], ...]:
    """Uniformly random k-dimensional spans; none for k = 1, where v is told from random directions."""
    return tuple(random_basis(d, k, seed + draw) for draw in range(1, draws + 1)) if k > 1 else ()


def _same_width(spec: Steering, lab: Lab) -> None:
    target, source = (width_text(lab, model, spec.component) for model in (spec.target, spec.source))
    if target != source:
        raise PatchError(
            f"{spec.source} and {spec.target} have different widths at {spec.site_text()}.",
            expected=target,
            given=source,
            next_step="steer along a contrast of prompts within the target.",
        )


@dataclass(frozen=True)
class Tokens:
    """The tokens that two sets of words stand for.

    Attributes:
        wanted, against: token ids. texts: each token as text, by id.
        begins: ids of tokens that only begin their word, which has no form of one token.
    """

    wanted: tuple[int, ...]
    against: tuple[int, ...]
    texts: dict[int, str]
    begins: frozenset[int]

    def describe(self, side: tuple[int, ...]) -> str:
        """ "Yes", " yes", "Y"… (tokens that only begin their word have an ellipsis)."""
        return ", ".join(f"“{self.texts[t]}”" + ("…" if t in self.begins else "") for t in side)


def find_tokens(tokenizer: Any, wanted: Sequence[str], against: Sequence[str]) -> Tokens:
    """All one-token forms of two sets of words, in the tokenizer of the model that is steered.

    Raises:
        PatchError: a token that is in both sets.
    """
    sides = [word_tokens(tokenizer, words) for words in (wanted, against)]
    both = set(sides[0]) & set(sides[1])
    if both:
        raise PatchError(
            "The two sets of words share a token.",
            expected="words that this tokenizer tells apart at their first token",
            given=", ".join(repr(token_text(tokenizer, token)) for token in sorted(both)),
            next_step="choose other words.",
        )
    texts = {token: token_text(tokenizer, token) for side in sides for token in side}
    begins = frozenset(token for side in sides for token, whole in side.items() if not whole)
    return Tokens(tuple(sides[0]), tuple(sides[1]), texts, begins)


def word_tokens(tokenizer: Any, words: Sequence[str]) -> dict[int, bool]:
    """Tokens that stand for words, in order: id -> whether it is a whole word.

    A word's forms are itself, lower, upper and capitalised, each also behind a space. Those that are one
    token stand for it; where there is none, the first token of the word as given does.

    Raises:
        PatchError: a word of which no form can be spelled.
    """
    found: dict[int, bool] = {}
    for word in words:
        forms = dict.fromkeys((word, word.lower(), word.capitalize(), word.upper()))
        made = [spelled(tokenizer, text) for form in forms for text in (form, " " + form)]
        split = [ids for ids in made if ids is not None]
        if not split:
            raise PatchError(
                "A word can't be spelled in the vocabulary of the model that is steered.",
                expected="words of known tokens",
                given=repr(word),
                next_step="choose another word.",
            )
        whole = [ids[0] for ids in split if len(ids) == 1]
        for token in whole or [split[0][0]]:
            found[token] = found.get(token, False) or bool(whole)
    return found
