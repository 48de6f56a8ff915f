"""Transport maps of a store: each side decomposed once, everything else from products of what it kept.

A side (one model's activations at one place) is decomposed once, kept in this process and in the store. Maps
are fitted on sides, and λ, k, γ and q move on the fitted map: no slider reads activations again.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.base import clone

from app.frame.call import kept
from app.frame.fields import power
from app.frame.prompts import groups, require, roles, rows, shared_blocks, values
from app.frame.selection import Selection
from app.frame.words import label
from app.transport.fields import MapFields
from engine import transport
from engine.errors import AnalysisError, StoreError
from engine.transport import Paired, PathErrors, Side, TransportMap, TransportScores
from engine.transport.named import NAMES, SAME_WIDTH, USES, MapSpec
from store.files import crc32c
from store.layout import MANIFEST, slug
from store.maps import MapLog
from store.reader import STATES, Store

SHUFFLES, PAIRINGS, SEED = 5, 199, 0
LEAST = 8
"""Fewest prompts of a split that a map is fitted on or judged by."""
MOST_DIRECTIONS = 1024
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z")


@dataclass(frozen=True)
class Place:
    """Where a map reads and writes."""

    source: str
    target: str
    site: str
    layer: int
    position: str

    @property
    def words(self) -> str:
        return f"{self.site} of block {self.layer}, {label(self.position)}"

    @classmethod
    def of(cls, selection: Selection) -> Place:
        """The place that a selection names; `head_out` isn't stored, its heads' values are."""
        target, source = (selection.a, selection.b) if selection.target == "a" else (selection.b, selection.a)
        site = selection.site if selection.site in SITES else "head_z"
        return cls(source, target, site, selection.layer, selection.position)


@dataclass(frozen=True)
class Halves:
    """One model's activations of the train and of the validation prompts at one place.

    Attributes:
        repeated: train prompts whose activation is exactly another train prompt's.
    """

    train: Side
    validation: Side
    repeated: int


@dataclass(frozen=True)
class Pair:
    """Both models' activations of both splits at one place."""

    train: Paired
    validation: Paired
    repeated: int

    @cached_property
    def raw(self) -> dict[str, float]:
        """CKA of the two models without any map."""
        return transport.raw_alikeness(self.validation)


def places(store: Store, place: Place) -> list[Place]:
    """Every site and block that both models have, at the position of `place`."""
    has = set.intersection(*(set(store.components(model)) for model in store.models))
    sites = [s for s in SITES if s in has or (s in STATES and "resid" in has)]
    blocks = shared_blocks(store, place.source, place.target)
    return [replace(place, site=s, layer=b) for s in sites for b in blocks]


def spec_of(selection: Selection) -> MapSpec:
    """The map that a selection names."""
    own = MapFields.of(selection)
    chosen = {
        "method": own.method,
        "rank": own.rank,
        "shrinkage": own.shrink,
        "scale": own.map_scale,
        "penalty": None if own.lam_mode == "auto" else power(own.lam),
        "penalty_from": power(own.lam_from),
        "directions": own.q,
        "joint": own.joint == "yes",
        "clusters": own.clusters,
    }
    return MapSpec.model_validate(chosen)


def splits(store: Store) -> dict[str, np.ndarray]:
    """Rows of the train and the validation prompts.

    Raises:
        AnalysisError: the study doesn't split its prompts, or a split is too small.
    """
    has = values(store, "split")
    if not {"train", "validation"} <= set(has):
        raise AnalysisError(
            "A map is fitted on train prompts and judged on validation prompts; these have no such splits.",
            expected="splits train and validation",
            given=", ".join(has) or "no split column",
            next_step="set `validation` under [prompts] in the study file and run precompute.py again.",
        )
    names = ("train", "validation")
    return {name: require(rows(store, (name, "all", "all")), LEAST) for name in names}


def _load(store: Store, model: str, place: Place, *, keep: bool) -> Halves:
    parts = []
    for split in splits(store).values():
        part = store.activations(model, place.site, place.layer, place.position, rows=split)
        if not np.isfinite(part).all():
            raise AnalysisError(
                f"Some activations of {model} here are not numbers.",
                expected=f"finite {place.site} of block {place.layer} at {place.position}",
                given=f"{int((~np.isfinite(part)).any(axis=1).sum())} prompts with NaN or infinity",
                next_step="Choose another place, or capture in float32.",
            )
        parts.append(part)
    train, validation = parts
    repeated = len(train) - len({row.tobytes() for row in train})
    return Halves(_side(store, model, place, train, keep=keep), Side(validation), repeated)


def _side(store: Store, model: str, place: Place, train: np.ndarray, *, keep: bool) -> Side:
    """Train rows with their decompositions: the kept ones when they belong to exactly these rows."""
    state = ("resid", place.layer + STATES[place.site]) if place.site in STATES else (place.site, place.layer)
    text = repr(("side-1", model, *state, place.position, train.shape, crc32c(train)))
    name = f"side-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
    log = MapLog(str(store.path), kept=True)
    with contextlib.suppress(StoreError, AnalysisError, KeyError):
        return Side.restored(train, log.open(name).arrays)
    side = Side(train)
    if keep:
        with contextlib.suppress(StoreError):  # a read-only store works, a little slower
            log.save(name, {"kept": "decompositions"}, side.decompositions(), {"side": text}, overwrite=True)
    return side


