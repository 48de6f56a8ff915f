"""Runs steering: a sweep over α, a choice on train, and a second sweep at amplitudes of equal KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from scipy.special import logsumexp

from engine.lab.experiment import ExperimentResult, Lab, check_site, chosen_rows, train_rows
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.models.sites import Site
from engine.passes.patch_engine import SELF_LIMIT, PatchEngine
from engine.patching.run import self_check
from engine.rank.numbers import equal_kl_amplitude
from engine.steering.report import Effects, curves, equal_table, forms_table, prompt_effects
from engine.steering.spec import Steering
from engine.steering.vectors import (
    Move,
    Steer,
    Tokens,
    direction,
    find_tokens,
    random_directions,
    random_spans,
)


def run(spec: Steering, lab: Lab) -> ExperimentResult:
    """Runs steering on a lab's train and validation prompts.

    Raises:
        PatchError, SiteError, ModelError: the experiment, a model or the self-patch check fails.
        JobError: cancelled between batches.
    """
    for name in spec.models():
        check_site(lab, name, spec.component, spec.layer)
    tokens = find_tokens(lab.tokenizer(spec.target), spec.wanted, spec.against)
    bench = Bench.of(spec, lab, tokens)
    first = bench.sweep(spec, lab, moves(spec))
    chosen = choose(first, spec.budget)
    level = first.kl(Move("direction", 0, chosen), "train").mean() if chosen is not None else None
    # A KL within the floor is no level: any amplitude is as good there.
    level = None if level is None or level <= bench.floor else float(level)
    second = None if level is None else bench.sweep(spec, lab, equal_moves(spec, first, level, chosen or 0.0))
    site = Site(spec.component, spec.layer)
    check = self_check(bench.self_kl[0], bench.engine, str(site))
    tables = {"table": curves(first), "forms": forms_table(tokens), "prompts": prompt_effects(first, chosen)}
    tables["vector"] = pl.DataFrame({"v": bench.steer.directions[0].astype(np.float32)})
    equal: dict[str, Any] = {"level": level, "best": None}
    if second is not None:
        tables["equal"], equal["best"] = equal_table(second)
    summary: dict[str, Any] = {
        "direction": spec.direction_text(),
        "chosen": chosen,
        "equal": equal,
        "norm": bench.steer.norm,
        "wanted": tokens.describe(tokens.wanted),
        "against": tokens.describe(tokens.against),
        "counts": {
            role: {split: int(first.members(role, split).sum()) for split in ("train", "validation")}
            for role in ("wanted", "neutral")
        },
        "unpatched": {
            s: float(first.before[first.members("wanted", s)].mean()) for s in ("train", "validation")
        },
        "interval": {
            "level": spec.level,
            "method": "studentised bootstrap",
            "unit": unit_name(lab.prompts[first.rows]),
        },
        "self_check": check.to_json(),
        "rounding": measured(lab, [spec.target]),
        "notes": list(lab.notes),
    }
    return ExperimentResult(summary, tables)


def moves(spec: Steering) -> list[Move]:
    """Every α of both signs for v and the random directions, and the ablations."""
    signed = sorted([*(-a for a in spec.alphas), *spec.alphas])
    found = [Move("direction", 0, alpha) for alpha in signed]
    found += [Move("random", draw, alpha) for draw in range(1, spec.draws + 1) for alpha in signed]
    found += [Move("ablate", 0, 0.0), Move("ablate_mean", 0, 0.0)]
    spans = range(1, spec.draws + 1) if spec.dims > 1 else ()
    return [*found, *(Move("ablate_random", draw, 0.0) for draw in spans)]


def choose(effects: Effects, budget: float) -> float | None:
    """The signed α of v with the largest wanted shift on train whose side effect there is within budget."""
    within = [
        move
        for move in effects.moves
        if move.series == "direction" and effects.kl(move, "train").mean() <= budget
    ]
    return max(within, key=lambda move: effects.shift(move, "train").mean()).alpha if within else None


def equal_moves(spec: Steering, effects: Effects, level: float, chosen: float) -> list[Move]:
    """v at its α, and each random direction at the α of each sign where its side effect on train is `level`.

    Directions that don't reach the level on the grid are left out.
    """
    found = [Move("direction", 0, chosen)]
    alphas = np.asarray(spec.alphas)
    for draw in range(1, spec.draws + 1):
        for sign in (-1.0, 1.0):
            kl = [effects.kl(Move("random", draw, sign * alpha), "train").mean() for alpha in spec.alphas]
            alpha = equal_kl_amplitude(alphas, np.array(kl), level)
            if alpha is not None:
                found.append(Move("random", draw, sign * alpha))
    return found


@dataclass(frozen=True)
class Bench:
    """Everything that both sweeps share.

    Attributes:
        rows: (n,) all prompts that take part. engine: over them. steer: what is put in.
        roles: {"wanted", "neutral"} -> (n,) membership. in_train: (n,). groups: (n,).
        self_kl: the sweeps' self-patch KLs. floor: nats that can't be told from no patch.
    """

    rows: Int[np.ndarray, " n"]
    engine: PatchEngine
    steer: Steer
    tokens: Tokens
    roles: dict[str, Bool[np.ndarray, " n"]]
    in_train: Bool[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]
    self_kl: list[Float[np.ndarray, " n"]]
    floor: float

    @classmethod
    def of(cls, spec: Steering, lab: Lab, tokens: Tokens) -> Bench:
        """Asks the lab for prompts, activations and the engine."""
        parts = {
            (role, split): chosen_rows(lab.prompts, split, group)
            for role, group in (("wanted", spec.where), ("neutral", spec.neutral))
            for split in ("train", "validation")
        }
        rows = np.unique(np.concatenate(list(parts.values())))
        train, site = train_rows(lab.prompts), Site(spec.component, spec.layer)
        union = np.union1d(rows, train)
        values = lab.activations(spec.target, site, spec.position, union).astype(np.float64)
        own, on_train = values[np.searchsorted(union, rows)], values[np.searchsorted(union, train)]
        v, span = direction(spec, lab, tokens)
        drawn = random_directions(v.size, spec.draws, spec.seed)
        spans = (span, *random_spans(v.size, span.shape[1], spec.draws, spec.seed))
        norm = float(np.linalg.norm(on_train, axis=1).mean())
        steer = Steer(own, on_train.mean(axis=0), norm, np.vstack([v, drawn]), spans)
        engine = lab.engine(spec.target, rows, spec.position, spec.read_at)
        roles = {
            role: np.isin(rows, np.concatenate([parts[role, s] for s in ("train", "validation")]))
            for role in ("wanted", "neutral")
        }
        groups = resampling_units(lab.prompts[rows])
        floor = max(SELF_LIMIT, kl_floor(measured(lab, [spec.target])))
        return cls(rows, engine, steer, tokens, roles, np.isin(rows, train), groups, [], floor)

    def sweep(self, spec: Steering, lab: Lab, wanted: Sequence[Move]) -> Effects:
        """Runs some conditions on all prompts."""
        lab.report(message=f"Steering {self.rows.size} prompts in {len(wanted)} ways.")
        ids = [*self.tokens.wanted, *self.tokens.against]
        swept = self.engine.sweep(
            Site(spec.component, spec.layer),
            lambda prompts: self.steer.at(wanted, prompts),
            n_conditions=len(wanted),
            reverse_kl=spec.reverse_kl,
            watch=ids,
            on_progress=lambda done, total: lab.report(done=done, total=total),
            should_stop=lab.should_stop,
        )
        self.self_kl.append(swept.self_kl)
        assert swept.watched is not None
        assert swept.unpatched_watched is not None
        count = len(self.tokens.wanted)
        before = log_odds(swept.unpatched_watched, count)
        return Effects(
            spec=spec,
            moves=list(wanted),
            change=log_odds(swept.watched, count) - before,
            before=before,
            kls=swept.kl,
            rows=self.rows,
            roles=self.roles,
            in_train=self.in_train,
            groups=self.groups,
        )


def log_odds(log_probs: Float[np.ndarray, "*c n w"], count: int) -> Float[np.ndarray, "*c n"]:
    """log p(first `count` tokens) − log p(the others), each a sum of probabilities."""
    values = np.asarray(log_probs, dtype=np.float64)
    return np.asarray(logsumexp(values[..., :count], axis=-1) - logsumexp(values[..., count:], axis=-1))
