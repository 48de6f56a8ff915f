"""Sentences about bridges between two languages: each has its rule written down."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from app.frame.words import blocks, number
from engine.bridge.numbers import LEVEL, Bridge, Profile


def signed(value: float) -> str:
    """An R² for a sentence: two digits, a real minus sign."""
    return number(value).replace("-", "−") if abs(value) >= 0.005 else "0.00"


ACROSS = "; pairs of all categories were exchanged, against which a shared category is enough"
"""What is said with a finding where the null doesn't keep the problems' categories, and there are several."""


def scores_title(where: str, found: Bridge, across: bool = False) -> str:
    """The engine's conclusion, from left-out problems only; see `engine.bridge.numbers.describe`.

    Args:
        across: whether pairs were exchanged across the problems' categories.
    """
    claims = not found.underdetermined and not found.untestable and found.p < LEVEL
    return f"{where}: {found.words.rstrip('.')}" + (ACROSS if across and claims else "")


def null_title(found: Bridge, within: bool) -> str:
    """Where the left-out R² lies among those of permuted pairs. Rule: above when p < 0.05."""
    among = "pairs permuted within categories" if within else "permuted pairs"
    if found.untestable:
        return (
            f"The left-out R² is {signed(found.r2_loo)}; problems of one category are too few to permute "
            f"(p = {found.least_p:.2g} at the least)"
        )
    reach = (
        f"{signed(float(np.quantile(found.null, 0.025)))} to {signed(float(np.quantile(found.null, 0.975)))}"
    )
    side = "above" if found.p < LEVEL else "not above"
    return (
        f"The left-out R² of {signed(found.r2_loo)} is {side} {among}, which reach {reach} "
        f"(p = {found.p:.2g})"
    )


def path_title(found: Bridge) -> str:
    """The λ in use, and whether the path was long enough: a best value at an end may lie beyond it."""
    best = int(np.argmax(found.r2_path))
    text = f"λ = {found.alpha:.3g} leaves the smallest left-out error: R² {signed(found.r2_loo)}"
    if best in (0, len(found.r2_path) - 1):
        text += "; it is at the end of the path, so that a better one may lie beyond"
    return text


def spectrum_title(found: Bridge) -> str:
    """How far W is from a rotation, beside W = 0 and a random W.

    Rule: only figures; "rotation-like" is said of the left-out Procrustes R², not of this error, which is
    small for every W whose entries are small and k large.
    """
    error = found.orthogonality
    return (
        f"W's singular values lie between {number(float(found.spectrum.min()))} and "
        f"{number(float(found.spectrum.max()))}; orthogonality error {number(error.value, 3)}, where "
        f"W = 0 has {number(error.zero, 3)} and a random W as large {number(error.random, 3)}"
    )


def map_title(w: np.ndarray) -> str:
    """Share of W's squared entries on its diagonal, beside that of a matrix without any order."""
    total = float((w**2).sum())
    share = float((np.diag(w) ** 2).sum()) / total if total else float("nan")
    return (
        f"{100 * share:.0f} % of W's squared entries lie on its diagonal, where a coordinate leads to "
        f"itself; {100 / len(w):.0f} % in a W without order"
    )


def profile_title(where: str, layers: Sequence[int], found: Profile, across: bool = False) -> str:
    """At which blocks the left-out R² is above permuted pairs.

    Rule: p < 0.05 against the largest R² over all blocks in each permutation, which holds for all blocks
    together. Blocks are not ranked: R² has no interval here.

    Args:
        across: whether pairs were exchanged across the problems' categories.
    """
    if found.least_p >= LEVEL:
        return f"{where}: too few problems of one category to tell at any block"
    above = [layer for layer, p in zip(layers, found.p, strict=True) if p < LEVEL]
    if not above:
        return f"{where}: at no block is the left-out R² shown to be above permuted pairs"
    values = found.r2_loo[found.p < LEVEL]
    spread = f"R² {signed(float(values.min()))}"
    if len(above) > 1:
        spread += f" to {signed(float(values.max()))}"
    which = "every block" if len(above) == len(layers) > 1 else blocks(above)
    end = ACROSS if across else ""
    return f"{where}: the bridge holds up on left-out problems at {which} ({spread}){end}"


def underdetermined(found: Bridge) -> str:
    """The remark for as many coordinates as problems, or more."""
    return (
        f"N = {found.n} problems and k = {found.k} coordinates: with N ≤ k some W maps any coordinates "
        "onto any others without error, so the R² on fitted problems says nothing. Read the left-out R²."
    )
