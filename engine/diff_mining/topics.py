"""Topics among what a model says more: tokens that are raised behind the same contexts.

Non-negative matrix factorisation (Lee & Seung 1999; scikit-learn's) of contexts × tokens. How far a topic is
the sample's own is shown by finding it again in resamples of whole units.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

RESAMPLES = 20
FEWEST = 2
"""Tokens for each topic below which there are fewer topics."""


@dataclass(frozen=True)
class Topics:
    """Topics, the largest first.

    Attributes:
        weights: (topics, tokens), rows of sum 1: what share of a topic a token is. share: of all that is
            raised, the part that each topic holds. stability: the mean cosine with the topic that is most
            like it in each resample, one to one.
    """

    weights: Float[np.ndarray, "k t"]
    share: Float[np.ndarray, " k"]
    stability: Float[np.ndarray, " k"]


def topics(
    raised: Float[np.ndarray, "n t"], unit: Int[np.ndarray, " n"], most: int, seed: int
) -> Topics | None:
    """Topics of what is raised, ≥ 0, in n contexts of t tokens; None where there is too little.

    Each token counts on its own scale: else the topics are the tokens that are said most.
    """
    count = min(most, raised.shape[1] // FEWEST)
    if count < 1 or not (raised.sum(axis=0) > 0).all() or len(np.unique(unit)) < 2:
        return None
    raised = raised / np.sqrt(np.square(raised).mean(axis=0))
    held, weights = _fit(raised, count, seed)
    share = held.sum(axis=0) * weights.sum(axis=1)
    order = np.argsort(-share)
    weights, share = weights[order], share[order] / share.sum()
    rng = np.random.default_rng([seed, 5])
    whose = [np.flatnonzero(unit == one) for one in np.unique(unit)]
    again = np.zeros((RESAMPLES, count))
    for number in range(RESAMPLES):
        drawn = np.concatenate([whose[at] for at in rng.integers(0, len(whose), len(whose))])
        found = _fit(raised[drawn], count, seed)[1]
        alike = _unit(weights) @ _unit(found).T
        rows, columns = linear_sum_assignment(-alike)
        again[number, rows] = alike[rows, columns]
    sums = weights.sum(axis=1, keepdims=True)
    return Topics(weights / np.where(sums > 0, sums, 1.0), share, again.mean(axis=0))


def _fit(raised: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    model = NMF(count, init="nndsvda", max_iter=500, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a resample's last digits don't matter
        held = model.fit_transform(raised / raised.max())
    return held, model.components_


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)
