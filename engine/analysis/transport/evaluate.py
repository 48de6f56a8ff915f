"""How well a transport map carries activations over, with its null, and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from engine.analysis.cka import cka_from_grams, gram
from engine.analysis.transport.base import Array, TransportMap
from engine.errors import AnalysisError

HIGH = 0.5
"""From here on a debiased CKA or a cosine of deviations counts as high in the wording."""


@dataclass(frozen=True)
class TransportScores:
    """One map at one site.

    Attributes:
        r2_train, r2_validation: variance-weighted R² in the target's original space.
        r2_train_whitened, r2_validation_whitened: the same in the map's own whitened target space, where
            all directions count alike; NaN for maps that don't whiten.
        r2_shuffled: mean validation R² of maps refitted on permuted train pairs. r2_shuffled_max: largest.
        cka_raw, cka_mapped: biased linear CKA of source, or mapped source, with the target (validation).
        cka_raw_debiased, cka_mapped_debiased: the debiased estimator, the one to read when n < d.
        cosine: mean over validation prompts of cos(ŷ, y); close to 1 for anything around a large common mean.
        cosine_deviation: the same after subtracting the train target mean from both.
        alpha_vector: median ‖y‖/‖ŷ‖ over train prompts. alpha_deviation: median ‖y − μ_y‖/‖ŷ − μ_y‖.
        n_train, n_validation, n_shuffles: counts.
        words: what the combination means.
    """

    r2_train: float
    r2_validation: float
    r2_train_whitened: float
    r2_validation_whitened: float
    r2_shuffled: float
    r2_shuffled_max: float
    cka_raw: float
    cka_mapped: float
    cka_raw_debiased: float
    cka_mapped_debiased: float
    cosine: float
    cosine_deviation: float
    alpha_vector: float
    alpha_deviation: float
    n_train: int
    n_validation: int
    n_shuffles: int
    words: str

    def to_json(self) -> dict[str, Any]:
        """Field name to value; NaN stays NaN."""
        return asdict(self)


def mean_cosine(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]) -> float:
    """Mean cosine of paired rows; rows of zero length have no direction and are left out (NaN if all)."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    ok = lengths > 0
    return float(((a * b).sum(axis=1)[ok] / lengths[ok]).mean()) if ok.any() else float("nan")


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
    wanted, given = np.linalg.norm(y - shift, axis=1), np.linalg.norm(mapped - shift, axis=1)
    # a deviation that is only rounding of the mean has no length
    ok = given > 1e-12 * np.maximum(np.linalg.norm(mapped, axis=1), 1e-300)
    return float(np.median(wanted[ok] / given[ok])) if ok.any() else float("nan")


def shuffled_r2(
    estimator: TransportMap,
    train: tuple[Array, Array],
    validation: tuple[Array, Array],
    draws: int,
    seed: int,
) -> Float[np.ndarray, " draws"]:
    """Validation R² of the map refitted on randomly re-paired train rows, scored on true pairs."""
    rng = np.random.default_rng(seed)
    x, y = train
    return np.array(
        [clone(estimator).fit(x, y[rng.permutation(len(y))]).score(*validation) for _ in range(draws)]
    )


def _alikeness(x: Array, mapped: Array, y: Array) -> dict[str, float]:
    raw, carried, target = gram(x), gram(mapped), gram(y)
    return {
        "cka_raw": float(cka_from_grams(raw, target)),
        "cka_mapped": float(cka_from_grams(carried, target)),
        "cka_raw_debiased": float(cka_from_grams(raw, target, debiased=True)),
        "cka_mapped_debiased": float(cka_from_grams(carried, target, debiased=True)),
    }


def evaluate_transport(
    estimator: TransportMap,
    x_train: Float[np.ndarray, "n dx"],
    y_train: Float[np.ndarray, "n dy"],
    x_validation: Float[np.ndarray, "m dx"],
    y_validation: Float[np.ndarray, "m dy"],
    *,
    n_shuffles: int = 5,
    seed: int = 0,
) -> TransportScores:
    """Scores a map on train and validation prompts.

    A fitted estimator is used as it is (it must have been fitted on these train rows), an unfitted one
    is fitted on a copy. α comes from the train split only.

    Raises:
        AnalysisError: fewer than 4 validation prompts, which the debiased CKA needs.
    """
    if len(x_validation) < 4:
        raise AnalysisError(
            "Too few validation prompts to judge a map.",
            expected="at least 4",
            given=len(x_validation),
            next_step="Enlarge the validation split.",
        )
    x, y, xv, yv = (np.asarray(a, dtype=np.float64) for a in (x_train, y_train, x_validation, y_validation))
    try:
        check_is_fitted(estimator, "single_output_")
        fitted = estimator
    except NotFittedError:
        fitted = clone(estimator).fit(x, y)
    mapped_train, mapped, centre = fitted.predict(x), fitted.predict(xv), y.mean(axis=0)
    shuffled = shuffled_r2(estimator, (x, y), (xv, yv), n_shuffles, seed)
    whitened = getattr(fitted, "score_whitened", lambda *_: float("nan"))
    numbers: dict[str, float] = {
        "r2_train": fitted.score(x, y),
        "r2_validation": fitted.score(xv, yv),
        "r2_train_whitened": whitened(x, y),
        "r2_validation_whitened": whitened(xv, yv),
        "r2_shuffled": float(shuffled.mean()) if n_shuffles else float("nan"),
        "r2_shuffled_max": float(shuffled.max()) if n_shuffles else float("nan"),
        **_alikeness(xv, mapped, yv),
        "cosine": mean_cosine(mapped, yv),
        "cosine_deviation": mean_cosine(mapped - centre, yv - centre),
        "alpha_vector": alpha_auto(y, mapped_train),
        "alpha_deviation": alpha_auto(y, mapped_train, centre),
    }
    words = describe(
        numbers["r2_train"],
        numbers["r2_validation"],
        numbers["r2_shuffled_max"],
        numbers["cka_mapped_debiased"],
        numbers["cosine_deviation"],
    )
    return TransportScores(
        **numbers, n_train=len(x), n_validation=len(xv), n_shuffles=n_shuffles, words=words
    )


def describe(r2_train: float, r2_validation: float, r2_shuffled: float, cka: float, cosine: float) -> str:
    """What R², CKA and cosine say together.

    Args:
        r2_shuffled: largest R² among refits on permuted pairs (NaN without any).
        cka: debiased CKA of mapped and target rows. The biased one is high for any data when n < d.
        cosine: of deviations from the target mean. The plain one is high wherever the mean is large.
    """
    if np.isnan(r2_validation):
        return "The target is the same for every validation prompt: there is nothing to predict."
    alike = max((v for v in (cka, cosine) if np.isfinite(v)), default=0.0) >= HIGH
    if r2_validation < 0 and alike:
        return (
            "Right direction, wrong amplitude: mapped and target activations vary alike, but the prediction "
            "is further off than the target's mean (R² < 0). Set α, or use a map that fits a scale."
        )
    if r2_validation <= 0:
        return "The map does no better than predicting the target's mean on new prompts (R² ≤ 0)."
    if r2_validation <= r2_shuffled:
        return "The map does no better than one fitted on permuted pairs."
    if r2_train - r2_validation > 0.3:
        return (
            f"The map carries over in part: R² {r2_validation:.2f} on new prompts, against {r2_train:.2f} on "
            "the prompts that it was fitted on. More prompts or more regularisation would help."
        )
    return f"The map predicts new prompts: R² {r2_validation:.2f}."
