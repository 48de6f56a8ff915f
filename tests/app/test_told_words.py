"""Positions are told in titles and captions as in their control, and no verdict over an interval with 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.frame.words import position_said
from app.heads import words as heads
from app.patching import words as patching
from app.patching.analysis import MAPPED
from app.transport.tables import Place

CONDITION = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": 2, "kind": "mapped"}


@pytest.mark.parametrize("page", ["similarity", "transport", "bridge"])
def test_no_caption_has_the_name_of_a_position_in_the_store(
    open_app: Callable[..., AppTest], planted: Path, page: str
) -> None:
    app = open_app(planted, page)
    said = [*(m.value for m in app.markdown), *(c.value for c in app.caption)]
    assert not [text for text in said if "last_content" in text.replace("\\", "")]


def test_a_position_of_ones_own_is_told_as_it_is() -> None:
    assert position_said("last_content") == "the last content token"
    assert position_said("sample(k=4,draw=1)") == "sample(k=4,draw=1)"
    assert Place("a", "b", "resid_post", 3, "decision").words == "resid_post of block 3, decision token"
    assert patching.reading({"position": "last_content", "read_at": "patched"}) == (
        "patched at the last content token, read there"
    )


def summary(drop: tuple[float, float, float]) -> dict[str, Any]:
    """A run whose ΔKL lies above 0, with this share."""
    mean = {"estimate": 0.02, "low": 0.01, "high": 0.03}
    found = {
        "n_groups": 40,
        "n": 40,
        "kl": {"raw": {**mean, "estimate": 0.1}, "mapped": mean},
        "delta": {"estimate": 0.08, "low": 0.001, "high": 0.2},
        "drop": dict(zip(("estimate", "low", "high"), drop, strict=True)),
        "controls": {},
        "reason": None,
    }
    return {"splits": {"validation": found, "train": found}, "best": {"alpha": 1.0}, "rounding": {}}


def test_a_map_lowers_kl_only_where_the_interval_of_the_share_says_so() -> None:
    assert "the map lowers KL by 81 % (30 to 115); " in patching.verdict(CONDITION, summary((81, 30, 115)))
    said = patching.verdict(CONDITION, summary((81, -30, 115)))
    assert "the map is not shown to lower KL: 81 % (−30 to 115); " in said
    assert "lowers" not in said


def test_a_run_is_listed_with_the_words_of_its_first_panel() -> None:
    class Run:
        condition, summary = CONDITION, summary((81, 30, 115))

    assert MAPPED.finding is not None
    assert MAPPED.finding(Run()) == patching.verdict(CONDITION, Run.summary)  # type: ignore[arg-type]


def head(number: int, low: float, high: float) -> dict[str, float]:
    middle = (low + high) / 2
    return {"head": number, "coverage": middle, "low": low, "high": high, "coverage_train": 50 - number}


def test_heads_cover_nothing_where_the_interval_includes_none() -> None:
    whole = {"kl": 1.0, "low": 0.9, "high": 1.1}
    condition = {**CONDITION, "job": "heads", "kind": "literal", "vectors": "literal"}
    found = {"effect": whole, "n_heads": 4, "rounding": {}}
    table = pl.DataFrame([head(0, -30.0, 115.0), head(1, -40.0, 20.0)])
    said = heads.singles_title(table, condition, found)
    assert "is not shown to cover any of" in said
    assert "(−30 to 115)" in said
    few = {**found, "carrying": {**head(0, -30.0, 115.0), "heads": [0], "localised": True, "random": 3.0}}
    assert heads.curve_title(table, condition, few).startswith("Head 0 is not shown to carry ")
    shown = {**found, "carrying": {**head(0, 90.0, 101.0), "heads": [0], "localised": True, "random": 3.0}}
    assert heads.curve_title(table, condition, shown).endswith(": localised")
