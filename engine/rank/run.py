"""Runs a rank sweep: fits the maps, patches every (kind, k, α) in one sweep, chooses on train.

A map fitted on a prompt knows it: with fewer prompts than dimensions the full rank repeats the train split
exactly, and any choice of k made there would be "full". So the train prompts are cut into folds (pairs stay
together), and each is mapped by a map that was fitted without its fold; validation prompts are mapped by
the map of the whole train split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import clone

from engine.errors import PatchError
from engine.lab.experiment import (
    ExperimentResult,
    Lab,
    check_site,
    chosen_rows,
    resampling_groups,
    train_rows,
)
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.models.sites import Site
from engine.passes.patch_engine import SELF_LIMIT
from engine.patching.run import self_check
from engine.patching.vectors import built, wrong_pairs
from engine.rank import numbers as ranks
from engine.rank.report import RankData, choice, describe_spectra, prompt_kls, table
from engine.rank.spec import RankSweep
from engine.rank.vectors import RankPath, RankVectors
from engine.transport import MomentMatching, ScaledProcrustes, TransportMap

NULL_DRAWS = 20
"""Spectra that the singular values are compared with."""


def run(spec: RankSweep, lab: Lab) -> ExperimentResult:
    """Runs the sweep on a lab's train and validation prompts.

    Raises:
        PatchError, SiteError, ModelError: the experiment, a model or the self-patch check fails.
        JobError: cancelled between batches.
    """
    for name in spec.models():
        check_site(lab, name, spec.component, spec.layer)
    sides = Sides.of(spec, lab)
    plan = Plan.of(spec, lab, sides)
    vectors = plan.vectors
    engine = lab.engine(spec.target, sides.rows, spec.position, spec.read_at)
    cells = vectors.cells()
    lab.report(message=f"Patching {sides.rows.size} prompts under {len(cells)} conditions.")
    site = Site(spec.component, spec.layer)
    swept = engine.sweep(
        site,
        vectors.at,
        n_conditions=len(cells),
        reverse_kl=spec.reverse_kl,
        on_progress=lambda done, total: lab.report(done=done, total=total),
        should_stop=lab.should_stop,
    )
    check = self_check(swept.self_kl, engine, str(site))
    rounding = measured(lab, [spec.target])
    floor = max(SELF_LIMIT, kl_floor(rounding))
    prompts, in_train = lab.prompts[sides.rows], np.isin(sides.rows, sides.chosen)
    data = RankData(spec, cells, swept.kl, resampling_units(prompts), in_train, floor)
    chosen, found = choice(data)
    spectra, counts = describe_spectra(plan.spectra(spec, lab, sides))
    summary: dict[str, Any] = {
        **found,
        "map": spec.map.describe(),
        "reference": sides.reference_name,
        "full_rank": vectors.truncated_ks[-1] if vectors.truncated_ks else None,
        "basis_size": int(vectors.bases[0].shape[1]),
        "spectra": counts,
        "n_train": int(sides.chosen.size),
        "n_validation": int(sides.rows.size - sides.chosen.size),
        "interval": {"level": spec.level, "method": "studentised bootstrap", "unit": unit_name(prompts)},
        "self_check": check.to_json(),
        "rounding": rounding,
        "source_origin": lab.origin(spec.source, site, spec.position),
        "notes": list(lab.notes),
    }
    tables = {
        "table": table(data),
        "choice": chosen,
        "spectrum": spectra,
        "prompts": prompt_kls(data, sides.rows),
    }
    return ExperimentResult(summary, tables)


@dataclass(frozen=True)
class Sides:
    """Activations of both models, and which prompts play which part.

    Attributes:
        rows: (n,) reported prompts, train and validation. chosen: those of the train split.
        train: (m,) all train prompts, which maps are fitted on.
        source, own: (n, d_x), (n, d) on `rows`. source_train, target_train: on `train`.
        groups: (m,) resampling group of each train prompt.
    """

    rows: Int[np.ndarray, " n"]
    chosen: Int[np.ndarray, " c"]
    train: Int[np.ndarray, " m"]
    source: Float[np.ndarray, "n dx"]
    own: Float[np.ndarray, "n d"]
    source_train: Float[np.ndarray, "m dx"]
    target_train: Float[np.ndarray, "m d"]
    groups: Int[np.ndarray, " m"]

    @classmethod
    def of(cls, spec: RankSweep, lab: Lab) -> Sides:
        """Asks the lab for what the sweep needs."""
        chosen = chosen_rows(lab.prompts, "train", spec.where)
        rows = np.union1d(chosen, chosen_rows(lab.prompts, "validation", spec.where))
        train = train_rows(lab.prompts)
        site, union = Site(spec.component, spec.layer), np.union1d(rows, train)
        here, there = np.searchsorted(union, rows), np.searchsorted(union, train)
        source, own = (
            lab.activations(name, site, spec.position, union).astype(np.float64)
            for name in (spec.source, spec.target)
        )
        groups = resampling_groups(lab.prompts[train])
        return cls(rows, chosen, train, source[here], own[here], source[there], own[there], groups)

    @property
    def reference_name(self) -> str:
        """What drop% is relative to: "raw", or "mean" where the widths differ and there is no raw patch."""
        return "raw" if self.source.shape[1] == self.own.shape[1] else "mean"

    def reference(self) -> Float[np.ndarray, "n d"]:
        """The moment-matched source, or the target's train mean."""
        if self.reference_name == "mean":
            return np.broadcast_to(self.target_train.mean(axis=0), self.own.shape)
        return np.asarray(MomentMatching().fit(self.source_train, self.target_train).predict(self.source))

    def folds(self, count: int, seed: int) -> Int[np.ndarray, " m"]:
        """Fold of each train prompt; a group is in one fold."""
        size = int(self.groups.max()) + 1
        fold = np.random.default_rng(seed).permutation(size) % min(count, size)
        return np.asarray(fold[self.groups])


