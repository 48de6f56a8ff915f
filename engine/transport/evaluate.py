"""How well a transport map carries activations over, with its null, and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from engine.errors import AnalysisError
from engine.similarity.cka import centre, cka_from_grams, permutation_null
from engine.stats.resampling import resamples, unit_index
from engine.transport.base import TransportMap, r2
from engine.transport.paths import MappedLengths, PathErrors
from engine.transport.sides import CONSTANT_RTOL, Array, Paired

HIGH = 0.5
"""From here on a debiased CKA or a cosine of deviations counts as high in the wording."""
NULL_LEVEL = 0.95
"""Level of the null band of a mapped CKA, and of the interval of R²."""
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class TransportScores:
    """One map at one site.

    Attributes:
        r2_train, r2_validation: variance-weighted R² in the target's original space.
        r2_low, r2_high: central 95 % of r2_validation over bootstrap resamples of the validation groups.
        r2_train_whitened, r2_validation_whitened: the same in the map's own whitened target space, where
            all directions count alike; NaN for maps that don't whiten.
        r2_shuffled: mean validation R² of maps refitted on permuted train pairs. r2_shuffled_max: largest.
            Whole groups are exchanged, and a prompt keeps its role in its group. NaN for maps that don't
            look at the pairing.
        cka_raw, cka_mapped: biased linear CKA of source, or mapped source, with the target (validation).
        cka_raw_debiased, cka_mapped_debiased: the debiased estimator, the one to read when n < d.
        cka_null_low, cka_null_high: central 95 % of cka_mapped_debiased under wrong pairings of the
            validation prompts, the map unchanged; NaN without any.
        cosine: mean over validation prompts of cos(ŷ, y); close to 1 for anything around a large common mean.
        cosine_deviation: the same after subtracting the train target mean from both.
        alpha_vector: median ‖y‖/‖ŷ‖ over train prompts. alpha_deviation: median ‖y − μ_y‖/‖ŷ − μ_y‖.
        n_train, n_validation, n_shuffles, n_pairings: counts; n_pairings of cka_null. All CKA are over a
            random sample of the validation prompts where they are many (`Paired.compared`).
        words: what the combination means.
    """

    r2_train: float
    r2_validation: float
    r2_low: float
    r2_high: float
    r2_train_whitened: float
    r2_validation_whitened: float
    r2_shuffled: float
    r2_shuffled_max: float
    cka_raw: float
    cka_mapped: float
    cka_raw_debiased: float
    cka_mapped_debiased: float
    cka_null_low: float
    cka_null_high: float
    cosine: float
    cosine_deviation: float
    alpha_vector: float
    alpha_deviation: float
    n_train: int
    n_validation: int
    n_shuffles: int
    n_pairings: int
    words: str

    def to_json(self) -> dict[str, Any]:
        """Field name to value; NaN stays NaN."""
        return asdict(self)


def mean_cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """Mean cosine of paired rows; rows of zero length have no direction and are left out (NaN if all)."""
    return _cosine((a * b).sum(axis=1), np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def alpha_auto(
    y: Float[np.ndarray, "n d"],
    mapped: Float[np.ndarray, "n d"],
    target_mean: Float[np.ndarray, " d"] | None = None,
) -> float:
    """Amplitude that gives mapped rows the target's typical length: median over prompts of ‖y‖/‖ŷ‖.

    Args:
        target_mean: subtract it from both first (α scales the deviation only); None scales the vector.

    Returns:
        α > 0; NaN if no mapped row has a length.
    """
    shift = 0.0 if target_mean is None else target_mean
    given = np.linalg.norm(mapped - shift, axis=1)
    return _alpha(np.linalg.norm(y - shift, axis=1), given, np.linalg.norm(mapped, axis=1))


def shuffled_r2(
    estimator: TransportMap, train: Paired, validation: Paired, draws: int, seed: int
) -> Float[np.ndarray, " draws"]:
    """Validation R² of the map refitted on wrongly paired train rows, scored on true pairs.

    Whole groups of the target are exchanged, and a prompt keeps its role in its group: a map that only
    knows the role (the language) scores here as well. Empty for a map that doesn't look at the pairing, and
    where no two groups have the same roles.
    """
    if not estimator.uses_pairs:
        return np.empty(0)
    return np.array(
        [
            clone(estimator).fit_sides(p.x, p.y, p.groups).score(validation.x.rows, validation.y.rows)
            for p in train.shuffled(draws, seed)
        ]
    )


def evaluate_transport(
    estimator: TransportMap,
    x_train: Float[np.ndarray, "n dx"],
    y_train: Float[np.ndarray, "n dy"],
    x_validation: Float[np.ndarray, "m dx"],
    y_validation: Float[np.ndarray, "m dy"],
    *,
    n_shuffles: int = 5,
    n_pairings: int = 199,
    seed: int = 0,
) -> TransportScores:
    """`evaluate_pairs` of plain arrays, every prompt its own group."""
    train, validation = Paired.of(x_train, y_train), Paired.of(x_validation, y_validation)
    return evaluate_pairs(
        estimator, train, validation, n_shuffles=n_shuffles, n_pairings=n_pairings, seed=seed
    )


def evaluate_pairs(
    estimator: TransportMap,
    train: Paired,
    validation: Paired,
    *,
    n_shuffles: int = 5,
    n_pairings: int = 199,
    seed: int = 0,
) -> TransportScores:
    """Scores a map on train and validation prompts.

    A fitted estimator is used as it is (it must have been fitted on these train rows), an unfitted one
    is fitted on a copy. α comes from the train split only.

    Raises:
        AnalysisError: fewer than 4 validation prompts, which the debiased CKA needs.
    """
    fitted = _fitted(estimator, train)
    _enough(validation)
    mean, yt, yv = train.y.moments[0], train.y.rows, validation.y.rows
    rows = validation.x.rows
    own, r2_train = _judged(fitted, train.x.rows, yt, mean)
    new, r2_validation = _judged(fitted, rows, yv, mean)
    whitened = getattr(fitted, "score_whitened", lambda *_: float("nan"))
    fit = {
        "r2_train": r2_train,
        "r2_validation": r2_validation,
        "r2_train_whitened": whitened(train.x.rows, yt),
        "r2_validation_whitened": whitened(rows, yv),
    }
    shuffled = shuffled_r2(estimator, train, validation, n_shuffles, seed)
    alike = raw_alikeness(validation) | mapped_alikeness(new, validation, n_pairings, seed)
    fit |= r2_interval(new.errors, validation, seed)
    return summarise(fit, shuffled, alike, own, new, n_pairings)


def evaluate_path(
    paths: tuple[PathErrors, PathErrors],
    parameter: float,
    validation: Paired,
    shuffled: Float[np.ndarray, " draws"],
    raw: dict[str, float],
    *,
    n_pairings: int = 199,
    seed: int = 0,
) -> TransportScores:
    """The same scores at one parameter of a map's path, without its predictions; whitened R² is left out.

    Args:
        paths: `scorer` of the train and of the validation rows.
        parameter: λ or k.
        shuffled: validation R² of maps refitted on wrongly paired rows, at this parameter.
        raw: `raw_alikeness` of the validation rows.
    """
    train, new = paths
    nan = float("nan")
    fit = {
        "r2_train": float(train.r2([parameter])[0]),
        "r2_validation": float(new.r2([parameter])[0]),
        "r2_train_whitened": nan,
        "r2_validation_whitened": nan,
    }
    lengths = new.mapped(parameter)
    fit |= r2_interval(lengths.errors, validation, seed)
    alike = raw | mapped_alikeness(lengths, validation, n_pairings, seed)
    return summarise(fit, shuffled, alike, train.mapped(parameter), lengths, n_pairings)


def summarise(
    fit: dict[str, float],
    shuffled: Float[np.ndarray, " draws"],
    alike: dict[str, float],
    train: MappedLengths,
    validation: MappedLengths,
    n_pairings: int,
) -> TransportScores:
    """All scores and the words on them from their parts."""
    draws = len(shuffled)
    numbers = {
        **fit,
        "r2_shuffled": float(shuffled.mean()) if draws else float("nan"),
        "r2_shuffled_max": float(shuffled.max()) if draws else float("nan"),
        **alike,
        "cosine": _cosine(validation.dot, validation.length * validation.target_length),
        "cosine_deviation": _cosine(
            validation.deviation_dot, validation.deviation * validation.target_deviation
        ),
        "alpha_vector": _alpha(train.target_length, train.length, train.length),
        "alpha_deviation": _alpha(train.target_deviation, train.deviation, train.length),
    }
    words = describe(
        numbers["r2_train"],
        numbers["r2_validation"],
        numbers["r2_shuffled_max"],
        numbers["cka_mapped_debiased"],
        numbers["cosine_deviation"],
    )
    return TransportScores(
        **numbers,
        n_train=train.length.size,
        n_validation=validation.length.size,
        n_shuffles=draws,
        n_pairings=n_pairings,
        words=words,
    )


def r2_interval(errors: Float[np.ndarray, " m"], validation: Paired, seed: int) -> dict[str, float]:
    """Percentile bootstrap of R² over groups, the target's mean held fixed; NaN where nothing varies.

    Args:
        errors: ‖y − ŷ‖² of each validation prompt.
    """
    nan = {"r2_low": float("nan"), "r2_high": float("nan")}
    unit = unit_index(len(validation), validation.groups)
    spread = ((validation.y.rows - validation.y.rows.mean(axis=0)) ** 2).sum(axis=1)
    if not spread.sum() > CONSTANT_RTOL**2 * float((validation.y.rows**2).sum()) or unit.max() < 1:
        return nan
    counts = resamples(int(unit.max()) + 1, BOOTSTRAPS, seed).counts.astype(np.float64)
    missed, total = (counts @ np.bincount(unit, weights=v) for v in (errors, spread))
    values = 1 - missed[total > 0] / total[total > 0]
    low, high = np.quantile(values, [(1 - NULL_LEVEL) / 2, (1 + NULL_LEVEL) / 2])
    return {"r2_low": float(low), "r2_high": float(high)}


def raw_alikeness(validation: Paired) -> dict[str, float]:
    """Biased and debiased CKA of source and target as they are, over the compared rows."""
    _enough(validation)
    one, two = validation.grams
    return {
        "cka_raw": float(cka_from_grams(one, two)),
        "cka_raw_debiased": float(cka_from_grams(one, two, debiased=True)),
    }


def mapped_alikeness(
    mapped: MappedLengths, validation: Paired, n_pairings: int, seed: int
) -> dict[str, float]:
    """Biased and debiased CKA of mapped rows with the target, and the null of the debiased one, over the
    compared rows."""
    at = validation.compared
    one, two = centre(mapped.gram(at)), validation.grams[1]
    low = high = float("nan")
    if n_pairings:
        null = permutation_null(
            one,
            two,
            groups=None if validation.groups is None else np.asarray(validation.groups)[at],
            roles=None if validation.roles is None else np.asarray(validation.roles)[at],
            n_draws=n_pairings,
            level=NULL_LEVEL,
            seed=seed,
        )
        low, high = float(null.low), float(null.high)
    return {
        "cka_mapped": float(cka_from_grams(one, two)),
        "cka_mapped_debiased": float(cka_from_grams(one, two, debiased=True)),
        "cka_null_low": low,
        "cka_null_high": high,
    }


def _fitted(estimator: TransportMap, train: Paired) -> TransportMap:
    try:
        check_is_fitted(estimator, "single_output_")
    except NotFittedError:
        return clone(estimator).fit_sides(train.x, train.y, train.groups)
    return estimator


def _judged(fitted: Any, x: Array, y: Array, mean: Array) -> tuple[MappedLengths, float]:
    """Lengths and R² of mapped rows: from the map's own products where it keeps them, else by predicting."""
    if hasattr(fitted, "judged"):
        found: tuple[MappedLengths, float] = fitted.judged(x, y)
        return found
    mapped = np.asarray(fitted.predict(x)).reshape(len(x), -1)
    return MappedLengths.of(mapped, y, mean), r2(y, mapped)


