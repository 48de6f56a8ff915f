"""One map per cluster of source activations."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils.validation import check_is_fitted, validate_data

from engine.errors import AnalysisError
from engine.transport.base import TransportMap
from engine.transport.ridge import RidgeTransport
from engine.transport.sides import Array, Side


class ClusteredTransport(TransportMap):
    """k-means on the source, one map per cluster, the global map for clusters that are too small.

    Args:
        base_map: unfitted map, cloned for each cluster; None is `RidgeTransport()`.
        n_clusters: at most; never more than distinct source rows.
        min_size: clusters with fewer train prompts use the global map.
        seed: of k-means.

    Attributes:
        centres_: (c, d_x). sizes_: (c,) train prompts per cluster.
        global_: map fitted on all prompts. maps_: one per cluster, None where it falls back.
        fallback_: (c,) bool. fallback_rate_: share of train prompts mapped by the global map.
    """

    def __init__(
        self, base_map: TransportMap | None = None, n_clusters: int = 4, min_size: int = 20, seed: int = 0
    ) -> None:
        self.base_map = base_map
        self.n_clusters = n_clusters
        self.min_size = min_size
        self.seed = seed

    @property
    def uses_pairs(self) -> bool:  # type: ignore[override]
        """Whether the base map does."""
        return self.base_map is None or self.base_map.uses_pairs

    def _fit(self, x: Side, y: Side, groups: NDArray[Any] | None) -> None:
        if self.n_clusters < 1 or self.min_size < 2:
            raise AnalysisError(
                "Clusters need a count and a size.",
                expected="n_clusters ≥ 1, min_size ≥ 2",
                given=f"n_clusters = {self.n_clusters}, min_size = {self.min_size}",
            )
        rows = x.rows
        count = min(self.n_clusters, len(np.unique(rows, axis=0)))
        self.centres_ = KMeans(count, n_init=4, random_state=self.seed).fit(rows).cluster_centers_
        labels = self._labels(rows)
        self.sizes_ = np.bincount(labels, minlength=count)
        self.fallback_ = self.sizes_ < self.min_size
        self.fallback_rate_ = float(self.sizes_[self.fallback_].sum() / len(rows))
        base = RidgeTransport() if self.base_map is None else self.base_map
        self.global_ = clone(base).fit_sides(x, y, groups)

        def own(kept: NDArray[np.bool_]) -> TransportMap:
            part = None if groups is None else np.asarray(groups)[kept]
            return clone(base).fit_sides(Side(rows[kept]), Side(y.rows[kept]), part)

        self.maps_ = tuple(None if small else own(labels == c) for c, small in enumerate(self.fallback_))

    def remapped(self, change: Callable[[TransportMap], TransportMap]) -> ClusteredTransport:
        """The same clusters with every map replaced by `change` of it: another rank, another λ."""
        check_is_fitted(self, "centres_")
        other = copy(self)
        other.global_ = change(self.global_)
        other.maps_ = tuple(None if own is None else change(own) for own in self.maps_)
        return other

    def clusters(self, X: Any) -> Int[np.ndarray, " n"]:
        """Cluster of each row."""
        check_is_fitted(self, "centres_")
        return self._labels(validate_data(self, X, dtype=np.float64, reset=False))

    def fallback_rate(self, X: Any) -> float:
        """Share of these rows that the global map carries."""
        return float(self.fallback_[self.clusters(X)].mean())

    def _labels(self, x: Array) -> Int[np.ndarray, " n"]:
        return np.asarray(pairwise_distances_argmin(x, self.centres_))

    def _predict(self, x: Array) -> Array:
        labels = self._labels(x)
        mapped = np.array(self.global_.predict(x))
        for c in np.unique(labels):
            own = self.maps_[c]
            if own is not None:
                mapped[labels == c] = own.predict(x[labels == c])
        return mapped
