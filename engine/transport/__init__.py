"""Transport maps: estimators that carry one model's activations into another's space.

scikit-learn estimators, `fit(X, Y)` on paired rows (prompts), `predict(X)`, `score(X, Y)` (variance-weighted
R² in the target's space). Covariances divide by n − 1, everything is float64.
"""

from __future__ import annotations

from engine.transport.base import TransportMap, r2
from engine.transport.clustered import ClusteredTransport
from engine.transport.evaluate import (
    EXACT,
    TransportScores,
    alpha_auto,
    decimals,
    describe,
    evaluate_pairs,
    evaluate_path,
    evaluate_transport,
    mean_cosine,
    raw_alikeness,
    shuffled_r2,
)
from engine.transport.logit import LogitSubspaceRidge, compress_unembedding, unembedding_basis
from engine.transport.paths import MappedLengths, PathErrors
from engine.transport.procrustes import PCAProcrustes, ScaledProcrustes
from engine.transport.ridge import DEFAULT_ALPHAS, RidgeTransport, penalty_path
from engine.transport.sides import Paired, Side, Span
from engine.transport.simple import Identity, MeanShift, MomentMatching
from engine.transport.state import TRANSPORTS, export_map, import_map, register_transport

__all__ = [
    "DEFAULT_ALPHAS",
    "EXACT",
    "TRANSPORTS",
    "ClusteredTransport",
    "Identity",
    "LogitSubspaceRidge",
    "MappedLengths",
    "MeanShift",
    "MomentMatching",
    "PCAProcrustes",
    "Paired",
    "PathErrors",
    "RidgeTransport",
    "ScaledProcrustes",
    "Side",
    "Span",
    "TransportMap",
    "TransportScores",
    "alpha_auto",
    "compress_unembedding",
    "decimals",
    "describe",
    "evaluate_pairs",
    "evaluate_path",
    "evaluate_transport",
    "export_map",
    "import_map",
    "mean_cosine",
    "penalty_path",
    "r2",
    "raw_alikeness",
    "register_transport",
    "shuffled_r2",
    "unembedding_basis",
]
