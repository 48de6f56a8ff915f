"""Numbers of a steering run: shift and side effect per amplitude with intervals, and both at equal KL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int

from engine.stats.means import bootstrap_means
from engine.stats.uncertainty import Band
from engine.steering.spec import Steering
from engine.steering.vectors import Move, Tokens
from engine.z_patching.numbers import prediction_limit

SPLITS = ("train", "validation")
TAIL = 0.025
"""On either side, as v may move the words further than random directions or less."""


@dataclass(frozen=True)
class Effects:
    """What every condition did to every prompt.

    Attributes:
        moves: the conditions. change: (c, n) of log p(wanted) − log p(against), nats. before: (n,) that
            difference without a patch. kls: (c, n) nats. rows: (n,) prompts.
        roles: "wanted" and "neutral" -> (n,) membership. in_train: (n,). groups: (n,) for resampling.
    """

    spec: Steering
    moves: list[Move]
    change: Float[np.ndarray, "c n"]
    before: Float[np.ndarray, " n"]
    kls: Float[np.ndarray, "c n"]
    rows: Int[np.ndarray, " n"]
    roles: dict[str, Bool[np.ndarray, " n"]]
    in_train: Bool[np.ndarray, " n"]
    groups: Int[np.ndarray, " n"]

    def members(self, role: str, split: str) -> Bool[np.ndarray, " n"]:
        """Prompts of a role in a split."""
        return self.roles[role] & (self.in_train if split == "train" else ~self.in_train)

    def shift(self, move: Move, split: str) -> Float[np.ndarray, " m"]:
        """Change of the log odds on the wanted prompts of a split."""
        return self.change[self.moves.index(move)][self.members("wanted", split)]

    def kl(self, move: Move, split: str) -> Float[np.ndarray, " m"]:
        """KL on the neutral prompts of a split."""
        return self.kls[self.moves.index(move)][self.members("neutral", split)]

    def band(self, role: str, split: str, values: Float[np.ndarray, "c m"]) -> Band:
        """Means over a role's prompts with a bootstrap; the same prompts are drawn in every row."""
        groups, spec = self.groups[self.members(role, split)], self.spec
        return bootstrap_means(values, groups=groups, n_boot=spec.n_boot, level=spec.level, seed=spec.seed)


def curves(effects: Effects) -> pl.DataFrame:
    """One row per series, α and split; random directions are averaged per prompt.

    Columns series, alpha (signed; 0 for ablations), split, shift, shift_low, shift_high (nats), shift_least,
    shift_most (over random draws, else null), kl, kl_low, kl_high.
    """
    parts = []
    keys = list(dict.fromkeys((move.series, move.alpha) for move in effects.moves))
    for split in SPLITS:
        columns: dict[str, Any] = {"series": [s for s, _ in keys], "alpha": [a for _, a in keys]}
        columns |= {"split": [split] * len(keys)}
        for name, role, get in (("shift", "wanted", effects.shift), ("kl", "neutral", effects.kl)):
            found = [
                np.array([get(m, split) for m in effects.moves if (m.series, m.alpha) == key]) for key in keys
            ]
            band = effects.band(role, split, np.array([draws.mean(axis=0) for draws in found]))
            columns |= {name: band.estimate, f"{name}_low": band.low, f"{name}_high": band.high}
            if name == "shift":
                each = [d.mean(axis=1) if len(d) > 1 else np.array([np.nan]) for d in found]
                columns |= {"shift_least": [e.min() for e in each], "shift_most": [e.max() for e in each]}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts).fill_nan(None)


def equal_table(effects: Effects) -> tuple[pl.DataFrame, dict[str, Any]]:
    """v beside random directions at the same side effect.

    Of each random direction the sign with the larger train shift counts, as the sign of v's α was chosen on
    train as well.

    Returns:
        a table with columns series, draw, alpha, split, shift, shift_low, shift_high, kl, kl_low, kl_high;
        and, on validation, {direction, random, difference: {shift, low, high}, least, most: shifts of the
        random draws, limit, floor: between which a further draw lies with 95 % probability, draws: how many
        reached the level}. random and difference are None when none did, limit when fewer than two did.
    """
    kept = [effects.moves[0]]
    for draw in sorted({move.draw for move in effects.moves} - {0}):
        signs = [move for move in effects.moves if move.draw == draw]
        kept.append(max(signs, key=lambda move: effects.shift(move, "train").mean()))
    parts = []
    for split in SPLITS:
        shift = effects.band("wanted", split, np.array([effects.shift(m, split) for m in kept]))
        kl = effects.band("neutral", split, np.array([effects.kl(m, split) for m in kept]))
        columns: dict[str, Any] = {"series": [m.series for m in kept], "draw": [m.draw for m in kept]}
        columns |= {"alpha": [m.alpha for m in kept], "split": [split] * len(kept)}
        columns |= {"shift": shift.estimate, "shift_low": shift.low, "shift_high": shift.high}
        columns |= {"kl": kl.estimate, "kl_low": kl.low, "kl_high": kl.high}
        parts.append(pl.DataFrame(columns))
    own = effects.shift(kept[0], "validation")
    others = np.array([effects.shift(m, "validation") for m in kept[1:]]).reshape(-1, own.size)
    best: dict[str, Any] = {"draws": len(kept) - 1, "random": None, "difference": None}
    rows = [own, others.mean(axis=0), own - others.mean(axis=0)] if len(others) else [own]
    band = effects.band("wanted", "validation", np.array(rows))
    for name, i in zip(("direction", "random", "difference"), range(len(rows)), strict=False):
        at = band.at(i)
        best[name] = {"shift": at.estimate, "low": at.low, "high": at.high}
    means = others.mean(axis=1)
    best["least"], best["most"] = (float(means.min()), float(means.max())) if means.size else (None, None)
    best["limit"] = prediction_limit(means, TAIL) if means.size > 1 else None
    best["floor"] = -prediction_limit(-means, TAIL) if means.size > 1 else None
    return pl.concat(parts), best


def forms_table(tokens: Tokens) -> pl.DataFrame:
    """The tokens of both sets: columns set, token_id, token, whole (false: it only begins its word)."""
    sides = (("wanted", tokens.wanted), ("against", tokens.against))
    rows = [
        {"set": name, "token_id": token, "token": tokens.texts[token], "whole": token not in tokens.begins}
        for name, side in sides
        for token in side
    ]
    return pl.DataFrame(rows)


def prompt_effects(effects: Effects, chosen: float | None) -> pl.DataFrame:
    """Every prompt under v at the chosen α and under ablation.

    Columns row, split, wanted, neutral (whether it plays that part), series, alpha, before (log odds without
    a patch), shift, kl.
    """
    parts = []
    for i, move in enumerate(effects.moves):
        if move.series == "random" or (move.series == "direction" and move.alpha != chosen):
            continue
        columns: dict[str, Any] = {
            "row": effects.rows,
            "split": np.where(effects.in_train, "train", "validation"),
        }
        columns |= {role: effects.roles[role] for role in ("wanted", "neutral")}
        columns |= {
            "series": [move.series] * effects.rows.size,
            "alpha": np.full(effects.rows.size, move.alpha),
        }
        columns |= {"before": effects.before, "shift": effects.change[i], "kl": effects.kls[i]}
        parts.append(pl.DataFrame(columns))
    return pl.concat(parts)
