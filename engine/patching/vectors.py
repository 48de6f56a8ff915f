"""What an intervention puts in: fitted maps and replacement vectors, for every experiment that patches.

    site, vectors, places = intervention(lab, experiment, rows, alpha)

gives the vectors that `experiment` (a `Condition` or a `MappedPatch`) injects on any prompts of the lab.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float, Float32, Int64

from engine.errors import AnalysisError, PatchError
from engine.lab.experiment import (
    Experiment,
    Lab,
    PatchExperiment,
    check_site,
    resampling_groups,
    train_rows,
    width_text,
)
from engine.models.sites import Site
from engine.patching.mapped_spec import MappedKind, MappedPatch
from engine.patching.numbers import RandomRotation, row_space, shuffled_pairs
from engine.patching.run import Vectors, replacement_vectors
from engine.patching.spec import Condition
from engine.prompts.draws import draws_of, sample_of
from engine.stats.moments import fit_moments, match_moments
from engine.transport import TransportMap
from engine.transport.named import NAMES, MapSpec, Readout


@dataclass(frozen=True)
class Fitted:
    """A transport map with the paired train activations that it was fitted on.

    Attributes:
        map: fitted. rows: (n,) the train prompts. x: (n, width) the source's. y: (n, width) the target's.
    """

    map: TransportMap
    rows: Int64[np.ndarray, " n"]
    x: Float32[np.ndarray, "n width_source"]
    y: Float32[np.ndarray, "n width_target"]

    @property
    def mean(self) -> Float[np.ndarray, " width_target"]:
        """The target's train mean, float64."""
        return np.asarray(self.y, dtype=np.float64).mean(axis=0)


def fitted(
    lab: Lab, experiment: PatchExperiment, spec: MapSpec, *, layer: int | None = None, shuffled: bool = False
) -> Fitted:
    """The map of an experiment's site and direction, fitted on all train prompts.

    Args:
        layer: another block's activations of the same component.
        shuffled: fit on wrong pairs instead: whole prompt pairs change places, languages stay.

    Raises:
        PatchError: fewer than two train prompts. AnalysisError: widths that this map can't join.
    """
    rows = train_rows(lab.prompts)
    if rows.size < 2:
        raise PatchError(
            "A transport map is fitted on the train prompts.",
            expected="at least 2",
            given=rows.size,
            next_step="give the prompts a train split.",
        )
    site = Site(experiment.component, experiment.layer if layer is None else layer)
    x = lab.activations(experiment.source, site, experiment.position, rows)
    y = lab.activations(experiment.target, site, experiment.position, rows)
    order = wrong_pairs(lab.prompts[rows], experiment.seed) if shuffled else np.arange(rows.size)
    groups = resampling_groups(lab.prompts[rows])
    estimator = built(lab, experiment, spec)
    draws = draws_of(getattr(experiment, "fitted_at", ""))
    if draws:
        estimator.fit(*_pooled(lab, experiment, site, draws, rows, order, groups))
    else:
        estimator.fit(x, y[order], groups=groups)
    return Fitted(estimator, rows, x, y)


def _pooled(
    lab: Lab,
    experiment: PatchExperiment,
    site: Site,
    draws: Sequence[str],
    rows: Int64[np.ndarray, " n"],
    order: Int64[np.ndarray, " n"],
    groups: Int64[np.ndarray, " n"],
) -> tuple[Float32[np.ndarray, "m width_source"], Float32[np.ndarray, "m width_target"], np.ndarray]:
    """Both sides' activations of all draws of each prompt, and the group of each row.

    A draw is kept where both models' tokens end at the same character: a token may go on behind the drawn
    word. Two draws of the same tokens count once: words may share a token, and a prompt with fewer words than
    draws repeats its last one. `order`: whose rows stand on the target's side.

    Raises:
        PatchError: fewer than two draws are kept.
    """
    models, drawn = experiment.models()[::-1], 0
    sides: tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]] = ([], [], [])
    before: list[np.ndarray] = []
    for draw in draws:
        place = [lab.places(model, draw, rows) for model in models]
        ends = [lab.characters_before(model, draw, rows) for model in models]
        new = np.ones(rows.size, dtype=bool)
        if before:
            new = (place[0] != before[0]) | (place[1] != before[1])
        same = new & (ends[0] == ends[1])
        before, both, drawn = place, same & same[order], drawn + int(new.sum())
        sides[0].append(lab.activations(models[0], site, draw, rows)[both])
        sides[1].append(lab.activations(models[1], site, draw, rows)[order][both])
        sides[2].append(groups[both])
    x, y, of = (np.concatenate(side) for side in sides)
    if len(of) < 2:
        raise PatchError(
            f"The map can't be fitted at {sample_of(draws[0])[0]}.",
            expected="at least 2 drawn words whose tokens end at the same character in both models",
            given=f"{len(of)} of {drawn}",
            next_step="draw more words, or fit at the patched token.",
        )
    if len(of) < drawn and (order == np.arange(rows.size)).all():
        note = (
            f"{drawn - len(of)} of {drawn} drawn pairs are left out of the map's fit: the two models' tokens "
            "end at different characters."
        )
        lab.notes.extend([] if note in lab.notes else [note])
    return x, y, of


