"""Conclusions about subspaces: separation, language energy, the order of blocks, residual updates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.clusters import TEMPLATES, many
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.real import PAIRED, repaired
from benchmarks.calibration.scales import EVEN, Coordinates, uneven
from benchmarks.calibration.scales import basis as kept
from engine.geometry.language_energy import language_energy
from engine.geometry.layers import layer_structure, resemblance_p, weight_alignment
from engine.geometry.separation import Problems, random_ratios, separation
from engine.geometry.z import grassmann_matrix
from engine.residual_updates.numbers import ResidualUpdates, residual_updates, update_norms
from engine.stats.uncertainty import holm

Array = NDArray[np.float64]
Rng = np.random.Generator

TAIL = 0.025
"""Level of either side where a sentence says "more" or "less"."""


def basis(rng: Rng, d: int, k: int) -> Array:
    """A uniformly random k-subspace, (d, k)."""
    return np.asarray(np.linalg.qr(rng.normal(size=(d, k)))[0])


class InZ(NamedTuple):
    """Problems in two languages, and a subspace."""

    problems: Problems
    z: Array


def texts(strength: float = 0.0, coordinates: Coordinates = EVEN, clusters: int = 0) -> Make:
    """Content and noise in every direction; content is stronger inside Z.

    `clusters`: so many templates, whose problems have most of their content in common.
    """
    n, d, k = 14, 32, 6

    def make(rng: Rng) -> InZ:
        scale = coordinates.scale(rng, d)
        z = kept(rng, scale, k, coordinates)

        def drawn(rows: int) -> Array:
            return coordinates.draw(rng, rows, d) * scale

        content = drawn(n) + strength * rng.normal(size=(n, k)) @ z.T
        if clusters:
            content = 2 * drawn(clusters)[rng.integers(0, clusters, n)] + 0.5 * content
        language = drawn(1)
        return InZ(Problems.of(content + drawn(n), content + language + drawn(n)), z)

    return make


def real_texts(rng: Rng) -> InZ:
    """A real model's prompts beside others of their template, as if one problem in two languages."""
    one, two = repaired(rng)
    at = rng.integers(len(one))
    scale = np.concatenate([one[at], two[at]]).std(axis=0)
    return InZ(Problems.of(one[at], two[at] + scale * rng.normal(size=len(scale))), kept(rng, scale, 6))


def said_to_separate(given: InZ) -> bool:
    k = given.z.shape[1]
    random = random_ratios(given.problems, (k,))
    return bool(separation(given.problems, {k: given.z}, random, pairings=1, n_boot=2).separates[0])


def shifts(
    common: float, own: float, inside: float = 0.0, coordinates: Coordinates = EVEN, templates: int = 0
) -> Make:
    """Language shifts with a part all problems share, a part of their own, and one inside Z.

    `templates`: so many, and the problems of one have a further part in common.
    """

    def make(rng: Rng) -> InZ:
        scale = coordinates.scale(rng, 24)
        z, one = kept(rng, scale, 3, coordinates), rng.normal(size=(8, 24)) * scale
        moved = common * coordinates.draw(rng, 24) + own * coordinates.draw(rng, 8, 24)
        if templates:
            moved = moved + 2 * coordinates.draw(rng, templates, 24)[np.arange(8) % templates]
        return InZ(Problems.of(one, one + moved * scale + inside * rng.normal(size=3) @ z.T), z)

    return make


def energy_is_told(given: InZ) -> bool:
    found = language_energy(given.problems, {given.z.shape[1]: given.z}, n_boot=2)
    return bool(found.more[0] < TAIL or found.less[0] < TAIL)


def unrelated_blocks(coordinates: Coordinates = EVEN) -> Make:
    """Eight blocks that read the same coordinates as much, and nothing else alike."""

    def make(rng: Rng) -> Array:
        scale = coordinates.scale(rng, 40)
        return np.stack([kept(rng, scale, 3, coordinates) for _ in range(8)])

    return make


