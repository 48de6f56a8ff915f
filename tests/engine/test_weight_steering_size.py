"""What a run of weight steering costs, and runs that are made to fit a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from engine.behaviour.claims import claim_prompts
from engine.lab.experiment import resampling_groups
from engine.lab.units import resampling_units
from engine.weight_steering.chosen import chosen, fewest, limited
from engine.weight_steering.sizing import BUDGET, RATE, Work, seconds, sized
from engine.weight_steering.spec import ALPHAS, Contrast, WeightSteering

SPEC = WeightSteering(model="base", deltas=(Contrast(plus="tuned"),))
COUNTS = {
    (role, split): n for role in ("wanted", "neutral") for split, n in (("train", 78), ("validation", 42))
}
SMALL = Work(134_515_008, 49_152 * 576, 49.0, COUNTS, True)


def test_the_cost_is_that_of_its_products() -> None:
    one = SPEC.model_copy(update={"alphas": (1.0,), "draws": 0, "answers": 0})
    blocks = (134_515_008 - 49_152 * 576) * (120 * 49.0 + 120 * 20)
    head = 49_152 * 576 * (120 * 49.0 + 120 * 17)
    assert seconds(one, SMALL) == pytest.approx(2 * 4 * (blocks + head) / RATE)
    apart = seconds(one, replace(SMALL, same=False)) / seconds(one, SMALL)
    assert 1.3 < apart < 2.0


def test_what_fits_stays_as_it_is() -> None:
    tiny = replace(SMALL, parameters=1_400_000, unembedding=256_000)
    assert sized(SPEC, tiny) == SPEC
    assert "prompts" not in SPEC.to_json()  # the hash of runs made before


def test_alphas_go_first_then_answers_then_prompts() -> None:
    needed = seconds(SPEC, SMALL)
    found = [sized(SPEC, SMALL, needed * share) for share in (1.0, 0.7, 0.55, 0.4, 0.28)]
    assert found[0] == SPEC
    assert [len(one.alphas) for one in found] == [8, 4, 4, 4, 4]
    assert [one.answers for one in found] == [32, 32, 12, 12, 12]
    assert [one.prompts for one in found[:3]] == [None, None, None]
    assert found[3].prompts == 40
    assert found[4].prompts == 24
    assert all(1.0 in one.alphas and set(one.alphas) <= set(ALPHAS) for one in found)
    for one, share in zip(found, (1.0, 0.7, 0.55, 0.4, 0.28), strict=True):
        assert seconds(one, SMALL) <= needed * share
    assert seconds(sized(SPEC, SMALL), SMALL) <= BUDGET
    large = replace(SMALL, parameters=8_000_000_000)
    assert sized(SPEC, large).prompts == 24, "of fewer nothing could be said"


def test_fewer_prompts_are_whole_pairs_spread_evenly() -> None:
    table = pl.DataFrame({"pair_id": [f"p{i // 2}" for i in range(24)]})
    groups = resampling_groups(table)
    rows = np.arange(4, 24)
    found = limited(rows, groups, 8)
    assert found.tolist() == [4, 5, 10, 11, 16, 17, 22, 23]
    assert limited(rows, groups, None) is rows
    assert limited(rows, groups, 20) is rows
    alone = resampling_groups(pl.DataFrame({"pair_id": ["a"] * 10 + ["b"] * 10}))
    assert limited(np.arange(20), alone, 4).size == 20  # not less than two pairs
    wide = resampling_groups(pl.DataFrame({"pair_id": [f"p{i // 6}" for i in range(600)]}))
    assert [limited(np.arange(600), wide, most).size for most in (40, 12, 8, 1)] == [36, 12, 12, 12]


@pytest.mark.parametrize(
    ("categories", "of_a_pair", "least"),
    [(0, 2, 24), (0, 3, 36), (30, 2, 24), (0, 20, 100)],
    ids=["pairs", "threes", "categories of pairs", "all there are"],
)
def test_the_smallest_run_can_judge_a_mean(categories: int, of_a_pair: int, least: int) -> None:
    """12 units of what intervals draw, or as many as all prompts of validation have."""
    n = 240
    columns = {
        "id": [f"q{i}" for i in range(n)],
        "pair_id": [f"p{i // of_a_pair}" for i in range(n)],
        "split": ["train" if i < n // 2 else "validation" for i in range(n)],
        "category": [f"c{i // 2 % categories}" if categories else None for i in range(n)],
    }
    table = pl.DataFrame(columns, schema_overrides={"category": pl.String})
    found = fewest(SPEC, table)
    parts = chosen(SPEC.model_copy(update={"prompts": found}), table)
    judged = resampling_units(table)[parts["wanted", "validation"]]
    assert len(np.unique(judged)) >= min(12, n // 2 // of_a_pair)
    assert found >= least
    work = replace(SMALL, parameters=8_000_000_000, fewest=found)
    assert sized(SPEC, work).prompts == max(24, found)


def test_many_prompts_of_a_category_are_more_than_its_units() -> None:
    """30 categories of 8 prompts each: 24 prompts evenly spread are of fewer than 12 categories' worth."""
    table = pl.DataFrame(
        {
            "id": [f"q{i}" for i in range(480)],
            "pair_id": [f"p{i // 2}" for i in range(480)],
            "split": ["validation" if i % 16 < 6 else "train" for i in range(480)],
            "category": [f"c{i // 16}" for i in range(480)],
        }
    )
    found = fewest(SPEC, table)
    rows = chosen(SPEC.model_copy(update={"prompts": found}), table)
    every = np.unique(np.concatenate(list(rows.values())))
    units = resampling_units(table[every])
    assert len(np.unique(units[np.isin(every, rows["wanted", "validation"])])) >= 12


def test_claims_among_other_prompts_need_more_of_them() -> None:
    """Agreement is a mean over claims alone: with every third pair asking something else, 24 are too few."""
    n = 240
    table = pl.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)],
            "pair_id": [f"p{i // 2}" for i in range(n)],
            "split": ["train" if i < n // 2 else "validation" for i in range(n)],
            "category": [None] * n,
            "choices": [["3", "4"] if i // 2 % 3 == 2 else ["Yes", "No"] for i in range(n)],
        },
        schema_overrides={"category": pl.String},
    )
    rows = chosen(SPEC.model_copy(update={"prompts": fewest(SPEC, table)}), table)["wanted", "validation"]
    claims = claim_prompts(SPEC.wording, table[rows])
    assert len(rows) > 24
    assert table[rows].filter(pl.Series(claims))["pair_id"].n_unique() >= 12