def built(lab: Lab, experiment: PatchExperiment, spec: MapSpec) -> TransportMap:
    """The estimator of a map between an experiment's models, not fitted."""
    return spec.build(readout(lab, experiment.target), experiment.seed, readout(lab, experiment.source))


def readout(lab: Lab, model: str) -> Readout:
    """A model's unembedding (V, d) and its final norm's gain (d,), from the store or else the model."""

    def read() -> tuple[np.ndarray, np.ndarray]:
        try:
            names = ("unembedding", "final_norm_gain")
            unembedding, gain = (lab.array(f"weights/{model}/{name}") for name in names)
        except Exception as error:  # whatever a lab raises for an array that it doesn't have
            raise PatchError(
                f"The unembedding of {model} is not stored.",
                expected=f"the array weights/{model}/unembedding",
                given=str(error),
                next_step="choose another transport map, or make the store again with its weights.",
            ) from error
        return np.asarray(unembedding, dtype=np.float64), np.asarray(gain, dtype=np.float64)

    return read


def wrong_pairs(prompts: pl.DataFrame, seed: int) -> Int64[np.ndarray, " n"]:
    """For each prompt one that it doesn't belong to, in the same language; see `shuffled_pairs`."""
    languages = prompts["language"].to_list() if "language" in prompts.columns else [""] * prompts.height
    return shuffled_pairs(resampling_groups(prompts), languages, seed)


def intervention(
    lab: Lab,
    experiment: Experiment,
    rows: Sequence[int] | np.ndarray,
    alpha: float,
    kind: str | None = None,
) -> tuple[Site, Float32[np.ndarray, "n width"], Int64[np.ndarray, " n"]]:
    """What a patch experiment puts into its target on some prompts.

    Args:
        rows: any prompts of the lab.
        alpha: amplitude, in the experiment's scale; used as it is for every kind.
        kind: another of the experiment's kinds of replacement; by default its own ("mapped" for a
            `MappedPatch`).

    Returns:
        Where, the vectors (n, width), and the token's index in each prompt of the target (n,).

    Raises:
        PatchError: an experiment of another sort, or one whose vectors can't be made.
    """
    at = np.asarray(rows, dtype=np.int64)
    if isinstance(experiment, Condition):
        site = Site(experiment.component, experiment.layer, experiment.heads)
        changed = experiment if kind is None else experiment.model_copy(update={"kind": kind})
        vectors = condition_vectors(lab, changed, at)
    elif isinstance(experiment, MappedPatch):
        site = Site(experiment.component, experiment.layer)
        asked: MappedKind = "mapped" if kind is None else kind  # type: ignore[assignment]
        found = Replacements.of(lab, experiment, at, (asked,))
        if asked in found.left_out:
            raise PatchError(f"There is no {asked} replacement at {site}: {found.left_out[asked]}.")
        vectors = found.vectors[asked]
    else:
        raise PatchError(
            "This experiment has no single replacement.",
            expected="a patch or a mapped patch",
            given=experiment.job,
        )
    values = vectors.at([alpha], experiment.scale, np.arange(at.size))[0]
    return site, values, lab.places(experiment.target, experiment.position, at)


def condition_vectors(lab: Lab, condition: Condition, rows: np.ndarray) -> Vectors:
    """What a condition injects on some prompts, before the amplitude."""
    site = Site(condition.component, condition.layer, condition.heads)
    train = train_rows(lab.prompts) if condition.needs_train else rows[:0]

    def of(model: str, wanted: np.ndarray, needed: bool) -> np.ndarray | None:
        return lab.activations(model, site, condition.position, wanted) if needed else None

    return replacement_vectors(
        condition,
        (rows.size, width(lab, condition.target, condition.component, condition.heads)),
        own=of(condition.target, rows, condition.kind == "self"),
        source=of(condition.source, rows, condition.needs_source),
        source_train=of(condition.source, train, condition.kind == "raw"),
        target_train=of(condition.target, train, condition.needs_train),
    )