@kept("Decomposing activations…", most=6)
def _halves(store: Store, model: str, place: Place) -> Halves:
    return _load(store, model, place, keep=True)


def pair(store: Store, place: Place, *, keep: bool = True) -> Pair:
    """Activations of both models at a place.

    Args:
        keep: remember the decompositions; a pass over all places doesn't.
    """
    models = (place.source, place.target)
    if keep:
        one, two = (_halves(store, model, place) for model in models)
    else:
        one, two = (_load(store, model, place, keep=False) for model in models)
    sides = {"train": (one.train, two.train), "validation": (one.validation, two.validation)}
    train, validation = (
        Paired(*sides[split], groups(store, rows), roles(store, rows))
        for split, rows in splits(store).items()
    )
    return Pair(train, validation, one.repeated)


@kept("Decomposing the unembedding…", most=4)
def readout(store: Store, models: tuple[str, ...]) -> tuple[np.ndarray, None]:
    """Leading directions of the models' unembeddings, stacked, with the final norms' gains folded in, times
    their singular values (at most `MOST_DIRECTIONS`, d): what a logit subspace is made of, in few rows."""
    text = repr(("unembedding-2", models, MOST_DIRECTIONS))
    name = f"unembedding-{hashlib.sha256(text.encode()).hexdigest()[:40]}"
    log = MapLog(str(store.path), kept=True)
    stamp = [store.fingerprint, *(store.source.stamp(MANIFEST) or ())]
    with contextlib.suppress(StoreError, KeyError):
        found = log.open(name)
        if found.provenance.get("stamp") == stamp:
            return found.arrays["rows"], None
    names = [f"weights/{slug(m)}/{n}" for m in models for n in ("unembedding", "final_norm_gain")]
    unembedding, *others = map(store.array, names)
    small = transport.compress_unembedding(unembedding, MOST_DIRECTIONS, *others)
    with contextlib.suppress(StoreError):
        log.save(name, {"kept": "unembedding"}, {"rows": small}, {"stamp": stamp}, overwrite=True)
    return small, None


def unusable(store: Store, place: Place, spec: MapSpec) -> str:
    """Why a map can't be fitted at a place, or ""."""
    widths = [width(store, model, place.site) for model in (place.source, place.target)]
    if not spec.fits(place.site):
        return "The unembedding reads the residual stream, not head values."
    if spec.method in SAME_WIDTH and widths[0] != widths[1]:
        return f"{NAMES[spec.method]} needs one width; here they are {widths[0]} and {widths[1]}."
    return ""


def width(store: Store, model: str, site: str) -> int:
    info = store.model_info(model)
    return int(info["n_heads"]) * int(info["head_dim"]) if site == "head_z" else int(info["d"])


def check(store: Store, place: Place, spec: MapSpec) -> None:
    """Raises AnalysisError when a map can't be fitted at a place."""
    why = unusable(store, place, spec)
    if why:
        raise AnalysisError(
            "This map cannot be fitted here.",
            expected="another map or another site",
            given=why,
            next_step="Choose ridge or scaled Procrustes, which fit everywhere.",
        )


def build(store: Store, place: Place, spec: MapSpec) -> TransportMap:
    """The estimator of a spec, not fitted; raises AnalysisError when it can't be fitted at this place."""
    check(store, place, spec)
    models = (place.target, place.source) if spec.joint else (place.target,)
    if "directions" in USES[spec.method]:
        spec = spec.model_copy(update={"joint": False})  # the readout has both
    return spec.build(lambda: readout(store, models), SEED)  # type: ignore[arg-type, return-value]


def _base(spec: MapSpec) -> MapSpec:
    """The spec without what a fitted map moves along."""
    free = {"rank": 0, "penalty": None, "directions": MOST_DIRECTIONS}
    return MapSpec.model_validate({**spec.model_dump(), **free})


def most_directions(store: Store, place: Place) -> int:
    """Largest size of the logit subspace that is offered."""
    return min(MOST_DIRECTIONS, width(store, place.target, "resid"), len(readout(store, (place.target,))[0]))


def _clipped(store: Store, place: Place, spec: MapSpec) -> MapSpec:
    if "directions" not in USES[spec.method]:
        return spec
    return spec.model_copy(update={"directions": min(spec.directions, most_directions(store, place))})


@kept("Fitting the map…", most=8)
def _fitted(store: Store, place: Place, base: MapSpec) -> TransportMap:
    both = pair(store, place).train
    estimator = build(store, place, _clipped(store, place, base))
    return clone(estimator).fit_sides(both.x, both.y, both.groups)


