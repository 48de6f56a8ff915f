"""No title claims an effect below the model's rounding noise, and each does above it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from app.behaviour import words as behaviour_words
from app.frame import noise, words
from app.heads import words as heads_words
from app.patching import drill as patch_drill
from app.patching import table as patch_table
from app.patching import words as patch_words
from app.rank import words as rank_words
from app.steering import words as steering_words
from app.weight_steering import words as weight_steering_words
from engine.behaviour.spec import FIGURES
from engine.lab import noise as engine_noise
from engine.patching.mapped_spec import CONTROLS, MappedPatch
from engine.weight_steering.spec import FIGURES as WEIGHT_FIGURES

SIZE = 0.01
"""Nats that every effect here has, with an interval from 0.9 to 1.1 of it."""
FIGURE = {figure.name: figure for figure in FIGURES}
WEIGHT = {figure.name: figure for figure in WEIGHT_FIGURES}
MAPPED = MappedPatch(
    target="tuned", source="base", component="mlp_out", layer=3, position="decision"
).to_json()


def of(kl: float) -> dict[str, Any]:
    """A summary with this noise; 0 is a run of before."""
    return {"rounding": {"tuned": {"kl": kl, "log_prob": 0.3}}} if kl else {}


def span(value: float) -> dict[str, float]:
    return {"estimate": value, "low": 0.9 * value, "high": 1.1 * value}


def split(saved: float) -> dict[str, Any]:
    kl = {"raw": span(0.03), "mapped": span(0.03 - saved)}
    worse = {kind: {**span(0.2), "beaten": True} for kind in CONTROLS}
    return {"kl": kl, "controls": worse, "delta": span(saved), "drop": span(100 * saved / 0.03), "reason": ""}


def mapped(kl: float) -> dict[str, Any]:
    both = {"validation": split(SIZE), "train": split(SIZE)}
    return {"splits": both, "best": {"alpha": 1.0}, "alphas": [1.0], **of(kl)}


def verdict(kl: float) -> str:
    return patch_words.verdict(MAPPED, mapped(kl))


def ranking(kl: float) -> str:
    return patch_table.top_words(patch_table.ranked(patch_table.table([(MAPPED, mapped(kl))])))


def blocks_of(kl: float) -> str:
    ends = {"kl_raw": [0.001, SIZE], "kl_raw_low": [0.0009, 0.9 * SIZE], "kl_raw_high": [0.0011, 1.1 * SIZE]}
    rows = pl.DataFrame({"layer": [0, 1], **ends, "noise": [kl, kl]})
    return patch_drill.profile_title(rows, MAPPED)


def alphas(kl: float) -> str:
    rows = {
        "alpha": [0.0, 1.0],
        "kl": [0.001, SIZE],
        "low": [0.0009, 0.9 * SIZE],
        "high": [0.0011, 1.1 * SIZE],
    }
    return patch_words.alpha_title(pl.DataFrame(rows), kl)


def closeness(kl: float) -> str:
    told = {"cosine": {"spearman": span(0.5), "pearson": span(0.5), "reason": ""}}
    return patch_drill.cosine_title(told, span(SIZE), kl)


def cells(kl: float) -> str:
    table = {"layer": [0, 0], "head": [0, 1], "kl": [SIZE, 1e-4], "kl_low": [0.9 * SIZE, 9e-5]}
    table |= {"kl_high": [1.1 * SIZE, 2e-4], "kl_train": [2.0, 1.0]}
    summary = {"top": [{"layer": 0, "head": 0}], "blocks": [], **of(kl)}
    return heads_words.cells_title(pl.DataFrame(table), MAPPED, summary)


def singles(kl: float) -> str:
    table = {"head": [0, 1], "coverage": [12.0, 2.0], "low": [11.0, 1.0], "high": [13.0, 3.0]}
    summary = {"effect": {"kl": 0.1}, **of(kl)}
    found = pl.DataFrame({**table, "coverage_train": [2.0, 1.0]})
    return heads_words.singles_title(found, MAPPED, summary)


def interaction(kl: float) -> str:
    table = {"first": [0], "second": [1], "interaction": [10.0], "interaction_low": [9.0]}
    found = pl.DataFrame({**table, "interaction_high": [11.0], "interaction_train": [10.0]})
    return heads_words.pairs_title(found, MAPPED, {"effect": {"kl": 0.1}, **of(kl)})


def rank(kl: float) -> str:
    rows = {"kind": ["raw", "truncated"], "split": ["validation"] * 2, "k": [0, 2], "alpha": [1.0, 1.0]}
    rows |= {"kl": [0.1, 0.09], "value": [None, 10.0], "low": [None, 9.0], "high": [None, 11.0]}
    best = {"reason": "", "best": {"k": 2, "alpha": 1.0}, "smallest": {"k": 2, "alpha": 1.0}}
    summary = {"truncated": best, "full_rank": 8, "reference": "raw", **of(kl)}
    table = pl.DataFrame(rows)
    return rank_words.map_title(table, summary) + rank_words.path_title(table, summary)


STEERED = {"wanted": ["Yes"], "against": ["No"], "budget": 1.0, "neutral": {}, "alphas": [0.1]}


def shift(kl: float) -> str:
    row = {
        "series": "direction",
        "alpha": 0.1,
        "shift": SIZE,
        "shift_low": 0.9 * SIZE,
        "shift_high": 1.1 * SIZE,
    }
    row |= {"kl": 0.5, "kl_low": 0.4, "kl_high": 0.6}
    summary = {"chosen": 0.1, "equal": {"best": None}, "self_check": {"limit": 1e-6}, **of(kl)}
    table = pl.DataFrame([row, {**row, "series": "ablate", "alpha": 0.0}])
    said = steering_words.shift_title(table, STEERED, summary)
    return said + steering_words.ablation_title(table, STEERED, summary)


def beyond(kl: float) -> str:
    best = {"difference": span(SIZE), "direction": {"shift": SIZE, "low": 0.9 * SIZE, "high": 1.1 * SIZE}}
    best |= {"most": 0.0, "least": -0.001, "draws": 8, "random": {"shift": 0.0, "low": 0.0, "high": 0.0}}
    return steering_words.equal_title({"equal": {"best": best, "level": 0.1}, **of(kl)})


def behaviour(kl: float) -> str:
    row = {"part": "all prompts", "series": "tuned", "value": SIZE, "low": 0.9 * SIZE, "high": 1.1 * SIZE}
    floor = noise.log_floor(of(kl))
    return behaviour_words.difference_title(
        FIGURE["agreement"], "base", pl.DataFrame([{**row, "p": None}]), floor
    )


def weights(kl: float) -> str:
    row = {
        "figure": "agreement",
        "split": "validation",
        "series": "d",
        "alpha": 1.0,
        "value": 1.0,
        "low": 0.9,
    }
    row |= {"high": 1.1, "change": SIZE, "change_low": 0.9 * SIZE, "change_high": 1.1 * SIZE}
    zero = {**row, "series": "", "alpha": 0.0}
    table = pl.DataFrame([row, zero])
    return weight_steering_words.curve_title(table, WEIGHT["agreement"], "d", 1.0, of(kl))


def weights_kl(kl: float) -> str:
    row = {"figure": "kl", "split": "validation", "series": "d", "alpha": 1.0, "value": SIZE}
    row |= {"low": 0.9 * SIZE, "high": 1.1 * SIZE, "change": 0.0, "change_low": 0.0, "change_high": 0.0}
    table = pl.DataFrame([row, {**row, "series": "", "alpha": 0.0}])
    said = weight_steering_words.curve_title(table, WEIGHT["kl"], "d", 1.0, of(kl))
    return said.replace("moves the next token by what lies", "")


SAID: dict[Callable[[float], str], str] = {
    verdict: "the map lowers KL",
    ranking: "the map saves",
    blocks_of: "disturbs most at block 1",
    alphas: "the effect goes from",
    closeness: "gain more",
    cells: "more than any other head",
    singles: "more than any other head",
    interaction: "more of block 3's effect",
    rank: "less than the moment-matched patch",
    shift: "raises log p(Yes)",
    beyond: "further than all 8 random",
    behaviour: "tuned is higher than base",
    weights: "d raises log p(Yes)",
    weights_kl: "moves the next token",
}


@pytest.mark.parametrize("title", list(SAID), ids=lambda one: one.__name__)
def test_a_title_claims_what_exceeds_noise_and_nothing_else(title: Callable[[float], str]) -> None:
    # what is read as a difference of log-probabilities must exceed 2 √KL, the others KL itself
    assert SAID[title] in title(1e-6), title(1e-6)
    assert SAID[title] in title(0.0), title(0.0)  # a run of before tells as before
    assert SAID[title] not in title(0.02), title(0.02)


def test_the_noise_of_a_run_is_that_of_its_noisiest_model() -> None:
    both = {"rounding": {"a": {"kl": 0.001}, "b": {"kl": 0.003}}}
    assert noise.kl_floor(both) == 2 * 0.003
    both["rounding"]["a"]["kl_worst"] = 0.009
    assert noise.kl_floor(both) == 0.009
    assert noise.log_floor(both) == pytest.approx(2 * math.sqrt(0.003))
    assert noise.kl_floor({}) == noise.log_floor({"rounding": {}}) == 0.0
    assert noise.kl_floor({"rounding": {"a": {"kl": -1e-9}}}) == 0.0  # rounding of a KL that is 0


def test_captions_and_charts_show_it_and_old_runs_say_nothing() -> None:
    assert noise.note(of(0.0016)) == " Rounding noise: KL 0.0016 nats in tuned; a finding must exceed 0.0032."
    assert "one of log-probabilities 0.08." in noise.log_note(of(0.0016))
    assert noise.note({}) == noise.log_note({}) == ""
    assert noise.lines(of(0.0016)) == {"rounding noise": 0.0032}
    assert noise.lines(of(1e-7)) == noise.lines({}) == {}
    drawn = noise.band(of(0.0016), pl.Series([2.0, 0.5]))
    assert drawn is not None
    assert drawn.to_dicts() == [
        {"x": 0.5, "low": 0.0, "high": 0.0032},
        {"x": 2.0, "low": 0.0, "high": 0.0032},
    ]
    assert noise.band({}, pl.Series([1.0])) is None


@pytest.mark.parametrize("size", [0.01, 0.05])
def test_the_floor_of_log_probabilities_is_what_rounding_of_that_kl_does_to_them(size: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, size=(400, 2000))
    p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    moved = logits + size * rng.normal(size=logits.shape)
    q = moved - np.logaddexp.reduce(moved, axis=1, keepdims=True)
    kl = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    change = (q - p)[:, 0] - (q - p)[:, 1]
    # of logits that all move alike: a difference of two log-probabilities has sd √2 size, 2 √KL
    assert float(change.std()) == pytest.approx(engine_noise.log_floor({"m": {"kl": kl}}), rel=0.1)


CURVE = {
    "layer": [0, 1, 2],
    "value": [1.0, 0.9998, 0.6],
    "low": [1.0, 0.9997, 0.5],
    "high": [1.0, 0.9999, 0.7],
}
NO_NULL = pl.DataFrame(schema={"layer": pl.Int64, "high": pl.Float64})


def test_cka_is_told_apart_where_rounding_does_not_explain_it() -> None:
    curve = pl.DataFrame(CURVE)

    def title(rounding: float, rows: pl.DataFrame = curve) -> str:
        return words.cka_title(rows.with_columns(noise=pl.lit(rounding)), NO_NULL, "a", "b", "resid_post")

    assert title(1e-5).startswith("b leaves a at block 1 (resid_post): identical before, CKA 0.9998")
    assert title(5e-4).startswith(
        "b leaves a at block 2 (resid_post): equal within rounding before, CKA 0.60"
    )
    assert title(5e-4, curve.head(2)) == (
        "a and b are equal within rounding at resid_post in every block: "
        "CKA 0.9998 (0.9997 to 0.9999) at the least"
    )
    assert title(5e-4, curve.head(1)) == "a and b have the same geometry at resid_post in every block"


def test_languages_are_not_told_apart_by_rounding() -> None:
    def title(rounding: float) -> str:
        near, far = (
            {"value": v, "low": v - 1e-5, "high": v + 1e-5, "layer": 0, "noise": rounding}
            for v in (0.9999, 0.9995)
        )
        table = pl.DataFrame([{**near, "series": "en"}, {**far, "series": "zh"}])
        return words.language_title(table, "a", "b")

    assert title(1e-5).startswith("a and b differ more in zh than in en")
    assert title(4.5e-4).startswith("a and b are not shown to differ more in one language")
    assert title(1e-3) == "a and b are equal within rounding in en and zh"
