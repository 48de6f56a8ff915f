"""Runs a fit of lengthscales: token clouds, the fit as it goes, and its kernel on held-out problems."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.ard import holdout as ard_holdout
from engine.ard.fit import ArdFit, fit_ard, warm_start
from engine.ard.holdout import HeldOut, hold_out
from engine.ard.spec import Ard
from engine.errors import PatchError
from engine.geometry import z as subspace
from engine.geometry.kernels import head_kernels
from engine.lab.experiment import ExperimentResult, Lab, check_site
from engine.models.sites import Site

KEPT_STEPS = 200
"""Points of a loss curve that are reported while a fit runs."""
EVERY = 0.5
"""Seconds between reports."""
LEAST = 2
Clouds = tuple[list[np.ndarray], list[np.ndarray]]


def run(wanted: Ard, lab: Lab) -> ExperimentResult:
    """Fits on the train problems of a lab, or on all of them.

    Returns:
        tables: "table": draw, dimension, log10_lengthscale (in pooled sds), start (log₁₀ ℓ before the first
        step), energy (of the dimension in the subspace started from, null when cold); "trace": draw, step,
        objective; "draws": one row a fit.

    Raises:
        PatchError: no such site, or fewer than 2 problems in both languages.
        AnalysisError: the clouds or the kernels can't be used. JobError: cancelled.
    """
    check_site(lab, wanted.model, wanted.component, wanted.layer)
    fitted = problem_rows(lab.prompts, wanted, wanted.fitted)
    if len(fitted) < LEAST:
        raise PatchError(
            f"Too few problems have one {'train ' * (wanted.fitted == 'train')}prompt in each language.",
            expected=f"{LEAST} or more",
            given=f"{len(fitted)} in {' and '.join(wanted.languages)}",
            next_step="choose another category, or pair the prompts of the study by pair_id.",
        )
    held = problem_rows(lab.prompts, wanted, "validation")
    held = held[: 0 if wanted.fitted == "all" else None]
    site = Site(wanted.component, wanted.layer)
    values, origin = lab.clouds(wanted.model, site, np.concatenate([fitted, held]).ravel())
    both = values[: 2 * len(fitted)], values[2 * len(fitted) :]
    clouds: tuple[Clouds, Clouds] = ((both[0][::2], both[0][1::2]), (both[1][::2], both[1][1::2]))
    fits = _Fits(wanted, lab, *clouds, _kinds(lab.prompts, held))
    found = [fits.one(draw) for draw in range(wanted.draws)]
    summary = {
        "fits": [one.row for one in found],
        "n_fitted": len(fitted),
        "n_held_out": len(held),
        "tokens": _token_counts(clouds[0], wanted.max_tokens),
        "d": values[0].shape[1],
        "origin": origin,
        "device": fits.device,
        "notes": list(lab.notes),
    }
    tables = {
        "table": pl.concat([one.dimensions for one in found]),
        "trace": pl.concat([one.trace for one in found]),
        "draws": pl.DataFrame(
            [{k: v for k, v in one.row.items() if k != "held_out"} for one in found], infer_schema_length=None
        ),
    }
    return ExperimentResult(summary, tables)


def problem_rows(prompts: pl.DataFrame, wanted: Ard, split: str) -> np.ndarray:
    """Rows of the problems of a split, or of "all", in both languages, int64 (n, 2), in the prompts' order.

    A problem counts when exactly one of its prompts is in each language. At most `wanted.problems`.
    """
    needed = {"pair_id", "language", "split"}
    if not needed <= set(prompts.columns):
        return np.empty((0, 2), dtype=np.int64)
    chosen = prompts.with_row_index("row").drop_nulls("pair_id")
    chosen = chosen if split == "all" else chosen.filter(pl.col("split") == split)
    if wanted.category is not None:
        known = "category" in prompts.columns
        chosen = chosen.filter(pl.col("category") == wanted.category) if known else chosen.clear()
    each = chosen.group_by("pair_id", maintain_order=True).agg(
        *(
            pl.col("row").filter(pl.col("language") == name).alias(f"{i}")
            for i, name in enumerate(wanted.languages)
        )
    )
    both = each.filter(pl.col("0").list.len() == 1, pl.col("1").list.len() == 1)
    rows = np.stack([both[f"{i}"].list.first().to_numpy() for i in (0, 1)], axis=1).astype(np.int64)
    if len(rows) <= wanted.problems:
        return rows
    rng = np.random.default_rng(wanted.seed)
    return rows[np.sort(rng.choice(len(rows), wanted.problems, replace=False))]


def _kinds(prompts: pl.DataFrame, rows: np.ndarray) -> list[str] | None:
    """Category of each held-out problem; None without categories."""
    if "category" not in prompts.columns or not len(rows):
        return None
    return [str(kind) for kind in prompts["category"].gather(rows[:, 0]).to_list()]


def _token_counts(clouds: Clouds, most: int) -> dict[str, int]:
    counts = np.array([len(cloud) for side in clouds for cloud in side])
    return {"least": int(counts.min()), "most": int(counts.max()), "cut": int((counts > most).sum())}


@dataclass(frozen=True)
class _Fit:
    row: dict[str, Any]
    dimensions: pl.DataFrame
    trace: pl.DataFrame


@dataclass
class _Fits:
    """All fits of one experiment: the same clouds from one or several starts."""

    wanted: Ard
    lab: Lab
    fitted: Clouds
    held: Clouds
    kinds: list[str] | None
    device: str = "cpu"

    def __post_init__(self) -> None:
        import torch

        self.device = "cuda:0" if torch.cuda.is_available() else "cpu"

    def one(self, draw: int) -> _Fit:
        """One start: the fit, its held-out problems, and how it began."""
        wanted = self.wanted
        energy = self._energy(draw)
        start = None if energy is None else warm_start(energy)
        fit = fit_ard(
            *self.fitted,
            objective=wanted.objective,
            penalty=wanted.penalty,
            start=start,
            steps=wanted.steps,
            rate=wanted.rate,
            max_tokens=wanted.max_tokens,
            seed=wanted.seed,
            device=self.device,
            on_step=self._teller(draw),
            should_stop=self.lab.should_stop,
        )
        d = len(fit.log_lengthscales)
        dimensions = pl.DataFrame(
            {
                "draw": np.full(d, draw),
                "dimension": np.arange(d),
                "log10_lengthscale": fit.log_lengthscales / np.log(10.0),
                "start": (np.zeros(d) if start is None else start) / np.log(10.0),
                "energy": pl.Series([None] * d if energy is None else energy, dtype=pl.Float64),
            }
        )
        trace = pl.DataFrame({"draw": draw, "step": range(fit.steps), "objective": fit.trace})
        return _Fit(_row(draw, fit, self._held_out(fit)), dimensions, trace)

    def _energy(self, draw: int) -> np.ndarray | None:
        """(d,) energy of each dimension in the subspace started from: row norms squared of its basis."""
        wanted = self.wanted
        if wanted.k is None:
            return None
        d = int(self.lab.sizes(wanted.model)["d"])
        if wanted.start == "random":
            basis = subspace.random_basis(d, wanted.k, wanted.seed + 1 + draw)
        else:
            right, sigma = head_kernels(self.lab.array, wanted.model, wanted.layer)
            basis = subspace.multi_head_basis(right, sigma, wanted.k, wanted.joined)
        return np.asarray((basis**2).sum(axis=1))

    def _held_out(self, fit: ArdFit) -> HeldOut | None:
        if len(self.held[0]) < ard_holdout.LEAST:
            return None
        options = {"max_tokens": self.wanted.max_tokens, "seed": self.wanted.seed}
        return hold_out(fit, *self.held, groups=self.kinds, **options)  # type: ignore[arg-type]

    def _teller(self, draw: int) -> Callable[[int, float], None]:
        """Reports the loss curve so far, twice a second."""
        values: list[float] = []
        steps, draws = self.wanted.steps, self.wanted.draws
        last = 0.0

        def tell(step: int, value: float) -> None:
            nonlocal last
            values.append(value)
            now = time.monotonic()
            if now - last < EVERY and step + 1 < steps:
                return
            last = now
            every = max(1, len(values) // KEPT_STEPS)
            shown = [{"step": i, "objective": values[i]} for i in range(0, len(values), every)]
            which = f", start {draw + 1} of {draws}" if draws > 1 else ""
            self.lab.report(
                done=draw * steps + step + 1,
                total=draws * steps,
                message=f"Step {step + 1} of {steps}{which}.",
                partial={"trace": shown, "layer": self.wanted.layer, "penalty": self.wanted.penalty},
            )

        return tell


def _row(draw: int, fit: ArdFit, held: HeldOut | None) -> dict[str, Any]:
    """One fit in plain JSON types; what is not defined is None."""
    return {
        "draw": draw,
        "collapsed": bool(fit.collapsed),
        "words": fit.words,
        "exponent": fit.exponent,
        "same": fit.same,
        "different": None if np.isnan(fit.different) else fit.different,
        "steps": fit.steps,
        "stopped": fit.stopped,
        "held_out": None
        if held is None
        else {
            "same": held.same,
            "different": held.different,
            "p": held.p,
            "p_within": held.p_within,
            "n": held.n,
            "least_p": held.least_p,
        },
    }