def two_phases(rng: Rng) -> Array:
    halves = [basis(rng, 40, 3) for _ in range(2)]
    noise = rng.normal(size=(8, 40, 3))
    return np.stack([np.linalg.qr(halves[i // 4] + 0.1 * noise[i])[0] for i in range(8)])


def neighbours_alike(bases: Array) -> bool:
    found = layer_structure(grassmann_matrix(bases), bases.shape[1], bases.shape[2], draws=199)
    return found.p_gap < 0.05 and found.gap > 0


def resembles_reference(bases: Array) -> bool:
    values = grassmann_matrix(bases)[-1, :-1]
    shares = np.vecdot(bases, bases).T
    p = resemblance_p(shares[:, -1], shares[:, :-1], values)
    return bool((holm(np.maximum(*p)) < 0.05).any())


def gates(inside: float, coordinates: Coordinates | None = None) -> Make:
    """A weight matrix for each of 6 blocks, whose rows lie in Z as much as by chance, and a share more.

    `coordinates`: of what the rows read, in all blocks alike; Z knows nothing of them.
    """

    def make(rng: Rng) -> list[tuple[Array, Array]]:
        found, shared = [], None if coordinates is None else coordinates.scale(rng, 32)
        for _ in range(6):
            z = basis(rng, 32, 4)
            scale = rng.exponential(size=32) if shared is None else shared  # unlike directions, as in weights
            drawn = rng.normal(size=(48, 32)) if coordinates is None else coordinates.draw(rng, 48, 32)
            found.append((drawn * scale + inside * rng.normal(size=(48, 4)) @ z.T, z))
        return found

    return make


def gates_are_told(given: list[tuple[Array, Array]]) -> bool:
    energy = np.array([((m @ z) ** 2).sum() for m, z in given])
    total = np.array([(m**2).sum() for m, _ in given])
    square = np.array([((m.T @ m) ** 2).sum() for m, _ in given])
    d, k = given[0][1].shape
    found = weight_alignment(energy, total, square, d, k)
    return bool((holm(found.p) < TAIL).any() or (holm(found.p_low) < TAIL).any())


class Updates(NamedTuple):
    """Updates of every block (n, d), a subspace, and the template of each prompt where there are several."""

    deltas: list[Array]
    z: Array
    templates: NDArray[np.intp] | None = None


def isotropic(
    d: int, k: int, stretch: float = 1.0, coordinates: Coordinates = EVEN, templates: int = 0
) -> Make:
    """Updates without any relation to Z; block 2's part in Z is stretched.

    `templates`: so many, with three prompts each, which mostly move alike.
    """

    def make(rng: Rng) -> Updates:
        scale = coordinates.scale(rng, d)
        z = kept(rng, scale, k, coordinates)
        of = np.repeat(np.arange(templates), 3) if templates else None
        deltas = [coordinates.draw(rng, 30 if of is None else len(of), d) * scale for _ in range(6)]
        if of is not None:
            deltas = [0.3 * one + (coordinates.draw(rng, templates, d) * scale)[of] for one in deltas]
        deltas[2] = deltas[2] + (stretch - 1) * (deltas[2] @ z) @ z.T
        return Updates(deltas, z, of)

    return make


def alike(rng: Rng) -> Updates:
    """Prompts that all move alike, which makes a bootstrap over prompts certain of any ratio."""
    deltas = [rng.normal(size=32) + 0.05 * rng.normal(size=(30, 32)) for _ in range(6)]
    return Updates(deltas, basis(rng, 32, 4))


def _updates(given: Updates) -> ResidualUpdates:
    k = given.z.shape[1]
    norms = update_norms(given.deltas, given.z, [k])
    return residual_updates(norms, k, groups=many(given.templates), n_boot=200)


def z_dominated(given: Updates) -> bool:
    return _updates(given).verdict.startswith("Z-dominated")


def off_chance(given: Updates) -> bool:
    return "nowhere shown to be off chance" not in _updates(given).verdict


ENTRIES = (
    Entry(
        "Separation",
        "Z separates",
        said_to_separate,
        {
            "content is as strong outside Z": texts(),
            "problems of four templates": texts(clusters=4),
            PAIRED: real_texts,
            **uneven(lambda coordinates: texts(0.0, coordinates)),
        },
        texts(3.0),
    ),
    Entry(
        "Language energy",
        "Z holds more (or less) of the shift than random subspaces",
        energy_is_told,
        {
            "every problem shifts its own way": shifts(0.0, 1.0),
            "all problems shift one way": shifts(5.0, 0.2),
            "problems of two templates": shifts(0.0, 0.3, templates=2),
            PAIRED: real_texts,
            **uneven(lambda coordinates: shifts(1.0, 1.0, 0.0, coordinates)),
        },
        shifts(1.0, 0.2, 3.0),
    ),
    Entry(
        "Phases",
        "neighbouring blocks read more alike subspaces than distant ones",
        neighbours_alike,
        {"unrelated blocks": unrelated_blocks(), **uneven(unrelated_blocks)},
        two_phases,
    ),
    Entry(
        "Convergence",
        "Z of some blocks resembles the reference block's beyond chance",
        resembles_reference,
        {"unrelated blocks": unrelated_blocks(), **uneven(unrelated_blocks)},
        two_phases,
    ),
    Entry(
        "Gates",
        "gates read what the same block's keys read more (or less) than uniformly random subspaces",
        gates_are_told,
        {"unrelated weights": gates(0.0), **uneven(lambda coordinates: gates(0.0, coordinates))},
        gates(1.0),
    ),
    Entry(
        "R(ℓ) against 1",
        "Z-dominated (R > 1)",
        z_dominated,
        {
            "R is 1 at every block": isotropic(16, 8),
            f"R is 1 at every block, {TEMPLATES}": isotropic(16, 8, templates=24),
        },
        isotropic(32, 4, 6.0),
    ),
    Entry(
        "R(ℓ) against chance",
        "above (or below) chance",
        off_chance,
        {
            "updates unrelated to Z": isotropic(32, 4),
            "prompts that all move alike": alike,
            TEMPLATES: isotropic(32, 4, templates=24),
            **uneven(lambda coordinates: isotropic(32, 4, 1.0, coordinates)),
        },
        isotropic(32, 4, 2.5),
    ),
)
