"""Stored weight differences: written by precompute, shown with their nulls, refused where not defined."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import live_study
import numpy as np
import polars as pl
import pytest
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest

from app.build.build import build
from app.charts.palette import DARK, LIGHT
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults, update
from app.live.deltas import read_deltas, steerable
from app.weights import panels as weights
from app.weights import tables as q
from app.weights import words as say
from engine.errors import StoreError
from engine.models.loading import load
from engine.study.study import Study
from engine.weights.deltas import weight_deltas
from store.reader import Store

Open = Callable[..., AppTest]
PART = "mlp.down_proj"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return live_study.make_study(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def opened(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """base, tuned (one changed tensor) and other (another family), precomputed."""
    path = tmp_path_factory.mktemp("store") / "store"
    store = build(study, path, quiet=True)
    return Opened(str(path), store, read_facts(store))


def chosen(opened: Opened, **changes: Any) -> Selection:
    usual = {"a": "base", "b": "tuned", "layer": live_study.CHANGED}
    return update(defaults(opened.facts), opened.facts, **(usual | changes))


def test_precompute_checks_that_steering_by_nothing_does_nothing(opened: Opened) -> None:
    found = [c for c in opened.store.self_checks() if c["name"] == "steering at α = 0 is a no-op"]
    assert [(c["model"], c["value"], c["passed"]) for c in found] == [("tuned", 0.0, True)]


def test_stored_differences_are_those_of_the_models(study: Study, opened: Opened) -> None:
    models = [load(study.models[name], name).model for name in ("base", "tuned")]
    (wanted,), (found,) = list(weight_deltas(*models)), list(read_deltas(opened.store, "tuned"))
    assert found.name == wanted.name == f"model.layers.{live_study.CHANGED}.{PART}.weight"
    assert found.rank is None, "the planted change is full noise"
    np.testing.assert_array_equal(found.matrix(), wanted.matrix())
    assert found.spectrum is not None
    np.testing.assert_allclose(
        found.spectrum, np.linalg.svd(wanted.matrix(), compute_uv=False), atol=1e-6, err_msg="float64 Gram"
    )
    assert list(read_deltas(opened.store, "base")) == []
    assert steerable(opened.store, "tuned")


def test_another_family_has_no_difference_and_says_why(opened: Opened) -> None:
    assert not steerable(opened.store, "other")
    lost = q.problems(opened, "other")
    assert any("q_norm.weight: missing" in line for line in lost)
    with pytest.raises(StoreError, match=r"other is not base with other weights.*q_proj\.weight \(shape"):
        list(read_deltas(opened.store, "other"))


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"weights": "effective_rank", "tensor": PART, "head_part": "q"},
    {"layer": 0, "weights": "norm"},
    {"b": "other"},
]


@pytest.mark.parametrize("changes", SELECTIONS, ids=str)
def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, changes: dict[str, Any]) -> None:
    panels = weights.panels(opened, chosen(opened, **changes))
    assert len(panels) == (4 if changes.get("layer", 2) == 2 and "b" not in changes else 3)
    for panel in panels:
        drawn(panel)
        assert panel.draw(DARK) != panel.draw(LIGHT)
        assert panel.title
        assert "None" not in panel.title + panel.caption
        assert "nan" not in (panel.title + panel.caption).lower()
        assert "Null" in panel.caption
        names: dict[str, Any] = {}
        exec(panel.code, names)
        assert names["table"].equals(panel.table)


def test_titles_say_where_the_planted_change_is(opened: Opened) -> None:
    titles = {panel.name: panel.title for panel in weights.panels(opened, chosen(opened))}
    assert titles["weight-blocks"].startswith("tuned changes block 2 only by ")
    assert titles["weight-tensors"] == "tuned differs from base only in mlp.down_proj of block 2"
    # Planted: independent noise, whose largest value is above the 95 % quantile one time in twenty.
    assert titles["weight-spectrum"].startswith(
        "tuned's difference in mlp.down_proj of block 2 has full rank"
    )
    assert re.search(
        "; (none is shown to stand|1 direction stands) out of a random one with its row and column norms$",
        titles["weight-spectrum"],
    )
    assert titles["weight-heads"] == "tuned changes no output projection"
    other = {panel.name: panel.title for panel in weights.panels(opened, chosen(opened, b="other"))}
    assert "tensors can't be compared" in other["weight-tensors"]


def test_heads_are_named_only_beyond_chance(opened: Opened) -> None:
    rows = q.heads(opened, "tuned", "o")
    columns = {"layer": [1, 1], "head": [0, 1], "share": [0.9, 0.1], "p_holm": [0.01, 1.0]}
    table = rows.clear().select(rows.columns).head(0)
    assert table.is_empty()
    made = type(rows)(columns)
    assert say.heads_title(made, "tuned", "o", 1) == (
        "Block 1: head 0 holds 90 % of tuned's squared output difference, more than chance"
    )
    assert "no head is shown to hold more" in say.heads_title(made.with_columns(p_holm=0.2), "tuned", "o", 1)
    assert say.heads_title(made, "tuned", "o", 3).endswith("it changes block 1")


def test_what_rounding_does_is_said_where_it_matters(opened: Opened) -> None:
    table = q.tensors(opened, "tuned")
    assert say.rounding(table) == "", "float32: 1e-7 of W, 1e-6 of ΔW"
    assert say.not_above_rounding(table) == 0
    merged = table.with_columns(rounding=pl.lit(0.3), noise=pl.lit(None, pl.Float64))
    assert "adds 30 % of its norm." in say.rounding(merged)
    several = pl.concat([merged, merged.with_columns(rounding=pl.lit(0.1)), merged])
    assert "adds 30 % of its norm (median" not in say.rounding(several.head(2))
    assert "adds 20 % of its norm (median of the tensors; at most 30 %)" in say.rounding(several.head(2))
    lost = table.with_columns(noise=pl.lit(2.0))
    assert "expected to give as much as 200 % of ‖ΔW‖ by itself" in say.rounding(lost)
    assert say.grid_title(lost, "tuned", "base") == (
        "No difference of tuned from base is above the rounding of their weights"
    )
    both = pl.concat([table, lost])
    title = say.grid_title(both, "tuned", "base")
    assert title.startswith("tuned differs from base only in ")
    assert title.endswith("; 1 not above rounding")
    older = table.drop("rounding", "noise")
    assert say.rounding(older) == ""
    assert say.grid_title(older, "tuned", "base").startswith("tuned differs from base only in ")


def text(app: AppTest) -> str:
    return "\n".join(str(block.value) for block in (*app.markdown, *app.caption))


def test_the_page_shows_the_stored_differences(opened: Opened, open_app: Open) -> None:
    app = open_app(opened.path, "weights", b="tuned", layer="2", weights="norm")
    assert not app.exception
    said = text(app)
    assert "changes block 2 only" in said
    app.selectbox(key="weights-model").set_value("other").run()
    assert not app.exception
    assert "can't be compared" in text(app)


def test_a_store_without_differences_says_so(own_store: Path, open_app: Open) -> None:
    app = open_app(own_store, "weights")
    assert not app.exception
    assert "No weight differences are stored" in text(app)


def test_an_older_store_is_refused_with_what_to_do(opened: Opened) -> None:
    older = opened.store.table("weight-delta-tuned").drop("stored", "problem")
    store = Store(opened.path)
    store._tables["weight-delta-tuned"] = older
    with pytest.raises(StoreError, match=r"no weight difference of tuned.*run precompute\.py"):
        list(read_deltas(store, "tuned"))
    assert not steerable(store, "tuned")
    assert dataclasses.replace(opened, store=store).key == opened.key
