"""Runs a mapped patch: all kinds, amplitudes and prompts as one sweep, and the report on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from engine.lab.experiment import ExperimentResult, Lab, chosen_rows
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.models.check import SelfCheck
from engine.models.sites import Site
from engine.passes.continuations import shared_ids
from engine.passes.sweep import SweepResult
from engine.patching.mapped_spec import CONTROLS, MappedKind, MappedPatch
from engine.patching.numbers import ROUNDING, Resampling, best_alpha, correlation, cosines, reduction
from engine.patching.run import memory_notes, self_check
from engine.patching.tables import prompt_table, token_columns
from engine.patching.vectors import Replacements
from engine.stats.uncertainty import Band, Interval
from engine.transport import alpha_auto, r2

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
KINDS: tuple[MappedKind, ...] = ("mapped", "raw", *CONTROLS)


def run(experiment: MappedPatch, lab: Lab) -> ExperimentResult:
    """Runs a mapped patch on the train and validation prompts of a lab.

    Raises:
        PatchError: nothing to fit or report on, or the target's own activation put back changes its output.
        AnalysisError: the map can't join these widths. JobError: cancelled between batches.
    """
    parts = {split: chosen_rows(lab.prompts, split, experiment.where) for split in SPLITS}
    rows = np.concatenate([parts[split] for split in SPLITS])
    lab.report(message=f"Fitting {experiment.map.describe()} and its controls.")
    made = Replacements.of(lab, experiment, rows, KINDS)
    plan = _Plan.of(experiment, made)
    engine = lab.engine(experiment.target, rows, experiment.position, experiment.read_at)
    lab.report(message=f"Patching {rows.size} prompts in {plan.count} ways.")
    tokenizers = [lab.tokenizer(name) for name in experiment.models()] if experiment.shared else []
    shared = [i for i in shared_ids(*tokenizers) if i < engine.taps.vocab] if tokenizers else []
    site = Site(experiment.component, experiment.layer)
    swept = engine.sweep(
        site,
        lambda chosen: plan.values(made, np.asarray(chosen)),
        n_conditions=plan.count,
        reverse_kl=experiment.reverse_kl,
        top_k=experiment.top_k,
        shared=shared,
        on_progress=lambda done, total: lab.report(done=done, total=total),
        should_stop=lab.should_stop,
    )
    check = self_check(swept.self_kl[None], engine, str(site))
    names = dict(zip(("target", "source"), experiment.models(), strict=True))
    prompts = prompt_table(lab, rows, experiment.position, names)
    prompts = prompts.with_columns(pl.Series("split", np.repeat(SPLITS, [parts[s].size for s in SPLITS])))
    report = _Report(experiment, made, plan, swept, prompts, check, measured(lab, [experiment.target]))
    origin = lab.origin(experiment.source, site, experiment.position)
    notes = (*lab.notes, *memory_notes(swept))
    return ExperimentResult(
        {**report.summary(), "source_origin": origin, "notes": list(notes)},
        report.tables(engine.lm.tokenizer),
    )


@dataclass(frozen=True)
class _Plan:
    """Which kinds run at which amplitudes, one after the other in the sweep's conditions."""

    alphas: dict[MappedKind, tuple[float, ...]]
    scale: str
    auto: float

    @classmethod
    def of(cls, experiment: MappedPatch, made: Replacements) -> _Plan:
        mapped_train = made.fit.map.predict(made.fit.x)
        centre = made.fit.mean if experiment.scale == "deviation" else None
        auto = float(f"{alpha_auto(made.fit.y, mapped_train, centre):.4g}")
        grid = set(experiment.alphas) | ({auto} if np.isfinite(auto) else set())
        every = tuple(sorted(grid))
        alphas: dict[MappedKind, tuple[float, ...]] = dict.fromkeys(made.vectors, every)
        if "raw" in alphas and experiment.raw_alpha == "fixed":
            alphas["raw"] = (1.0,)
        if experiment.scale == "deviation":
            alphas["mean"] = (1.0,)
        return cls(alphas, experiment.scale, auto)

    @property
    def count(self) -> int:
        return sum(len(alphas) for alphas in self.alphas.values())

    def values(self, made: Replacements, rows: np.ndarray) -> np.ndarray:
        """(conditions, prompts, width) of some prompts."""
        parts = [made.vectors[kind].at(alphas, self.scale, rows) for kind, alphas in self.alphas.items()]
        return np.concatenate(parts)

    def rows(self, kind: MappedKind) -> slice:
        """Conditions of a kind, in the order of its amplitudes."""
        names = list(self.alphas)
        start = sum(len(self.alphas[name]) for name in names[: names.index(kind)])
        return slice(start, start + len(self.alphas[kind]))

    def at(self, kind: MappedKind, alpha: float) -> int:
        """The condition of a kind at an amplitude; the only one of a kind that has one amplitude."""
        alphas = self.alphas[kind]
        return self.rows(kind).start + (alphas.index(alpha) if len(alphas) > 1 else 0)


