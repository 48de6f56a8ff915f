"""Runs a Condition: replacement vectors, the sweep, intervals and the per-prompt table.

Everything is an argument, so a notebook runs the same function as the worker behind the pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.errors import PatchError
from engine.lab.units import resampling_units, unit_name
from engine.models.check import SelfCheck
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine
from engine.passes.sweep import SweepResult
from engine.patching.spec import Condition
from engine.patching.tables import per_prompt_table
from engine.stats.means import bootstrap_mean
from engine.stats.moments import fit_moments, match_moments
from engine.stats.uncertainty import Interval


@dataclass(frozen=True)
class Vectors:
    """Replacement vectors before the amplitude is applied.

    Attributes:
        base: (n, width) float64, what is injected at alpha = 1.
        mean: (width,) float64, the target's train mean; None where no train prompts were given.
        constant: dimensions that do not vary on the train prompts, {"source": count, "target": count}.
    """

    base: Float[np.ndarray, "n width"]
    mean: Float[np.ndarray, " width"] | None
    constant: dict[str, int]

    def at(
        self, alphas: Sequence[float], scale: str, rows: np.ndarray
    ) -> Float[np.ndarray, "alphas n width"]:
        """The vectors of some prompts at every alpha, float32 (alpha, prompt, width).

        "vector": alpha * v. "deviation": mu + alpha * (v - mu); in float64, so alpha = 1 gives v exactly.
        """
        amplitude = np.asarray(alphas, dtype=np.float64)[:, None, None]
        chosen = self.base[rows][None]
        if scale == "vector":
            return (amplitude * chosen).astype(np.float32)
        if self.mean is None:
            raise _missing("the target's activations on the train prompts", "a deviation from the train mean")
        return (self.mean + amplitude * (chosen - self.mean)).astype(np.float32)


@dataclass(frozen=True)
class ConditionResult:
    """What a condition did to the target's next-token distribution.

    Attributes:
        kl: (alpha, prompt) float64 nats, alphas in the condition's order.
        intervals: mean KL per alpha with its bootstrap interval over prompts (pairs where prompts have one).
        self_check: largest |KL| of the target with its own activation put back, in the same batches.
        table: one row per prompt and alpha: the prompt's columns, alpha, kl, the most likely next tokens.
        source_origin: where the source's vectors came from.
        notes: remarks a reader needs (constant dimensions, halved batches).
        rounding: measured noise of the models, see `engine.lab.noise`.
    """

    condition: Condition
    kl: Float[np.ndarray, "alphas n"]
    intervals: tuple[Interval, ...]
    self_check: SelfCheck
    table: pl.DataFrame
    source_origin: str
    constant: dict[str, int]
    n_groups: int
    unit: str
    notes: tuple[str, ...] = ()
    rounding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def curve(self) -> pl.DataFrame:
        """One row per alpha: alpha, kl (mean over prompts), low, high, median, n, n_groups."""
        return pl.DataFrame(
            {
                "alpha": self.condition.alphas,
                "kl": [i.estimate for i in self.intervals],
                "low": [i.low for i in self.intervals],
                "high": [i.high for i in self.intervals],
                "median": np.median(self.kl, axis=1).tolist(),
                "n": self.kl.shape[1],
                "n_groups": self.n_groups,
            },
            schema_overrides={"alpha": pl.Float64},
        )

    @property
    def tables(self) -> dict[str, pl.DataFrame]:
        """The per-prompt table by its name."""
        return {"table": self.table}

    @property
    def summary(self) -> dict[str, Any]:
        """The result without the per-prompt table, as plain JSON types."""
        return {
            "curve": self.curve().to_dicts(),
            "interval": {
                "level": self.condition.level,
                "method": self.intervals[0].method,
                "unit": self.unit,
            },
            "n_prompts": self.kl.shape[1],
            "self_check": self.self_check.to_json(),
            "source_origin": self.source_origin,
            "constant_dimensions": self.constant,
            "rounding": {model: dict(noise) for model, noise in self.rounding.items()},
            "notes": list(self.notes),
        }


def replacement_vectors(
    condition: Condition,
    shape: tuple[int, int],
    *,
    own: Float[np.ndarray, "n width"] | None = None,
    source: Float[np.ndarray, "n width"] | None = None,
    source_train: Float[np.ndarray, "m width"] | None = None,
    target_train: Float[np.ndarray, "m width"] | None = None,
) -> Vectors:
    """Turns captured activations into what the condition injects (before alpha).

    Args:
        shape: (prompts, width) of what is replaced in the target.
        own: the target's own activations there, on the reported prompts; needed for "self".
        source: the source's, same prompts in the same order; needed for "raw" and "literal".
        source_train, target_train: both models' on the train prompts; needed for "raw" (moments), and the
            target's for "mean" and for scale="deviation".

    Raises:
        PatchError: widths or prompt counts differ, something needed is missing, or a value is not finite.
    """
    mean = None if target_train is None else np.asarray(target_train, dtype=np.float64).mean(axis=0)
    if condition.kind == "self":
        if own is None:
            raise _missing("the target's own activations", "a self-patch")
        return Vectors(_checked(condition, np.asarray(own, dtype=np.float64), shape), mean, {})
    if condition.kind == "mean":
        if mean is None:
            raise _missing("the target's activations on the train prompts", "the mean control")
        return Vectors(np.broadcast_to(mean, shape), mean, {})
    if source is None:
        raise _missing("the source's activations", f"a {condition.kind} patch")
    base = _checked(condition, np.asarray(source, dtype=np.float64), shape)
    if condition.kind == "literal":
        return Vectors(base, mean, {})
    if source_train is None or target_train is None:
        raise _missing("both models' activations on the train prompts", "moment matching")
    moments_source, moments_target = fit_moments(source_train), fit_moments(target_train)
    constant = {"source": moments_source.constant, "target": moments_target.constant}
    return Vectors(match_moments(base, moments_source, moments_target), mean, constant)


def run_condition(
    condition: Condition,
    engine: PatchEngine,
    prompts: pl.DataFrame,
    *,
    source: np.ndarray | None = None,
    source_train: np.ndarray | None = None,
    target_train: np.ndarray | None = None,
    source_origin: str = "given by the caller",
    notes: Sequence[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    on_partial: Callable[[np.ndarray], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ConditionResult:
    """Patches the target on every prompt of the engine, at every alpha, with a self-patch check beside it.

    Args:
        engine: the target's engine over the reported prompts, at the condition's position and `read_at`.
        prompts: row i is the engine's prompt i; `id` and `pair_id` (may be absent) define the resampling
            unit, every column is kept in the result's table.
        source, source_train, target_train: as in `replacement_vectors`.
        on_progress: called between batches with (done, total) prompt-amplitude pairs.
        on_partial: called between batches with the KLs so far, (alpha, prompt), NaN where none is yet.
        should_stop: asked between batches; true raises JobCancelled.

    Raises:
        PatchError: the vectors do not fit, or the self-patch KL is not 0 up to rounding.
        SiteError: the target has no such site.
    """
    site = Site(condition.component, condition.layer, condition.heads)
    _check_prompts(engine.n_prompts, prompts.height)
    shape = (engine.n_prompts, site.check(engine.taps).width(engine.taps))
    own = engine.activations(site, should_stop).numpy() if condition.kind == "self" else None
    vectors = replacement_vectors(
        condition, shape, own=own, source=source, source_train=source_train, target_train=target_train
    )
    swept = engine.sweep(
        site,
        lambda rows: vectors.at(condition.alphas, condition.scale, np.asarray(rows)),
        n_conditions=len(condition.alphas),
        reverse_kl=condition.reverse_kl,
        top_k=condition.top_k,
        on_progress=on_progress,
        on_partial=on_partial,
        should_stop=should_stop,
    )
    groups = resampling_units(prompts)
    return ConditionResult(
        condition=condition,
        kl=swept.kl,
        intervals=_intervals(condition, swept.kl, groups),
        self_check=self_check(_self_kl(condition, swept), engine, str(site)),
        table=per_prompt_table(condition.alphas, prompts, swept, engine.lm.tokenizer),
        source_origin=source_origin if condition.needs_source else "not needed",
        constant=vectors.constant,
        n_groups=int(np.unique(groups).size),
        unit=unit_name(prompts),
        notes=(*notes, *_constant_notes(vectors.constant), *memory_notes(swept)),
    )


def self_check(kl: np.ndarray, engine: PatchEngine, where: str) -> SelfCheck:
    """The self-patch check; raises PatchError when the KL (any shape) of a sweep of `engine` is not 0."""
    limit, dtype = engine.self_limit, engine.dtype
    value = float(np.abs(kl).max()) if np.isfinite(kl).all() else float("inf")
    name = str(dtype).removeprefix("torch.")
    detail = f"largest |KL| in nats over {kl.shape[-1]} prompts with their own activation at {where}, {name}"
    check = SelfCheck.of("self-patch KL = 0", value, limit, detail)
    if not check.passed:
        raise PatchError(
            f"The run is refused: patching {where} with the model's own activation changes its output.",
            expected=f"KL of at most {limit:g} nats ({name})",
            given=f"{value:.3g} nats",
            next_step="the model is not deterministic or its family is not patched faithfully at this site; "
            "try dtype = 'float32' in the study.",
        )
    return check


def _self_kl(condition: Condition, swept: SweepResult) -> np.ndarray:
    """KL of the sweep's own self-patched run, and of the condition where it is a self-patch as well."""
    rows = [swept.self_kl]
    if condition.kind == "self":
        rows += [kl for kl, alpha in zip(swept.kl, condition.alphas, strict=True) if alpha == 1.0]
    return np.stack(rows)


