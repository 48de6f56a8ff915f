"""Ratios of distances in random subspaces: uniformly random ones, and those that keep a subspace's scales."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.geometry.layers import triangular_draw
from engine.geometry.problems import Problems

Array = NDArray[np.float64]
DRAWS = 200


def random_ratios(
    problems: Problems,
    ks: tuple[int, ...],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "b s"]:
    """ratio(Z) of uniformly random k-subspaces, nested in k within a draw.

    Only the part of a random frame inside the span of the data matters. For orthonormal coordinates Y of the
    data in r ≤ 2n dimensions that part is G T⁻¹ with G (r, k) Gaussian and T the Cholesky factor of
    GᵀG + RᵀR, R the triangular factor of a Gaussian (d − r, k): a QR decomposition of a Gaussian (d, k)
    whose lower rows are never drawn. Exact, at the cost of r instead of d.

    Args:
        advance: told (done, total) draws.
    """
    rng, n, d = np.random.default_rng(seed), problems.n, problems.d
    rows = np.concatenate([*problems.centred, problems.shift.mean(axis=0, keepdims=True)])
    inner = rows if d <= rows.shape[0] else np.linalg.qr(rows.T)[1].T
    width, most = inner.shape[1], max(ks)
    at_once = max(1, min(draws, 200_000 // (n * n), 4_000_000 // (width * most)))
    scale = float(np.abs(inner).max(initial=0.0)) or 1.0  # ratios have no unit: keeps float32 in range
    inner = (inner / scale).astype(np.float32)
    found = []
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        gaussian = rng.standard_normal((count, width, most), dtype=np.float32)
        gram = (gaussian.transpose(0, 2, 1) @ gaussian).astype(np.float64)
        if d > width:
            below = triangular_draw(rng, d - width, most, count)
            gram += below.transpose(0, 2, 1) @ below
        turn = np.linalg.inv(np.linalg.cholesky(gram)).transpose(0, 2, 1).astype(np.float32)
        found.append(_nested_ratios(inner @ gaussian @ turn, n, ks))
        if advance is not None:
            advance(begin + count, draws)
    return np.concatenate(found)


def _nested_ratios(coefficients: NDArray[np.float32], n: int, ks: tuple[int, ...]) -> Array:
    """ratio(S) of the first k columns for every k: (draws, 2n + 1, columns) → (draws, len(ks)).

    Rows: both languages about their means, and the mean shift.
    """
    sides = coefficients[:, :n], coefficients[:, n : 2 * n]
    shift = sides[1] - sides[0] + coefficients[:, 2 * n :]
    across2 = np.cumsum(shift * shift, axis=2, dtype=np.float64)[:, :, np.array(ks) - 1]
    within = np.zeros((len(coefficients), len(ks)))
    for side in sides:
        running = np.zeros((len(side), n, n), dtype=np.float32)
        root = np.empty_like(running)
        for at, (start, stop) in enumerate(zip((0, *ks[:-1]), ks, strict=True)):
            part = side[:, :, start:stop]
            own = np.vecdot(part, part)[:, :, None]
            one = np.ones_like(own)
            # ‖x‖² + ‖y‖² − 2⟨x, y⟩ of all pairs as one product
            running += np.concatenate([-2 * part, own, one], 2) @ np.concatenate(
                [part, one, own], 2
            ).transpose(0, 2, 1)
            np.sqrt(np.maximum(running, 0.0, out=root), out=root)
            within[:, at] += root.sum(axis=(1, 2), dtype=np.float64) - np.einsum("bii->b", root)
    mean = within / (2 * n * (n - 1))
    across = np.sqrt(across2).mean(axis=1)
    return np.divide(across, mean, out=np.full_like(across, np.nan), where=mean > 0)


def signed_ratios(
    problems: Problems, basis: Float[np.ndarray, "d k"], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " b"]:
    """ratio(Z) of subspaces that keep Z's share of every coordinate: Z with random signs of its coordinates.

    Where Z and the problems know of each other's coordinates no more than how large they are, Z is one of
    these draws, whatever the scales: the rank among them is exact.
    """
    rng, n, (d, k) = np.random.default_rng(seed), problems.n, basis.shape
    rows = np.concatenate([*problems.centred, problems.shift.mean(axis=0, keepdims=True)])
    rows = (rows / (float(np.abs(rows).max(initial=0.0)) or 1.0)).astype(np.float32)
    z = np.asarray(basis, dtype=np.float32)
    at_once = max(1, min(draws, 200_000 // (n * n), 4_000_000 // (d * k)))
    found = []
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        signs = (2 * rng.integers(0, 2, (count, d)) - 1).astype(np.float32)
        turned = (signs.T[:, :, None] * z[:, None, :]).reshape(d, count * k)
        inside = (rows @ turned).reshape(len(rows), count, k).transpose(1, 0, 2)
        found.append(_nested_ratios(inside, n, (k,))[:, 0])
    return np.concatenate(found)