def width(lab: Lab, model: str, component: str, heads: Sequence[int] | None = None) -> int:
    """Width of a site: d, or for head_z the heads' widths together."""
    sizes = lab.sizes(model)
    if component != "head_z":
        return int(sizes["d"])
    return int(sizes["head_dim"]) * (int(sizes["n_heads"]) if heads is None else len(heads))


@dataclass(frozen=True)
class Replacements:
    """The vectors of every kind on some prompts.

    Attributes:
        vectors: kind -> what is injected before the amplitude. left_out: kind -> why there is none.
        fit: the experiment's map. own: (n, width) the target's activations on the prompts.
        source: (n, width) the source's. shuffled: the map fitted on wrong pairs, where it was asked for.
        bogus_layer: whose map the bogus kind borrows.
    """

    vectors: dict[MappedKind, Vectors]
    left_out: dict[MappedKind, str]
    fit: Fitted
    own: Float32[np.ndarray, "n width"]
    source: Float32[np.ndarray, "n width_source"]
    shuffled: TransportMap | None
    bogus_layer: int

    @classmethod
    def of(
        cls, lab: Lab, experiment: MappedPatch, rows: np.ndarray, kinds: Sequence[MappedKind]
    ) -> Replacements:
        """Fits what the kinds need on the train prompts and carries the prompts' activations over.

        Raises:
            PatchError, SiteError: a model, site or map that doesn't fit. AnalysisError: widths.
        """
        for name in experiment.models():
            check_site(lab, name, experiment.component, experiment.layer)
        return _Maker(lab, experiment, rows).make(kinds)


class _Maker:
    def __init__(self, lab: Lab, experiment: MappedPatch, rows: np.ndarray) -> None:
        self.lab, self.experiment = lab, experiment
        site = Site(experiment.component, experiment.layer)
        self.fit = fitted(lab, experiment, experiment.map)
        self.source = lab.activations(experiment.source, site, experiment.position, rows)
        self.own = lab.activations(experiment.target, site, experiment.position, rows)
        self.shuffled: TransportMap | None = None
        counts = [int(lab.sizes(name)["n_layers"]) for name in experiment.models()]
        self.bogus_layer = experiment.borrowed(min(counts))

    def make(self, kinds: Sequence[MappedKind]) -> Replacements:
        made: dict[MappedKind, Vectors] = {}
        left_out: dict[MappedKind, str] = {}
        for kind in kinds:
            base: np.ndarray | str = getattr(self, f"_{kind}")()
            if isinstance(base, str):
                left_out[kind] = base
            else:
                made[kind] = Vectors(np.asarray(base, dtype=np.float64), self.fit.mean, {})
        return Replacements(made, left_out, self.fit, self.own, self.source, self.shuffled, self.bogus_layer)

    def _mapped(self) -> np.ndarray:
        return self.fit.map.predict(self.source)

    def _raw(self) -> np.ndarray | str:
        experiment = self.experiment
        target, source = (width_text(self.lab, m, experiment.component) for m in experiment.models())
        if target != source:
            return f"{experiment.source} has {source}, {experiment.target} {target}"
        return match_moments(self.source, fit_moments(self.fit.x), fit_moments(self.fit.y))

    def _bogus(self) -> np.ndarray | str:
        if self.bogus_layer == self.experiment.layer:
            return "there is no other block to borrow a map from"
        for name in self.experiment.models():
            check_site(self.lab, name, self.experiment.component, self.bogus_layer)
        other = fitted(self.lab, self.experiment, self.experiment.map, layer=self.bogus_layer)
        return other.map.predict(self.source)

    def _shuffled(self) -> np.ndarray | str:
        if not self.fit.map.uses_pairs:
            return f"{NAMES[self.experiment.map.method]} does not look at which prompts belong together"
        try:
            self.shuffled = fitted(self.lab, self.experiment, self.experiment.map, shuffled=True).map
        except AnalysisError as error:
            return error.what
        return self.shuffled.predict(self.source)

    def _random(self) -> np.ndarray:
        """Turned inside the span of the train target and of what the map writes on any prompt of the study:
        nothing of it is dropped, and every choice of prompts is turned alike."""
        site = Site(self.experiment.component, self.experiment.layer)
        every = np.arange(self.lab.prompts.height)
        source = self.lab.activations(self.experiment.source, site, self.experiment.position, every)
        written = np.vstack([self.fit.y, self.fit.map.predict(source)]) - self.fit.mean
        turn = RandomRotation.of(self.fit.mean, row_space(written), self.experiment.seed)
        return turn.apply(self._mapped())

    def _mean(self) -> np.ndarray:
        return np.broadcast_to(self.fit.mean, self.own.shape)

    def _self(self) -> np.ndarray:
        return self.own