def _intervals(condition: Condition, kl: np.ndarray, groups: np.ndarray) -> tuple[Interval, ...]:
    n_boot, level, seed = condition.n_boot, condition.level, condition.seed
    return tuple(bootstrap_mean(row, groups=groups, n_boot=n_boot, level=level, seed=seed) for row in kl)


def _check_prompts(expected: int, given: int) -> None:
    if expected != given:
        raise PatchError(
            "The prompts table and the patch engine do not have the same prompts.",
            expected=f"{expected} rows",
            given=f"{given} rows",
        )


def _checked(condition: Condition, source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    where = f"{condition.site_text()} at {condition.position}"
    if source.ndim != 2 or source.shape[1] != shape[1]:
        raise PatchError(
            f"{condition.source} and {condition.target} have different widths at {where}: "
            f"a {condition.kind} patch needs the same one.",
            expected=f"{shape[1]} numbers per prompt ({condition.target})",
            given=f"{source.shape[-1]} ({condition.source})",
            next_step="models of different widths can only be patched through a transport map.",
        )
    if source.shape[0] != shape[0]:
        raise PatchError(
            "Source and target do not have the same prompts.",
            expected=f"{shape[0]} prompts",
            given=f"{source.shape[0]}",
        )
    if not np.isfinite(source).all():
        raise PatchError(
            f"The source's activations at {where} are not all finite.",
            expected="finite numbers",
            given=f"{int((~np.isfinite(source)).any(axis=1).sum())} prompts with others",
        )
    return source


def _missing(what: str, purpose: str) -> PatchError:
    return PatchError(f"{purpose[0].upper()}{purpose[1:]} needs {what}.", expected=what, given="none")


def _constant_notes(constant: dict[str, int]) -> tuple[str, ...]:
    return tuple(
        f"{count} dimensions of the {side} do not vary on the train prompts"
        + (" and were set to the target's mean." if side == "source" else ".")
        for side, count in constant.items()
        if count
    )


def memory_notes(swept: SweepResult) -> tuple[str, ...]:
    """What a reader should know when memory ran out on the way."""
    if not swept.halvings:
        return ()
    times = "once" if swept.halvings == 1 else f"{swept.halvings} times"
    return (
        f"Memory ran out {times}; the batch was halved to {swept.batch_tokens} rows and the run went on.",
    )