def at(fitted: Any, spec: MapSpec) -> Any:
    """A fitted map at the spec's rank, size of logit subspace and λ; nothing is fitted on activations."""
    if isinstance(fitted, transport.ClusteredTransport):
        return fitted.remapped(lambda own: at(own, spec))
    uses = USES[type(fitted).__name__]
    if "rank" in uses:
        return fitted.at_rank(spec.rank or None)
    if "directions" in uses:
        fitted = fitted.at_components(spec.directions)
    return fitted.at(spec.penalty) if "penalty" in uses and spec.penalty is not None else fitted


def fitted(store: Store, place: Place, spec: MapSpec) -> TransportMap:
    """The map of a spec, fitted on the train prompts at a place."""
    spec = _clipped(store, place, spec)
    found: TransportMap = at(_fitted(store, place, _base(spec)), spec)
    return found


@dataclass(frozen=True)
class Paths:
    """A map's errors along its path, for train and validation prompts, and of refits on wrong pairs."""

    train: PathErrors
    validation: PathErrors
    shuffled: tuple[PathErrors, ...]
    shuffled_chosen: tuple[float, ...]
    chosen: float
    most: int

    def null(self, parameter: float | None) -> np.ndarray:
        """Validation R² of the refits at a parameter, or each at its own chosen one."""
        at = self.shuffled_chosen if parameter is None else [parameter] * len(self.shuffled)
        return np.array([p.r2([c])[0] for p, c in zip(self.shuffled, at, strict=True)])


def paths(store: Store, place: Place, spec: MapSpec) -> Paths | None:
    """The λ or rank path of maps that have one in closed form; None for the others."""
    spec = _clipped(store, place, spec)
    if spec.clusters > 1 or spec.method not in ("ScaledProcrustes", "RidgeTransport", "LogitSubspaceRidge"):
        return None
    free = MapSpec.model_validate({**spec.model_dump(), "rank": 0, "penalty": None})
    return _paths(store, place, free)


@kept(most=8)
def _paths(store: Store, place: Place, spec: MapSpec) -> Paths:
    both = pair(store, place)
    whole: Any = fitted(store, place, spec)
    wrong = [
        clone(build(store, place, spec)).fit_sides(p.x, p.y, p.groups)
        for p in both.train.shuffled(SHUFFLES, SEED)
    ]
    new = both.validation.x.rows, both.validation.y.rows
    return Paths(
        whole.scorer(both.train.x.rows, both.train.y.rows),
        whole.scorer(*new),
        tuple(w.scorer(*new) for w in wrong),
        tuple(_chosen(w) for w in wrong),
        _chosen(whole),
        int(getattr(whole, "rank_", 0)),
    )


def _chosen(whole: Any) -> float:
    """λ of a ridge, the full rank of a rotation."""
    if isinstance(whole, transport.LogitSubspaceRidge):
        return float(whole.ridge_.alpha_)
    return float(whole.alpha_) if isinstance(whole, transport.RidgeTransport) else float(whole.rank_)


def scores(store: Store, place: Place, spec: MapSpec) -> TransportScores:
    """All scores of a map at a place."""
    return _scores(store, place, _clipped(store, place, spec))


@kept("Judging the map…", most=256)
def _scores(store: Store, place: Place, spec: MapSpec) -> TransportScores:
    both = pair(store, place)
    road = paths(store, place, spec)
    if road is None or spec.method == "LogitSubspaceRidge":
        estimator = build(store, place, spec)
        made = clone(estimator).fit_sides(both.train.x, both.train.y, both.train.groups)
        return evaluate(made, both)
    wanted = spec.penalty if "penalty" in USES[spec.method] else (spec.rank or None)
    return transport.evaluate_path(
        (road.train, road.validation),
        road.chosen if wanted is None else wanted,
        both.validation,
        road.null(wanted),
        both.raw,
        n_pairings=PAIRINGS,
        seed=SEED,
    )


def evaluate(made: TransportMap, both: Pair) -> TransportScores:
    """All scores of a map that was fitted on these pairs."""
    return transport.evaluate_pairs(
        made, both.train, both.validation, n_shuffles=SHUFFLES, n_pairings=PAIRINGS, seed=SEED
    )


@kept("Moving along the path…")
def path_by_prediction(
    store: Store, place: Place, spec: MapSpec, grid: tuple[float, ...]
) -> dict[str, list[float]]:
    """R² of train and validation over λ or k for maps without a closed path: the fitted map is moved, not
    refitted, and predicts at each value."""
    both, whole = pair(store, place), _fitted(store, place, _base(spec))
    field = "penalty" if "penalty" in USES[spec.method] else "rank"
    lines: dict[str, list[float]] = {"train": [], "validation": []}
    for value in grid:
        moved = at(whole, spec.model_copy(update={field: value if field == "penalty" else int(value)}))
        for name, part in (("train", both.train), ("validation", both.validation)):
            lines[name].append(float(moved.score(part.x.rows, part.y.rows)))
    return lines
