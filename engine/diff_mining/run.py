"""Runs both models behind every token and asks which tokens one says more, or less, than the other.

Mining a fine-tune from the tokens whose probability changes on unrelated texts, as diffing-toolkit does;
Minder et al. 2025, "Narrow finetuning leaves clearly readable traces in activation differences".

Of each unit (a text, a pair of prompts) the probability of a token is its mean over the unit's contexts, so
that expected counts are compared; a token's change is the mean over units of the logarithm of their ratio.
Which tokens are tested depends on the mean of both models alone, which an exchange of the two leaves as it
is: sign flips of whole units stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from engine.diff_mining.contexts import Contexts, contexts, snippets
from engine.diff_mining.spec import DiffMining
from engine.diff_mining.topics import topics
from engine.difference_lens import numbers
from engine.difference_lens.scan import BLOCK, Draws, Place
from engine.errors import JobError, PatchError
from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.noise import Noise, kl_floor, kl_mean, measured
from engine.models.loading import LoadedModel
from engine.models.sites import record
from engine.passes.capture import forward_hidden
from engine.patching.tables import token_text

ROWS = 32
"""Rows that go through the decoder at once, and contexts through the unembedding."""
MOST = 2 * 2**30
"""Bytes of the units' probabilities and of the last states, of both models."""
SNIPPETS = 3
"""Contexts that are kept with each token."""
RAISED = 60
"""Tokens at most that topics are made of."""
TINY = 1e-30
"""Probability that none is below: of its logarithm."""


def run(spec: DiffMining, lab: Lab) -> ExperimentResult:
    """Reads both models behind every context.

    Returns:
        Tables: "table", a row for each token that is shown: `side`, `mean` of log p_target/p_source (nats,
        of each unit's mean probabilities), `low` and `high` for all tokens at once, `p_source` and
        `p_target`, `beyond` (chance and rounding). "contexts": where each of them changes most.
        "topics": tokens by topic with `weight`, the topic's `share` and `stability`; none where nothing is
        raised. The summary has `kl`, nats a context on average.

    Raises:
        PatchError: models of other vocabularies or tokens; nothing to tell apart, or said often enough; too
            large for memory.
        JobError: cancelled between the models.
    """
    found = contexts(spec, lab)
    _check_fits(spec, lab, found)
    states, said = {}, {}
    for number, model in enumerate(dict.fromkeys(spec.models())):
        if lab.should_stop():
            raise JobError("The experiment was cancelled.", next_step="Run it again.")
        lab.report(done=number, total=3, message=f"{len(found.row)} contexts through {model}")
        lm = lab.model(model)
        states[model] = last_states(lm, found)
        said[model] = by_unit(lm, states[model], found)
    target, source = (said[model] for model in spec.models())
    lab.report(done=2, total=3, message="Which tokens exceed chance")
    rounding = measured(lab, spec.models())
    change = Change.of(spec, target, source, rounding)
    shown, raised = change.shown, change.raised
    kl, before, after = compared(lab, spec, states, found, np.concatenate([shown, raised]))
    summary = {
        "n": len(found.ids),
        "contexts": len(found.row),
        "shared": found.shared,
        "units": found.units,
        "unit": found.name,
        "vocab": target.shape[1],
        "tested": len(change.tokens),
        "limited": change.held.known,
        "equal": not (target != source).any(),
        "beyond": int(change.told.sum()),
        "kl": kl,
        "floor": kl_floor(rounding),
        "measured": all(model in rounding for model in spec.models()),
        "rounding": rounding,
        "notes": list(dict.fromkeys(lab.notes)),
    }
    tokenizer, count = lab.tokenizer(spec.source), len(shown)
    tables = {
        "table": change.table(tokenizer),
        "contexts": snippets(
            found, shown, change.signs, before[:, :count], after[:, :count], tokenizer, SNIPPETS
        ),
        "topics": _topics(spec, found, raised, after[:, count:] - before[:, count:], tokenizer),
    }
    return ExperimentResult(summary, tables)


