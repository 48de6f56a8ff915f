"""The page of Z's geometry on the planted store: numbers from raw arrays, sliders that compute nothing."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import streamlit as st
from drawn_panels import drawn
from planted_store import HEADS, LAYERS, PAIRS, WIDTH, prompts_table, streams
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.frame import export
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, changed, defaults
from app.geometry import configurations
from app.geometry import separation as geometry_separation
from app.geometry import tables as geometry_queries
from app.geometry import weights as geometry
from app.geometry import words as geometry_words
from engine.errors import AnalysisError
from engine.geometry import separation as sep
from engine.geometry import z as subspace
from engine.geometry.layers import LayerStructure
from store.reader import Store

VIEWS: dict[str, dict[str, Any]] = {
    "default": {},
    "every": {"layers": "every", "k": 3, "model": "b"},
    "kernels": {"joined": "kernels", "k": 2, "site": "resid_pre", "split": "train", "ref": 4},
}


@pytest.fixture
def opened(own_store: Path) -> Opened:
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(own_store)
    return Opened(str(own_store), store, read_facts(store))


def view(opened: Opened, name: str = "default", **more: Any) -> Selection:
    changes = {"layer": 1, **VIEWS[name], **more}
    return geometry.effective(opened, changed(defaults(opened.facts), **changes))


def panels(opened: Opened, selection: Selection) -> list[Panel]:
    made = [draw(opened, selection) for draw in geometry.WEIGHTS]
    made += [
        make(opened, selection, pooling)
        for pooling in geometry.poolings(opened, selection)
        for make in geometry_separation.makers(selection)
    ]
    return [panel for panel in made if panel is not None]


def test_ratios_are_those_of_the_raw_activations(opened: Opened) -> None:
    selection = view(opened, k=4)
    panel = geometry_separation.separation_panel(opened, selection, "mean")
    table, raw = prompts_table(), streams()["base"]["resid", 2].astype(float)
    one, two = (raw[(table["language"] == spoken).to_numpy()] for spoken in ("en", "zh"))
    right, sigma = (opened.store.array(f"weights/base/kernel_{n}", first=1) for n in ("right", "sigma"))
    basis = subspace.multi_head_basis(right, sigma, 4)
    projector = basis @ basis.T
    for series, inside in (
        ("Z", projector),
        ("outside Z", np.eye(WIDTH) - projector),
        ("whole space", np.eye(WIDTH)),
    ):
        across = np.linalg.norm((one - two) @ inside, axis=1).mean()
        apart = [
            np.linalg.norm((side[i] - side[j]) @ inside)
            for side in (one, two)
            for i in range(PAIRS)
            for j in range(PAIRS)
            if i != j
        ]
        found = panel.table.filter((pl.col("x") == 4) & (pl.col("series") == series))["value"][0]
        assert found == pytest.approx(across / np.mean(apart), rel=1e-6)
    assert f"{PAIRS} problems in en and zh" in panel.caption


@pytest.mark.parametrize("name", VIEWS)
def test_the_code_of_a_panel_gives_its_table(opened: Opened, name: str) -> None:
    for panel in panels(opened, view(opened, name)):
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"]), panel.name


@pytest.mark.parametrize(("name", "palette"), [("default", LIGHT), ("every", DARK)])
def test_panels_draw_valid_charts(opened: Opened, name: str, palette: Any) -> None:
    found = panels(opened, view(opened, name))
    assert len({panel.name for panel in found}) == len(found) == (4 + 2 * (6 if name == "every" else 3))
    for panel in found:
        drawn(panel, palette)
        assert len(panel.title) < 300
        assert panel.caption
        assert b"<svg" in export.svg_bytes(panel.draw(LIGHT), panel.title)[:200]


def test_every_configuration_is_counted(opened: Opened) -> None:
    """Blocks × k, of all heads and of single ones; counts and chance by hand from the planted problems."""
    selection = view(opened, layers="every")
    where = geometry.place(selection, "mean")
    layers, ks = list(opened.store.layers("base")), geometry_queries.ranks(opened.store)
    panel = configurations.configurations_panel(opened, selection, "mean")
    table = panel.table
    assert table.height == len(layers) * len(ks) * (1 + HEADS)
    one = geometry_queries.measured(opened.store, **where, layer=2)
    row = table.filter(layer=2, part="head 1", k=ks[-1]).row(0, named=True)
    assert row["value"] == one.heads[1, -1]
    assert row["random"] == pytest.approx(statistics.median(one.separation.random[:, -1]))
    below = one.heads[1, -1] < statistics.median(one.separation.random[:, -1])
    assert row["below"] == below
    found = configurations.counts(table)
    below, small, of = found["all heads"]
    every = [geometry_queries.measured(opened.store, **where, layer=layer).separation for layer in layers]
    assert of == len(layers) * len(ks)
    assert small == sum(int((each.p_random < 0.05).sum()) for each in every)
    assert f"in {below} of {of} configurations ({of / 2:g} by chance), p < 0.05 in {small}" in panel.title
    low, high = configurations.drawn_range(
        {layer: geometry_queries.measured(opened.store, **where, layer=layer) for layer in layers}
    )
    assert "Z: the leading k key-side directions, of all heads together or of one head, " in panel.caption
    assert f"{selection.k} key-side" not in panel.caption
    assert low < of / 2 < high


def test_sliders_read_and_measure_nothing_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry.prepare(opened, view(opened, layers="every"), lambda _: lambda *_: None)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("activations or factors were read again")

    for name in ("activations", "array"):
        monkeypatch.setattr(Store, name, refuse)
    monkeypatch.setattr(sep, "random_ratios", refuse)
    monkeypatch.setattr(subspace, "multi_head_bases", refuse)
    for move in ({"k": 2}, {"k": 6}, {"layer": 4}, {"ref": 0}, {"layers": "every", "k": 5}):
        assert panels(opened, view(opened, **move))


def test_progress_is_told_and_ends(opened: Opened) -> None:
    told: dict[str, list[tuple[int, int]]] = {}

    def progress(text: str) -> Callable[[int, int], None]:
        return lambda *step: told.setdefault(text, []).append(step)

    geometry.prepare(opened, view(opened), progress)
    assert len(told) == 2
    for steps in told.values():
        assert steps[-1][0] == steps[-1][1]
        assert [s for s in steps[:-1] if s[0] >= s[1]] == []
    again: dict[str, list[tuple[int, int]]] = {}
    geometry.prepare(opened, view(opened), lambda text: again.setdefault(text, []).append)  # type: ignore[arg-type,return-value]
    assert not again


def test_problems_need_one_prompt_in_each_language(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    table = prompts_table().with_columns(
        pair_id=pl.when(pl.int_range(pl.len()) == 3).then(pl.lit("p0")).otherwise(pl.col("pair_id"))
    )
    monkeypatch.setattr(Store, "prompts", table)
    one, two = geometry_queries.problem_rows(opened.store, "all", "all")
    assert one.size == PAIRS - 2  # p0 has two Chinese prompts now, p1 none
    assert (table["language"].to_numpy()[one] == "en").all()
    assert (table["pair_id"].to_numpy()[one] == table["pair_id"].to_numpy()[two]).all()
    with pytest.raises(AnalysisError, match="too few problems in both languages"):
        geometry_queries.problem_rows(opened.store, "validation", "add")
    monkeypatch.setattr(Store, "prompts", table.with_columns(language=pl.lit("en")))
    assert geometry_queries.languages(opened.store) is None


def test_a_store_without_gates_says_so(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [n for n in opened.store.array_names() if "gate" not in n]
    monkeypatch.setattr(Store, "array_names", lambda self: names)
    assert geometry.gates_panel(opened, view(opened)) is None


def test_the_page_runs_and_follows_its_sliders(own_store: Path, open_app: Callable[..., AppTest]) -> None:
    app = open_app(own_store, "geometry", k="3", layer="2")
    assert not app.exception
    heads = " ".join(m.value for m in app.markdown)
    assert "block 2, mean over content: Z" in heads
    assert "gates read what" in heads
    app.slider(key="slide-layer").set_value(4).run()
    assert "block 4, mean over content: Z" in " ".join(m.value for m in app.markdown)


def test_prompts_in_one_language_leave_the_weights(
    own_store: Path, open_app: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "prompts", prompts_table().drop("language"))
    app = open_app(own_store, "geometry")
    assert not app.exception
    said = " ".join(m.value for m in app.markdown)
    assert "do not come in two languages" in said
    assert "neighbouring blocks" in said
    assert "Z separates" not in said


def separation(
    inside: float, outside: float, p: float, pairing: float, scales: float = 0.004
) -> sep.Separation:
    def band(value: float) -> Any:
        from engine.stats.uncertainty import Band

        one = np.array([value])
        return Band(one, one - 0.1, one + 0.1, one, 0.95, "")

    full = band(1.0).at(0)
    return sep.Separation(
        *((3,), 9, 20, band(inside), band(outside), full, np.ones((200, 1))),
        *(np.array([value]) for value in (p, pairing, scales)),
    )


def test_separation_is_said_only_with_both_conditions() -> None:
    def title(*values: float) -> str:
        return geometry_words.separation_title("here", separation(*values), 3)

    assert title(0.5, 0.9, 0.01, 0.001) == (
        "here: Z separates: ratio 0.50 (0.40 to 0.60) in Z, 0.90 outside; p = 0.01 against random subspaces"
    )
    large = title(0.5, 0.9, 0.01, 0.001, 0.3)
    assert "Z is not shown to separate" in large
    assert "30 % of subspaces with the same share of every coordinate do as well" in large
    assert "not shown to separate" in title(0.5, 0.9, 0.3, 0.001, float("nan"))
    assert "30 % of random subspaces do as well" in title(0.5, 0.9, 0.3, 0.001, float("nan"))
    assert "Z is not shown to separate; ratio" in title(0.9, 0.5, 0.01, 0.001, float("nan"))
    assert "nor is pairing told from chance (p = 0.4)" in title(0.9, 0.5, 0.9, 0.4, float("nan"))
    assert "undefined" in title(float("nan"), 0.5, 0.9, 0.4)


def test_words_about_weights_follow_their_rules() -> None:
    found = LayerStructure(0.1, 0.01, 2, 0.2, 3, 0.05, (3, 4), 8)
    assert geometry_words.structure_title("m", found) == (
        "m: neighbouring blocks read more alike subspaces than distant ones, by 0.100 (p = 0.01); sharpest "
        "drop: from block 2 to 3, by 0.200; least alike neighbours: 3 and 4 (0.050); "
        "not shown to be more alike than random subspaces: 3 and 4, 4 and 5"
    )
    assert "are not shown to" in geometry_words.structure_title("m", dataclasses.replace(found, p_gap=0.2))
    few = geometry_words.structure_title("m", dataclasses.replace(found, p_gap=1 / 12, blocks=4))
    assert few.startswith("m: 4 blocks are too few to tell")
    values, p = np.array([1.0, 0.5, 0.1]), np.array([0.0, 1e-6, 0.5])
    assert geometry_words.convergence_title("m", 0, values, p) == (
        "m: Z of block 1 resembles block 0's beyond chance (0.500)"
    )
    assert "no block's Z" in geometry_words.convergence_title("m", 0, values, np.array([0.0, 0.04, 0.5]))
    ratio, p = np.array([0.5, 1.0, 2.0]), np.array([0.9999, 0.5, 0.0001])
    assert geometry_words.gates_title("m", ratio, p, 1 - p).startswith(
        "m: gates read what the same block's keys read more than uniformly random subspaces in block 2 and "
        "less in block 0"
    )
    assert "nowhere shown to" in geometry_words.gates_title("m", ratio, p * 0 + 0.5, p * 0 + 0.5)
    few = np.full((LAYERS, HEADS), 3.0)
    few[0, 0] = 1.0
    title = geometry_words.ranks_title("m", few, np.zeros(LAYERS), np.linspace(2, 4, 100), 6)
    assert "1 of 15 heads fewer than random weights do (0.4 by chance)" in title