class _Report:
    """Numbers and tables of one sweep."""

    def __init__(
        self,
        experiment: MappedPatch,
        made: Replacements,
        plan: _Plan,
        swept: SweepResult,
        prompts: pl.DataFrame,
        check: SelfCheck,
        rounding: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.experiment, self.made, self.plan, self.swept = experiment, made, plan, swept
        self.prompts, self.check, self.rounding = prompts, check, rounding
        self.noise = kl_floor(rounding)
        self.split = prompts["split"].to_numpy()
        self.groups = resampling_units(prompts)
        mapped = swept.kl[plan.rows("mapped")][:, self.split == "train"]
        grid = plan.alphas["mapped"]
        self.alpha = grid[best_alpha(mapped, grid, max(ROUNDING, self.noise))]
        self.chosen = {kind: plan.at(kind, self.alpha) for kind in plan.alphas}
        self.kl = {kind: swept.kl[condition] for kind, condition in self.chosen.items()}
        centre = made.fit.mean
        carried = made.vectors["mapped"].base
        self.cosine = cosines(carried, made.own)
        self.cosine_deviation = cosines(carried - centre, made.own - centre)

    def summary(self) -> dict[str, Any]:
        """Everything but the tables, as plain JSON types."""
        experiment, plan = self.experiment, self.plan
        how = self._how(self.split == "train")
        return {
            "best": {"alpha": self.alpha, "chosen_on": "train"},
            "alphas": list(plan.alphas["mapped"]),
            "alpha_auto": plan.auto if np.isfinite(plan.auto) else None,
            "splits": {split: self._split(self.split == split) for split in SPLITS},
            "map": {"words": experiment.map.describe(), "n": self.made.fit.rows.size, **self._r2()},
            "bogus_layer": self.made.bogus_layer,
            "left_out": dict(self.made.left_out),
            "constant_dimensions": _constant(self.made),
            "self_check": self.check.to_json(),
            "rounding": self.rounding,
            "interval": {
                "level": how.level,
                "method": "studentised bootstrap",
                "unit": unit_name(self.prompts),
            },
            "n_prompts": self.prompts.height,
            **self._shared(),
        }

    def _shared(self) -> dict[str, Any]:
        """The same on shared tokens alone, per split: KL of every kind, ΔKL and drop%, and their probability
        in the unpatched model; nothing where it was not asked for."""
        swept, found = self.swept, {}
        if swept.shared_kl is None or swept.unpatched_shared_mass is None:
            return {}
        for split in SPLITS:
            where = self.split == split
            how = self._how(where)
            kl = {kind: swept.shared_kl[condition][where] for kind, condition in self.chosen.items()}
            own: dict[str, Any] = {
                "coverage": float(swept.unpatched_shared_mass[where].mean()),
                "kl": _spans(list(kl), how.means(np.stack(list(kl.values())))),
                "delta": None,
                "drop": None,
            }
            if "raw" in kl:
                less = reduction(kl["raw"], kl["mapped"], self.check.limit, how, self.noise)
                own |= {"delta": span(less.delta), "drop": less.drop and span(less.drop)}
            found[split] = own
        return {"shared": found}

    def tables(self, tokenizer: Any) -> dict[str, pl.DataFrame]:
        """The drill-down at the best α, per-prompt numbers, the α curve, and every KL of the sweep."""
        return {
            "table": self._drill(tokenizer),
            "prompts": self._prompts(),
            "curve": self._curve(),
            "kl": self._every(),
        }

    def _how(self, where: np.ndarray) -> Resampling:
        experiment = self.experiment
        return Resampling(self.groups[where], experiment.n_boot, experiment.level, experiment.seed)

    def _split(self, where: np.ndarray) -> dict[str, Any]:
        how = self._how(where)
        kl = {kind: values[where] for kind, values in self.kl.items()}
        found: dict[str, Any] = {
            "n": int(where.sum()),
            "n_groups": int(np.unique(how.groups).size),
            "kl": _spans(list(kl), how.means(np.stack(list(kl.values())))),
            "controls": {},
            "delta": None,
            "drop": None,
            "reason": "",
            "correlation": None,
        }
        controls = [kind for kind in CONTROLS if kind in kl]
        worse = how.means(np.stack([kl[kind] - kl["mapped"] for kind in controls]))
        for kind, row in _spans(controls, worse).items():
            found["controls"][kind] = {**row, "beaten": row["low"] > self.noise}
        if "raw" not in kl:
            return {**found, "reason": f"there is no raw condition: {self.made.left_out['raw']}"}
        less = reduction(kl["raw"], kl["mapped"], self.check.limit, how, self.noise)
        found |= {"delta": span(less.delta), "drop": less.drop and span(less.drop), "reason": less.reason}
        gain = kl["raw"] - kl["mapped"]
        both = {"cosine": self.cosine, "cosine_deviation": self.cosine_deviation}
        return found | {"correlation": {name: _correlation(v[where], gain, how) for name, v in both.items()}}

    def _r2(self) -> dict[str, float | None]:
        """R² of the map on its train prompts, and on the reported validation prompts, also when shuffled."""
        fit, at = self.made.fit, self.split == "validation"
        own, source = np.asarray(self.made.own[at], dtype=np.float64), self.made.source[at]
        scores = {
            "r2_train": fit.map.score(fit.x, fit.y),
            "r2_validation": r2(own, fit.map.predict(source)),
            "r2_shuffled": np.nan
            if self.made.shuffled is None
            else r2(own, self.made.shuffled.predict(source)),
        }
        return {name: float(value) if np.isfinite(value) else None for name, value in scores.items()}

    def _drill(self, tokenizer: Any) -> pl.DataFrame:
        parts = []
        for kind, condition in self.chosen.items():
            alphas = self.plan.alphas[kind]
            alpha = self.alpha if len(alphas) > 1 else alphas[0]
            columns = [pl.lit(kind).alias("kind"), pl.lit(alpha).alias("alpha")]
            columns += [pl.Series("kl", self.swept.kl[condition])]  # type: ignore[list-item]
            parts.append(
                self.prompts.with_columns(*columns, *token_columns(self.swept, condition, tokenizer))
            )
        return pl.concat(parts)

    def _prompts(self) -> pl.DataFrame:
        keep = [
            c for c in ("row", "id", "pair_id", "language", "category", "split") if c in self.prompts.columns
        ]
        table = self.prompts.select(keep).with_columns(
            cosine=pl.Series(self.cosine), cosine_deviation=pl.Series(self.cosine_deviation)
        )
        table = table.with_columns(pl.Series(f"kl_{kind}", values) for kind, values in self.kl.items())
        if "raw" in self.kl:
            table = table.with_columns(reduction=pl.col("kl_raw") - pl.col("kl_mapped"))
        return table

    def _curve(self) -> pl.DataFrame:
        parts = []
        labels = [(kind, alpha) for kind, alphas in self.plan.alphas.items() for alpha in alphas]
        for split in SPLITS:
            where = self.split == split
            found = self._how(where).means(self.swept.kl[:, where])
            parts.append(
                pl.DataFrame(
                    {
                        "split": split,
                        "kind": [kind for kind, _ in labels],
                        "alpha": [alpha for _, alpha in labels],
                        "kl": found.estimate,
                        "low": found.low,
                        "high": found.high,
                    }
                )
            )
        return pl.concat(parts)

    def _every(self) -> pl.DataFrame:
        parts = [
            pl.DataFrame({"kind": kind, "alpha": alpha, "row": self.prompts["row"], "kl": kl})
            for kind, alphas in self.plan.alphas.items()
            for alpha, kl in zip(alphas, self.swept.kl[self.plan.rows(kind)], strict=True)
        ]
        return pl.concat(parts)


def span(interval: Interval) -> dict[str, float]:
    """An interval as plain JSON: estimate, low, high."""
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}


def _spans(names: Sequence[str], found: Band) -> dict[str, dict[str, float]]:
    return {name: span(found.at(i)) for i, name in enumerate(names)}


def _correlation(cosine: np.ndarray, gain: np.ndarray, how: Resampling) -> dict[str, Any]:
    found = correlation(cosine, gain, how)
    return {
        "spearman": found.spearman and span(found.spearman),
        "pearson": found.pearson and span(found.pearson),
        "n": found.n,
        "reason": found.reason,
    }


def _constant(made: Replacements) -> Mapping[str, int]:
    """Dimensions that don't vary on the train prompts, per side."""
    sides: Sequence[tuple[str, np.ndarray]] = (("source", made.fit.x), ("target", made.fit.y))
    return {side: int((np.ptp(values, axis=0) == 0).sum()) for side, values in sides}
