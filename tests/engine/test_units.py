"""What intervals draw: whole categories where there are enough to stand for others, else pairs or prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from engine.behaviour.report import WHOLE, differences
from engine.lab.experiment import resampling_groups
from engine.lab.units import resampling_units, unit_name

Array = np.ndarray
TEMPLATES, EACH = 20, 6


def prompts(templates: int = TEMPLATES, each: int = EACH) -> pl.DataFrame:
    names = [f"t{i}" for i in range(templates) for _ in range(each)]
    return pl.DataFrame({"id": [f"p{i}" for i in range(len(names))], "category": names})


def test_categories_are_drawn_where_there_are_enough_of_them() -> None:
    table = prompts()
    assert unit_name(table) == "category cluster"
    np.testing.assert_array_equal(resampling_units(table), np.repeat(np.arange(TEMPLATES), EACH))
    few = prompts(templates=4)
    assert unit_name(few) == "prompt"
    np.testing.assert_array_equal(resampling_units(few), np.arange(24))
    pairs = few.with_columns(pair_id=pl.Series([f"{i // 2}" for i in range(24)]))
    assert unit_name(pairs) == "pair"
    np.testing.assert_array_equal(resampling_units(pairs), resampling_groups(pairs))


def test_pairs_stay_together_and_prompts_without_a_category_alone() -> None:
    table = prompts(templates=TEMPLATES, each=2).with_columns(
        pair_id=pl.Series([f"{i // 2}" for i in range(40)])
    )
    moved = table.with_columns(
        category=pl.Series([None, None, *table["category"].to_list()[2:39], "t3"], dtype=pl.String)
    )
    assert unit_name(moved) == "pair"  # nineteen are left
    added = pl.concat([moved, pl.DataFrame({"id": ["x"], "category": ["new"], "pair_id": [None]})])
    units = resampling_units(added)
    assert unit_name(added) == "category cluster"
    np.testing.assert_array_equal(units, np.append(np.repeat(np.arange(TEMPLATES), 2), TEMPLATES))


def margins(rng: np.random.Generator, apart: float) -> tuple[Array, Array]:
    base = rng.normal(size=TEMPLATES * EACH)
    own = np.repeat(rng.normal(size=TEMPLATES), EACH) + 0.5 * rng.normal(size=base.size)
    return base, base + own + apart


def rates(rng: np.random.Generator, apart: float) -> tuple[Array, Array]:
    """Templates whose rate one model raises and templates whose rate it lowers."""
    base = rng.random(TEMPLATES)
    other = (
        np.clip(base + rng.choice((-0.4, 0.4), TEMPLATES) + apart, 0, 1) if apart else rng.random(TEMPLATES)
    )
    drawn = rng.random((2, TEMPLATES, EACH)) < np.stack([base, other])[:, :, None]
    one, two = drawn.reshape(2, -1).astype(float)
    return one, two


Make = Callable[[np.random.Generator, float], tuple[Array, Array]]


def said(make: Make, apart: float, binary: bool, known: bool, runs: int) -> float:
    """How often two models are told apart, with or without their templates known."""
    table, count = prompts(), 0
    for seed in range(runs):
        one, two = make(np.random.default_rng(seed), apart)
        sides = {"base": table.with_columns(x=pl.Series(one)), "tuned": table.with_columns(x=pl.Series(two))}
        if not known:
            sides = {name: side.drop("category") for name, side in sides.items()}
        row = differences(sides, "x", binary=binary, n_boot=400).row(0, named=True)
        assert row["part"] == WHOLE
        apart_ = row["low"] > 0 or row["high"] < 0
        count += apart_ and (row["p"] is None or row["p"] < 0.05)
    return count / runs


@pytest.mark.parametrize(("make", "binary"), [(margins, False), (rates, True)])
def test_models_that_differ_by_template_only_are_not_told_apart(make: Make, binary: bool) -> None:
    assert said(make, 0.0, binary, known=True, runs=150) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert said(make, 0.0, binary, known=False, runs=60) > 0.2
    assert said(make, 1.5 if not binary else 0.6, binary, known=True, runs=30) >= 0.8
