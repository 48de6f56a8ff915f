"""No test of the product is one that can't pass: the smallest p of each, where it has fewest units or draws.

Rank tests are found in the source by their division by 1 + draws. Each has a line here, with data in which
its effect is as large as can be, at the least size that is judged, as the product adjusts it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from app.ard import words as ard_words
from app.bridge import tables as bridge_tables
from app.geometry import tables as geometry_tables
from app.geometry.words import FEWEST_BLOCKS
from app.heads.words import PREDICTS
from engine.ard import holdout, spectrum
from engine.ard.spec import RANDOM_DRAWS
from engine.bridge import numbers as bridge
from engine.geometry import separation
from engine.geometry.layers import layer_structure
from engine.heads.numbers import FEWEST_HEADS, rank_correlation
from engine.similarity import cka
from engine.stats.parts import FEWEST_UNITS, by_part, larger
from engine.stats.permuted import smallest_p
from engine.z_patching.numbers import LEAST, paired_p, sign_flip_p

ROOT = Path(__file__).resolve().parents[2]
LEVEL = 0.05
BLOCKS = 128
"""More blocks than any model that is compared has."""


def rank_tests() -> Iterator[str]:
    """ "engine/x.py: f" of every function that divides a count by 1 + a number of draws."""
    for path in sorted(ROOT.glob("engine/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any(map(_ranks, ast.walk(node))):
                yield f"{path.relative_to(ROOT / 'engine')}: {node.name}"


def _ranks(node: ast.AST) -> bool:
    if not (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.BinOp)
    ):
        return False
    added = {ast.unparse(side) for side in (node.right.left, node.right.right)}
    counted = any(word in ast.unparse(node.left) for word in (".sum(", "above", "below"))
    return isinstance(node.right.op, ast.Add) and bool(added & {"1", "extra"}) and counted


def one_block_of_few_problems() -> float:
    return holdout.pairing_p(
        np.eye(holdout.LEAST), np.zeros(holdout.LEAST, int), holdout.DRAWS, np.random.default_rng(0)
    )


def start_from_z() -> float:
    return spectrum.start_p(9, [0.0] * RANDOM_DRAWS)


def same_coordinates(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(n, k))
    return x, x


def bridge_at_one_block() -> float:
    return bridge.fit_bridge(*same_coordinates(9, 3), draws=bridge_tables.DRAWS).p


def bridge_at_all_blocks() -> float:
    places = [same_coordinates(9, 3)] * BLOCKS
    return float(bridge.profile(places, draws=bridge_tables.PROFILE_DRAWS).p[0])


def phases_of_few_blocks() -> float:
    at = np.arange(FEWEST_BLOCKS)
    return layer_structure(1.0 / (1 + np.abs(at[:, None] - at)), 64, 4).p_gap


def z_beside_random_subspaces() -> float:
    return float(separation.rank_p(np.zeros(1), np.ones((geometry_tables.DRAWS, 1)))[0])


def pairs_of_few_problems() -> float:
    rng, n = np.random.default_rng(0), geometry_tables.LEAST
    one = rng.normal(size=(n, 12))
    problems = separation.Problems.of(one, one + 1e-3 * rng.normal(size=(n, 12)))
    random = np.ones((separation.DRAWS, 1))
    return float(separation.separation(problems, {4: np.eye(12)[:, :4]}, random, n_boot=2).p_pairing[0])


def z_beside_its_sign_flips() -> float:
    rng, n = np.random.default_rng(0), geometry_tables.LEAST
    problems = separation.Problems.of(rng.normal(size=(n, 12)), rng.normal(size=(n, 12)))
    basis = np.linalg.qr(rng.normal(size=(12, 4)))[0]
    return float(separation.scale_p(problems, {4: basis}, np.array([-1.0]), np.array([True]))[0])


def few_heads() -> float:
    order = np.arange(FEWEST_HEADS)
    p = rank_correlation(order, order).p
    assert p is not None
    return p * LEVEL / PREDICTS


def cka_of_few_prompts() -> float:
    x = np.random.default_rng(0).normal(size=(6, 4))
    return float(cka.permutation_null([cka.gram(x)] * 4, [cka.gram(x)] * 4).p_curve)


def category_of_few_units() -> float:
    values = np.concatenate([np.full(FEWEST_UNITS, 9.0), np.zeros(FEWEST_UNITS)])
    values += 1e-3 * np.arange(values.size)
    found = by_part(values, ["much"] * FEWEST_UNITS + ["little"] * FEWEST_UNITS)
    assert [part.key for part in larger(found)] == ["much"]
    return found[0].p


TESTS: dict[str, Callable[[], float]] = {
    "ard/holdout.py: pairing_p": one_block_of_few_problems,
    "ard/spectrum.py: start_p": start_from_z,
    "bridge/numbers.py: fit_bridge": bridge_at_one_block,
    "bridge/numbers.py: profile": bridge_at_all_blocks,
    "geometry/layers.py: layer_structure": phases_of_few_blocks,
    "geometry/separation.py: rank_p": z_beside_random_subspaces,
    "geometry/separation.py: _p_pairing": pairs_of_few_problems,
    "geometry/separation.py: scale_p": z_beside_its_sign_flips,
    "heads/numbers.py: rank_correlation": few_heads,
    "similarity/null.py: _summarise": cka_of_few_prompts,
    "stats/parts.py: _largest_t": category_of_few_units,
}


def test_every_rank_test_has_its_line() -> None:
    assert sorted(set(rank_tests())) == sorted(TESTS)


@pytest.mark.parametrize("name", TESTS)
def test_the_smallest_p_is_below_the_level(name: str) -> None:
    assert TESTS[name]() < LEVEL


def test_under_holm_over_blocks_it_passes_or_is_too_few_to_tell() -> None:
    """Lengthscales: held-out pairings are drawn often enough; few problems, or few starts, are named."""
    assert BLOCKS * smallest_p(holdout.DRAWS, 20) < LEVEL
    held = spectrum.with_least_p({"p": 1 / 24, "p_within": None, "n": 4}, 1)
    assert spectrum.judged(held) == 1 / 24
    assert spectrum.judged(held, tests=2) is None
    rows = [{"layer": i, "survivors": 5, "p_adjusted": 2 / 21, "starts": 20} for i in range(2)]
    assert "20 random starts are too few" in ard_words.overlap_title("base", 4, rows, "svd")


def test_exact_tests_over_problems_pass_with_the_fewest() -> None:
    """Z-patching: two outcomes under Holm's method, at the fewest problems that get a verdict."""
    changed, same = np.ones(LEAST, dtype=bool), np.zeros(LEAST, dtype=bool)
    assert 2 * paired_p(changed, same) < LEVEL
    assert 2 * sign_flip_p(changed, np.zeros((5, LEAST), dtype=bool)) < LEVEL


@pytest.mark.parametrize(
    ("draws", "groups", "expected"),
    [(99, None, 1 / 100), (99, [0, 0, 1, 1, 2], 1 / 4), (99, [0, 1, 2, 3, 4], 1.0), (9999, None, 1 / 120)],
)
def test_smallest_p_counts_draws_and_orders(draws: int, groups: list[int] | None, expected: float) -> None:
    assert smallest_p(draws, 5, None if groups is None else np.array(groups)) == pytest.approx(expected)