@dataclass(frozen=True)
class Plan:
    """What a sweep puts in, and what it was made from.

    Attributes:
        fitted: the map of the whole train split. vectors: what is put in.
        apart: (m, d) mapped − own of every train prompt, mapped without its fold.
    """

    fitted: TransportMap
    vectors: RankVectors
    apart: Float[np.ndarray, "m d"]

    @classmethod
    def of(cls, spec: RankSweep, lab: Lab, sides: Sides) -> Plan:
        """Fits the map, and once more without each fold.

        Raises:
            PatchError: both sides are the same, so that there is nothing to swap, or too few train prompts.
        """

        def fit(kept: np.ndarray) -> TransportMap:
            estimator = built(lab, spec, spec.map)
            x, y = sides.source_train[kept], sides.target_train[kept]
            return estimator.fit(x, y, groups=sides.groups[kept])

        folds = sides.folds(spec.folds, spec.seed)
        if folds.size - np.bincount(folds).max() < 2:
            raise PatchError(
                "The train split is too small: each part of it is mapped by a map fitted on the others.",
                expected="at least 2 train prompts outside each part",
                given=f"{folds.size} train prompts in {int(folds.max()) + 1} parts",
                next_step="give the train split more prompts.",
            )
        fitted = fit(np.full(folds.size, True))
        maps = [fit(folds != f) for f in range(int(folds.max()) + 1)]
        # The map of each reported prompt: the one without its fold; the last, of all train prompts, else.
        part = np.full(sides.rows.size, len(maps))
        in_train = np.isin(sides.rows, sides.train)
        part[in_train] = folds[np.searchsorted(sides.train, sides.rows[in_train])]
        maps.append(fitted)
        apart = _mapped(maps, folds, sides.source_train) - sides.target_train
        if not np.any(apart):
            raise _nothing(spec)
        return cls(fitted, _vectors(spec, sides, maps, part, _basis(spec, fitted, apart)), apart)

    def spectra(self, spec: RankSweep, lab: Lab, sides: Sides) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Singular values with those of the null: of mapped − own, and of the map's core M."""
        null = ranks.sign_flipped_spectra(self.apart, NULL_DRAWS, spec.seed)
        found = {"difference": (np.linalg.svd(self.apart, compute_uv=False), null)}
        if isinstance(self.fitted, ScaledProcrustes):
            own = self.fitted.singular_values_
            wrong = np.zeros((NULL_DRAWS, own.size))
            for seed, draw in enumerate(wrong, spec.seed):
                pairs = wrong_pairs(lab.prompts[sides.train], seed)
                values = clone(self.fitted).fit(sides.source_train, sides.target_train[pairs])
                size = min(own.size, values.singular_values_.size)
                draw[:size] = values.singular_values_[:size]
            found["map"] = (own, wrong)
        return found


def _basis(spec: RankSweep, fitted: TransportMap, apart: np.ndarray) -> np.ndarray:
    """Column-orthonormal (d, r), in the order in which the projector takes its columns."""
    if spec.basis == "difference":
        return ranks.leading_directions(apart).basis
    assert isinstance(fitted, ScaledProcrustes)
    return np.asarray(fitted.output_basis())


def _vectors(
    spec: RankSweep, sides: Sides, maps: list[TransportMap], part: np.ndarray, basis: np.ndarray
) -> RankVectors:
    procrustes = [m for m in maps if isinstance(m, ScaledProcrustes)]
    d, widest = basis.shape
    drawn = [ranks.random_basis(d, widest, spec.seed + 1 + draw) for draw in range(spec.draws)]
    return RankVectors(
        own=sides.own,
        reference=sides.reference(),
        mapped=_mapped(maps, part, sides.source),
        mean=sides.target_train.mean(axis=0),
        paths=tuple(RankPath.of(m, sides.source) for m in procrustes),
        path_of=np.column_stack([part, np.arange(sides.rows.size)]),
        bases=(basis, *drawn),
        truncated_ks=_grid(spec.ks, procrustes[-1].n_components_) if procrustes else (),
        projector_ks=_grid(spec.ks, widest),
        alphas=spec.alphas,
        deviation=spec.scale == "deviation",
        reference_scaled=spec.raw_alpha == "scaled",
    )


def _mapped(maps: list[TransportMap], part: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Rows of x, each by the map it belongs to."""
    out: np.ndarray | None = None
    for number in np.unique(part):
        rows = part == number
        found = np.asarray(maps[number].predict(x[rows]))
        out = np.empty((len(x), found.shape[1])) if out is None else out
        out[rows] = found
    assert out is not None
    return out


def _grid(ks: tuple[int, ...], full: int) -> tuple[int, ...]:
    return tuple(sorted({min(k, full) for k in ks})) if ks else ranks.rank_grid(full)


def _nothing(spec: RankSweep) -> PatchError:
    return PatchError(
        f"{spec.source} and {spec.target} have the same activations at {spec.site_text()}: there is nothing "
        "to swap.",
        expected="replacements that differ from the target's own activations",
        given="differences that are all zero on the train prompts",
        next_step="choose a site behind the first change between the models.",
    )
