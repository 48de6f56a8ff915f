"""No page names a head, pair, block, place, rank or α because it is the best on the prompts it reports."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from app.heads import words as heads_words
from app.patching import table as patch_table
from app.rank import words as rank_words
from app.transport import words as transport_words

APP = Path(__file__).resolve().parents[2] / "app"
CONDITION = {"layer": 4, "target": "tuned", "source": "base"}
SUMMARY = {"effect": {"kl": 0.4}, "top": [{"layer": 0, "head": 0}], "blocks": []}


def rows(train: tuple[float, float], value: str, **more: Any) -> pl.DataFrame:
    """Two rows of which the second is far ahead on validation; `train` says which is ahead there."""
    found = {value: [50.0, 90.0], "low": [49.0, 89.0], "high": [51.0, 91.0], f"{value}_train": list(train)}
    return pl.DataFrame(found | more)


def singles(train: tuple[float, float]) -> str:
    return heads_words.singles_title(rows(train, "coverage", head=[0, 1]), CONDITION, SUMMARY)


def without(train: tuple[float, float]) -> str:
    table = pl.DataFrame({"head": [0, 1], "without_coverage": [50.0, 10.0], "without_low": [49.0, 9.0]})
    more = {"without_high": pl.Series([51.0, 11.0]), "without_train": pl.Series([-t for t in train])}
    return heads_words.without_title(table.with_columns(**more), CONDITION, SUMMARY)


def both(train: tuple[float, float]) -> str:
    return heads_words.both_title(rows(train, "coverage", first=[0, 1], second=[2, 2]), CONDITION, SUMMARY)


def interaction(train: tuple[float, float]) -> str:
    table = rows(train, "interaction", first=[0, 1], second=[2, 2])
    table = table.rename({"low": "interaction_low", "high": "interaction_high"})
    return heads_words.pairs_title(table, CONDITION, SUMMARY)


def cells(train: tuple[float, float]) -> str:
    table = rows(train, "kl", layer=[0, 0], head=[0, 1]).rename({"low": "kl_low", "high": "kl_high"})
    return heads_words.cells_title(table, CONDITION, SUMMARY)


def blocks(train: tuple[float, float]) -> str:
    return heads_words.kl_title(rows(train, "kl", layer=[0, 1], shown=[True, True]), CONDITION)


def places(train: tuple[float, float]) -> str:
    table = rows(train, "r2", site=["mlp_out", "mlp_out"], layer=[0, 1], r2_shuffled_max=[0.0, 0.0])
    table = table.rename({"r2": "r2_validation", "low": "r2_low", "high": "r2_high"})
    return transport_words.table_title(table, "base", "tuned")


def runs(train: tuple[float, float]) -> str:
    table = rows(train, "gain", hook=["mlp_out", "mlp_out"], layer=[0, 1], direction=["x", "x"])
    table = table.rename({"low": "gain_low", "high": "gain_high"}).with_columns(over=pl.lit("raw"), noise=0.0)
    return patch_table.top_words(patch_table.ranked(table), short=True)


def rank(train: tuple[float, float]) -> str:
    table = rows(train, "value", k=[1, 2], alpha=[1.0, 1.0], kind=["truncated"] * 2, split=["validation"] * 2)
    best = {"k": 1 if train[0] > train[1] else 2, "alpha": 1.0}
    return rank_words.map_title(table, {"truncated": {"reason": "", "best": best}, "reference": "raw"})


NAMED: dict[Callable[[tuple[float, float]], str], tuple[str, str]] = {
    singles: ("Head 0, the first on train", "Head 1, the first on train"),
    without: ("without head 0, missed most on train", "without head 1, missed most on train"),
    both: ("Heads 0 and 2, first on train", "Heads 1 and 2, first on train"),
    interaction: ("Heads 0 and 2 together do 50.0 %", "Heads 1 and 2 together do 90.0 %"),
    cells: ("Head 0 of block 0, the first on train", "Head 1 of block 0, the first on train"),
    blocks: ("All heads of block 0, the first on train", "most at block 1: 90 nats"),
    places: ("the first on train, mlp_out of block 0", "the first on train, mlp_out of block 1"),
    runs: ("at mlp_out of block 0, the first on train", "at mlp_out of block 1, the first on train"),
    rank: ("Rank 1 at α = 1, the best on train", "Rank 2 at α = 1, the best on train"),
}
"""What titles name where train puts the first row ahead, though validation doesn't, and where both agree."""


@pytest.mark.parametrize("title", NAMED, ids=lambda made: made.__name__)
def test_a_title_names_what_train_puts_first(title: Callable[[tuple[float, float]], str]) -> None:
    other, agreed = NAMED[title]
    assert other in title((2.0, 1.0))
    assert agreed in title((1.0, 2.0))
    assert other not in title((1.0, 2.0))
    assert agreed not in title((2.0, 1.0))


PLACES = {"layer", "index", "head", "x", "k", "alpha", "step", "order", "rank"}
"""Columns that put rows in an order and rank nothing."""
NOT_CHOSEN = {
    ("weights", "value"): "exact norms of given weights",
    ("weights", "relative"): "exact norms of given weights",
    ("frame", "value"): "lengths and distances: named only where intervals part them; nothing is fitted",
    ("difference_lens", "outstanding"): "a count of tokens whose error is held over all places together",
    ("diff_mining", "topic"): "topics by size; they are named only where resamples find them again",
    ("principal_differences", "count"): "components of train prompts, by limits for all places together",
    ("principal_differences", "value"): "what one given direction does to tokens; no prompts are chosen",
    ("z_patching", "probability"): "the least certain step is told, no choice",
}
"""(folder of words.py, column) that titles may sort by, and why that is no choice on the reported prompts."""


def sorts(tree: ast.Module) -> list[str]:
    """Columns by which a module sorts tables."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("sort", "top_k", "bottom_k"):
            words = [n.value for arg in node.args for n in ast.walk(arg) if isinstance(n, ast.Constant)]
            found += [word for word in words if isinstance(word, str)]
    return found


@pytest.mark.parametrize("path", sorted(APP.glob("*/words.py")), ids=lambda p: p.parent.name)
def test_sentences_rank_by_train_or_say_why_not(path: Path) -> None:
    wrong = [
        column
        for column in sorts(ast.parse(path.read_text()))
        if column not in PLACES
        and not column.endswith("_train")
        and (path.parent.name, column) not in NOT_CHOSEN
    ]
    assert not wrong, f"{path.parent.name} ranks by {wrong}: choose on train, tell validation's value"
