"""Debiased CKA without each unit in turn, in O(n²): `engine.similarity.forms` at one zero count.

With unit g (m prompts) left out, N = n − m and all other counts are 1. As rows of A sum to 0, Σ_{j∉g} A_ij is
−α_i with α_i = Σ_{j∈g} A_ij; η = ε = N − 2. With β of B likewise, and T and U the sums of A and B over g's
block,

    H_g = Σ A∘B − 2 Σ_{i∈g,j} A_ij B_ij + Σ_{i,j∈g} A_ij B_ij
          − 2 [Σ_{i∉g} α_i β_i/(N − 2) − T U/((N − 2)(2N − 2))].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine.similarity.forms import Array, Side, Units, prepare


def left_out_cka(a: NDArray[np.floating], b: NDArray[np.floating], units: Units) -> Array:
    """(G,) debiased CKA without each unit; NaN where a side is constant, or a self term isn't positive."""
    n = a.shape[0]
    buffers = np.empty((2, n, n), dtype=np.float32)
    x, y = prepare(a, units, buffers[0]), prepare(b, units, buffers[1])
    if not (x.alive and y.alive):
        return np.full(units.sizes.size, np.nan)
    own, other, both = (_numerators(p, q, units) for p, q in ((x, x), (y, y), (x, y)))
    good = (own > 0) & (other > 0)
    return np.where(good, both / np.sqrt(np.where(good, own * other, 1.0)), np.nan)


def _numerators(x: Side, y: Side, units: Units) -> Array:
    """(G,) H without each unit."""
    rows = np.einsum("ij,ij->i", x.a, y.a, dtype=np.float64)
    rest = x.a.shape[0] - units.sizes
    lost = 2 * units.sum(rows) - _inside(x, y, units)
    products = np.einsum("ig,ig->g", x.columns, y.columns, dtype=np.float64)
    outside = products - units.sum(x.own * y.own)
    return np.asarray(
        rows.sum() - lost - 2 * (outside / (rest - 2) - x.block * y.block / ((rest - 2) * (2 * rest - 2)))
    )


def _inside(x: Side, y: Side, units: Units) -> Array:
    """(G,) sum of A∘B over each unit's own block."""
    if units.single:
        return np.zeros(units.sizes.size)
    ends = np.append(units.starts[1:], units.order.size)
    blocks = zip(units.starts.tolist(), ends.tolist(), strict=True)
    return np.array([float((x.a[i:j, i:j] * y.a[i:j, i:j]).sum(dtype=np.float64)) for i, j in blocks])