def _check_fits(spec: DiffMining, lab: Lab, found: Contexts) -> None:
    sizes = [lab.model(model).taps.vocab for model in spec.models()]
    if sizes[0] != sizes[1]:
        raise PatchError(
            "The two models have vocabularies of different size.",
            expected="the same next tokens in both",
            given=f"{sizes[0]} and {sizes[1]}",
            next_step="choose two models of one tokenizer.",
        )
    width = max(int(lab.sizes(model)["d"]) for model in spec.models())
    size = 2 * 4 * (found.units * sizes[0] + len(found.row) * width)
    if size > MOST:
        raise PatchError(
            "So many texts don't fit into memory at once.",
            expected=f"at most {MOST / 2**30:.0f} GiB of probabilities and states",
            given=f"{found.units} units, {len(found.row):,} contexts: {size / 2**30:.1f} GiB",
            next_step="read fewer or shorter texts, or the prompts of one split, language or category.",
        )


def last_states(lm: LoadedModel, found: Contexts) -> Float[Tensor, "n d"]:
    """The residual stream behind the last block at every context, on the CPU."""
    last = lm.taps.n_layers - 1
    kept: list[Tensor] = []
    order: list[np.ndarray] = []
    for at in range(0, len(found.ids), ROWS):
        with lm.lock, record(lm.taps, ("resid_post",), (last,)) as seen:
            forward_hidden(lm, found.ids[at : at + ROWS])
        own = np.flatnonzero((found.row >= at) & (found.row < at + ROWS))
        kept.append(seen["resid_post", last][found.row[own] - at, found.token[own]].cpu())
        order.append(own)
    states = torch.cat(kept)
    return states[torch.as_tensor(np.argsort(np.concatenate(order)))]


def probabilities(lm: LoadedModel, states: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "k v"]]:
    """Log-probabilities of the next token, float32 on the CPU, `ROWS` contexts at a time."""
    for part in states.split(ROWS):
        with torch.no_grad():  # left before each part is handed out: callers interleave two models
            normed = lm.taps.final_norm(part.to(lm.device))
            logits = lm.taps.logits(normed.to(lm.taps.unembedding.weight.device))
            log_p = logits.float().log_softmax(dim=-1).cpu()
        yield log_p


def by_unit(lm: LoadedModel, states: Float[Tensor, "n d"], found: Contexts) -> Float[np.ndarray, "g v"]:
    """Probability of every token, on average over the contexts of each unit."""
    total = torch.zeros(found.units, lm.taps.vocab)
    unit = torch.as_tensor(found.unit)
    for part, log_p in zip(unit.split(ROWS), probabilities(lm, states), strict=True):
        total.index_add_(0, part, log_p.exp())
    rows: np.ndarray = (total / torch.bincount(unit)[:, None]).numpy()
    return rows


@dataclass(frozen=True)
class Change:
    """What happens to the probability of every token that is said often enough.

    Attributes:
        tokens: (K,) their ids. mean, se: (K,) of the log ratio over units. before, after: (K,) mean
            probabilities. held: limits of all K together (`engine.difference_lens.numbers`). told: (K,)
            beyond chance and rounding, and of the sign of the mean probability's change. sides: indices of
            those that are shown, promoted and suppressed. raised: ids of those told that topics are made of.
    """

    tokens: np.ndarray
    mean: np.ndarray
    se: np.ndarray
    before: np.ndarray
    after: np.ndarray
    held: numbers.Limits
    told: np.ndarray
    sides: tuple[np.ndarray, np.ndarray]
    raised: np.ndarray

    @classmethod
    def of(
        cls,
        spec: DiffMining,
        target: Float[np.ndarray, "g v"],
        source: Float[np.ndarray, "g v"],
        rounding: Noise,
    ) -> Change:
        """From each unit's probabilities; whole units have their signs flipped and are drawn."""
        units = len(target)
        flips, counts = (draw(units, spec.draws, spec.seed) for draw in (numbers.flips, numbers.resamples))
        before, after = (one.mean(axis=0, dtype=np.float64) for one in (source, target))
        tokens = np.flatnonzero((before + after) / 2 >= spec.least)
        if not tokens.size:
            raise PatchError(
                "No token is said often enough to be compared.",
                expected=f"tokens of a mean probability of {spec.least:g} (least)",
                given=f"{((before + after) / 2).max():.2g} at most",
                next_step="ask for a smaller probability, or read texts that say more.",
            )
        ratio = np.log(np.maximum(target[:, tokens], TINY)) - np.log(np.maximum(source[:, tokens], TINY))
        blocks = torch.as_tensor(ratio, dtype=torch.float32).split(BLOCK, dim=1)
        place = Place.of_columns(blocks, units, units, Draws.of(flips, counts, "cpu"))
        held = numbers.limits([place.share], [place.low], [place.high], [units], spec.level)
        own = held.get(units, numbers.Limits.none(units))
        mean, se = place.mean.astype(np.float64), place.se.astype(np.float64)
        told = numbers.beyond(mean, se, own, floor(rounding))
        told &= mean * (after - before)[tokens] > 0
        raised = np.flatnonzero(told & (mean > 0))
        raised = tokens[raised[np.argsort(-mean[raised], kind="stable")][:RAISED]]
        sides = numbers.foremost(mean, told, spec.top)
        return cls(tokens, mean, se, before[tokens], after[tokens], own, told, sides, raised)

    @property
    def shown(self) -> np.ndarray:
        """Ids of the tokens that are shown."""
        ids: np.ndarray = self.tokens[np.concatenate(self.sides)]
        return ids

    @property
    def signs(self) -> np.ndarray:
        """1 of those that are said more, −1 of those that are said less."""
        return np.repeat([1, -1], [len(side) for side in self.sides])

    def table(self, tokenizer: Any) -> pl.DataFrame:
        """A row for each token that is shown. Without limits it has no interval."""
        lines = [
            {
                "side": side,
                "rank": rank,
                "token_id": int(self.tokens[at]),
                "text": token_text(tokenizer, int(self.tokens[at])),
                "mean": self.mean[at],
                "low": self.mean[at] - self.held.up * self.se[at] if self.held.known else None,
                "high": self.mean[at] - self.held.down * self.se[at] if self.held.known else None,
                "p_source": self.before[at],
                "p_target": self.after[at],
                "beyond": bool(self.told[at]),
            }
            for side, own in zip(("promoted", "suppressed"), self.sides, strict=True)
            for rank, at in enumerate(own)
        ]
        return pl.DataFrame(lines, schema=TOKENS)