def _enough(validation: Paired) -> None:
    if len(validation) < 4:
        raise AnalysisError(
            "Too few validation prompts to judge a map.",
            expected="at least 4",
            given=len(validation),
            next_step="Enlarge the validation split.",
        )


def _cosine(dots: Array, lengths: Array) -> float:
    ok = lengths > 0
    return float((dots[ok] / lengths[ok]).mean()) if ok.any() else float("nan")


def _alpha(wanted: Array, given: Array, length: Array) -> float:
    # a deviation that is only rounding of the mean has no length
    ok = given > 1e-12 * np.maximum(length, 1e-300)
    return float(np.median(wanted[ok] / given[ok])) if ok.any() else float("nan")


EXACT = 1e-5
"""1 − R² below this is told as 1: more digits are rounding."""


def decimals(r2: float) -> int:
    """Decimals that tell an R² from 1: two digits of 1 − R² close to 1; else 2."""
    return max(1 - int(np.floor(np.log10(1 - r2))), 2) if 0.98 < r2 <= 1 - EXACT else 2


def describe(r2_train: float, r2_validation: float, r2_shuffled: float, cka: float, cosine: float) -> str:
    """What R², CKA and cosine say together.

    With R² < 0 a high cosine means a wrong amplitude: R² is positive at some α. A high CKA alone doesn't: it
    is the same for every rotation.

    Args:
        r2_shuffled: largest R² among refits on permuted pairs (NaN without any).
        cka: debiased CKA of mapped and target rows. The biased one is high for any data when n < d.
        cosine: of deviations from the target mean. The plain one is high wherever the mean is large.
    """
    if np.isnan(r2_validation):
        return "The target is the same for every validation prompt: there is nothing to predict."
    if r2_validation <= 0:
        return _behind(r2_validation, cka, cosine)
    if r2_validation <= r2_shuffled:
        return "The map does no better than one fitted on permuted pairs."
    if r2_train - r2_validation > 0.3:
        return (
            f"The map carries over in part: R² {r2_validation:.2f} on new prompts; {r2_train:.2f} on those "
            "that it was fitted on, so more prompts or more regularisation would help."
        )
    near = f"1 (within {EXACT:.0e})" if r2_validation > 1 - EXACT else ""
    return f"The map predicts new prompts: R² {near or f'{r2_validation:.{decimals(r2_validation)}f}'}."


def _behind(r2: float, cka: float, cosine: float) -> str:
    """What is said of a map that predicts no better than the target's mean."""
    if r2 < 0 and cosine >= HIGH:
        return (
            "Right direction, wrong amplitude: mapped and target activations point the same way, but the "
            "prediction is further off than the target's mean (R² < 0). Set α, or use a map with a scale."
        )
    if r2 < 0 and cka >= HIGH:
        return (
            "Same geometry, rotated: mapped and target activations lie to each other alike (CKA), but don't "
            "point the same way, and the prediction is further off than the target's mean (R² < 0). No α "
            "mends that; a map that turns may."
        )
    return "The map does no better than predicting the target's mean on new prompts (R² ≤ 0)."
