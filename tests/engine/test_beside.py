"""Runs side by side: shared prompts, paired differences, intervals that hold together."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy import stats

from engine.errors import AnalysisError
from engine.lab.beside import beside, shared_figures


def run(values: np.ndarray, ids: list[str] | None = None, split: str = "validation") -> pl.DataFrame:
    ids = ids or [f"p{i}" for i in range(len(values))]
    return pl.DataFrame({"id": ids, "split": [split] * len(values), "kl": values})


def test_differences_are_paired_and_means_are_those_of_shared_prompts() -> None:
    rng = np.random.default_rng(0)
    base = rng.lognormal(size=60)
    first, second = (
        run(base),
        run((base + 0.01 + 1e-3 * rng.normal(size=60))[::-1], [f"p{59 - i}" for i in range(60)]),
    )
    found = beside([first, second.filter(pl.col("id") != "p7")])
    kept = np.delete(base, 7)
    assert found["n"].to_list() == [59, 59]
    assert found["value"][0] == pytest.approx(kept.mean())
    # the prompts' own spread is a hundred times the effect; paired, it cancels
    low, high = found["difference_low"][1], found["difference_high"][1]
    assert low < 0.01 < high
    assert high - low < 2e-3
    assert found["difference"][1] == pytest.approx(found["value"][1] - found["value"][0])


def test_validation_prompts_alone_where_there_are_any() -> None:
    values = np.arange(40.0)
    half = run(values).with_columns(split=pl.Series(["train"] * 20 + ["validation"] * 20))
    assert beside([half, half])["value"].to_list() == [pytest.approx(29.5)] * 2
    train = half.filter(pl.col("split") == "train")
    assert beside([train, half])["value"].to_list() == [pytest.approx(9.5)] * 2


def test_prompts_of_a_pair_are_one_unit() -> None:
    rng = np.random.default_rng(1)
    shared = np.repeat(rng.normal(size=30), 2)
    pairs = pl.Series("pair_id", [f"q{i // 2}" for i in range(60)])
    first, second = run(np.zeros(60)).with_columns(pairs), run(shared).with_columns(pairs)
    together = beside([first, second])
    alone = beside([first.drop("pair_id"), second.drop("pair_id")])
    assert together["units"].to_list() == [30, 30]
    wide, narrow = (float(t["difference_high"][1] - t["difference_low"][1]) for t in (together, alone))
    assert wide > 1.25 * narrow


def test_differences_of_many_runs_hold_together() -> None:
    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        each = [run(rng.normal(size=40)) for _ in range(6)]
        found = beside(each, seed=seed).drop_nulls("difference")
        missed += bool(((found["difference_low"] > 0) | (found["difference_high"] < 0)).any())
    assert stats.binomtest(missed, 200, 0.05, alternative="greater").pvalue > 0.01


def test_numbers_that_are_not_there_are_left_out() -> None:
    values = np.arange(10.0)
    holes = np.where(values < 3, np.nan, values)
    assert beside([run(values), run(holes)])["n"].to_list() == [7, 7]
    other = run(values).with_columns(also=pl.col("kl") * 2, category=pl.lit("c"))
    assert shared_figures([other, run(values)]) == ["kl"]


@pytest.mark.parametrize(
    ("each", "said"),
    [
        ([run(np.ones(5))], "nothing beside it"),
        ([run(np.ones(5)), run(np.ones(5), ["a", "a", "b", "c", "d"])], "several rows for a prompt"),
        ([run(np.ones(5)), run(np.ones(5), list("abcde"))], "share no numbers"),
        ([run(np.ones(5)), run(np.ones(5)).rename({"kl": "loss"})], "share no numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused(each: list[pl.DataFrame], said: str) -> None:
    with pytest.raises(AnalysisError, match=said):
        beside(each)


def test_whole_categories_are_drawn_where_there_are_many() -> None:
    rng = np.random.default_rng(2)
    shared = np.repeat(rng.normal(size=24), 5)
    names = pl.Series("category", [f"c{i // 5}" for i in range(120)])
    first, second = run(np.zeros(120)).with_columns(names), run(shared).with_columns(names)
    found = beside([first, second])
    assert (found["units"][0], found["unit"][0]) == (24, "category cluster")
    alone = beside([first.drop("category"), second.drop("category")])
    wide, narrow = (float(t["difference_high"][1] - t["difference_low"][1]) for t in (found, alone))
    assert wide > 1.7 * narrow  # √5 = 2.2


def test_few_units_have_no_interval() -> None:
    found = beside([run(np.arange(11.0)), run(np.arange(11.0) + 1)])
    assert found["difference"].to_list() == [None, pytest.approx(1.0)]
    assert (
        found.select("low", "high", "difference_low", "difference_high").null_count().sum_horizontal()[0] == 8
    )