def floor(rounding: Noise) -> float:
    """What rounding does to the log ratio of a token, times `numbers.NOISY`.

    A KL of κ nats moves log-probabilities by √(2κ) (`engine.lab.noise.log_floor`); both models' are added.
    That it averages out over contexts or units is not relied upon.
    """
    kl = sum(kl_mean(one) for one in rounding.values())
    return float(numbers.NOISY * np.sqrt(2 * kl))


def compared(
    lab: Lab, spec: DiffMining, states: dict[str, Tensor], found: Contexts, columns: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean KL(target ‖ source) of a context in nats; the probabilities of some tokens, source and target."""
    wanted = torch.as_tensor(columns, dtype=torch.long)
    kl, kept = 0.0, ([], [])  # type: tuple[float, tuple[list[Tensor], list[Tensor]]]
    target, source = (probabilities(lab.model(model), states[model]) for model in spec.models())
    for after, before in zip(target, source, strict=True):
        kl += float((after.exp() * (after - before)).sum())
        for one, log_p in zip(kept, (before, after), strict=True):
            one.append(log_p[:, wanted].exp())
    first, last = (torch.cat(one).double().numpy() for one in kept)
    return kl / len(found.row), first, last


def _topics(
    spec: DiffMining, found: Contexts, tokens: np.ndarray, change: np.ndarray, tokenizer: Any
) -> pl.DataFrame:
    made = topics(np.maximum(change, 0.0), found.unit, spec.topics, spec.seed)
    if made is None:
        return pl.DataFrame(schema=TOPICS)
    lines = [
        {
            "topic": number,
            "rank": rank,
            "token_id": int(tokens[at]),
            "text": token_text(tokenizer, int(tokens[at])),
            "weight": weights[at],
            "share": made.share[number],
            "stability": made.stability[number],
        }
        for number, weights in enumerate(made.weights)
        for rank, at in enumerate(np.argsort(-weights, kind="stable")[: spec.top])
        if weights[at] > 0
    ]
    return pl.DataFrame(lines, schema=TOPICS)


TOKENS = {
    "side": pl.String,
    "rank": pl.Int64,
    "token_id": pl.Int64,
    "text": pl.String,
    "mean": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p_source": pl.Float64,
    "p_target": pl.Float64,
    "beyond": pl.Boolean,
}
TOPICS = {
    "topic": pl.Int64,
    "rank": pl.Int64,
    "token_id": pl.Int64,
    "text": pl.String,
    "weight": pl.Float64,
    "share": pl.Float64,
    "stability": pl.Float64,
}
