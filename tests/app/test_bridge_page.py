"""The page of the bridge: numbers from raw arrays, code that gives the tables, quick sliders, words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import streamlit as st
from drawn_panels import drawn
from planted_store import HEAD_DIM, LAYERS, PAIRS, prompts_table, streams
from streamlit.testing.v1 import AppTest

from app.bridge import panels as bridge
from app.bridge import spaces
from app.bridge import tables as bridge_queries
from app.bridge import words as bridge_words
from app.bridge.fields import BridgeFields
from app.charts.palette import DARK, LIGHT
from app.frame import export
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, changed, defaults
from app.geometry import tables as geometry_queries
from app.live.run import save
from engine.ard.spec import Ard
from engine.bridge.numbers import DEFAULT_ALPHAS, Profile, fit_bridge
from engine.errors import AnalysisError
from engine.geometry import z as subspace
from engine.lab.experiment import ExperimentResult
from store.reader import Store

Open = Callable[..., AppTest]
VIEWS: dict[str, dict[str, Any]] = {
    "default": {"k": 4},
    "back": {"k": 3, "way": "back", "model": "b", "site": "resid_pre", "pairing": "category"},
    "uncentred": {"k": 4, "intercept": "no"},
    "across": {"k": 4, "pairing": "across"},
    "interpolating": {"k": 6, "fit": "minimum_norm", "split": "validation", "joined": "kernels"},
}


@pytest.fixture
def opened(planted: Path) -> Opened:
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(planted)
    return Opened(str(planted), store, read_facts(store))


def view(opened: Opened, name: str = "default", **more: Any) -> Selection:
    changes = {"layer": 1, "position": "mean", **VIEWS[name], **more}
    return spaces.effective(opened, changed(defaults(opened.facts), **changes))


def kinds(opened: Opened, selection: Selection) -> list[str] | None:
    within = spaces.within(opened, selection)
    return bridge_queries.kinds(opened.store, selection.split, selection.category, within)


def profiled(opened: Opened, selection: Selection) -> tuple[list[int], Profile]:
    found = bridge_queries.along(opened.store, **spaces.over_blocks(opened, selection))
    return spaces.blocks(opened, selection), found


def by_hand(opened: Opened, selection: Selection, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of both languages from the arrays that the store was made of."""
    prompts = prompts_table().with_row_index("row")
    kept = prompts if selection.split == "all" else prompts.filter(pl.col("split") == selection.split)
    model = "base" if selection.model == "a" else "tuned"
    state = streams()[model]["resid", layer + (selection.site == "resid_post")]
    right, sigma = (opened.store.array(f"weights/{model}/kernel_{n}")[layer] for n in ("right", "sigma"))
    z = subspace.multi_head_basis(right, sigma, selection.k, selection.joined)  # type: ignore[arg-type]
    sides = []
    for language in ("en", "zh"):
        rows = kept.filter(pl.col("language") == language).sort("row")["row"].to_numpy()
        sides.append(state[rows] @ z)
    return (sides[0], sides[1]) if BridgeFields.of(selection).way == "forth" else (sides[1], sides[0])


@pytest.mark.parametrize("name", VIEWS)
def test_figures_are_those_of_the_raw_activations(opened: Opened, name: str) -> None:
    selection = view(opened, name)
    x, y = by_hand(opened, selection, selection.layer)
    found = bridge_queries.fitted(opened.store, **spaces.at_block(opened, selection))
    own = BridgeFields.of(selection)
    options: Any = {"method": own.fit, "center": own.intercept == "yes"}
    wanted = fit_bridge(x, y, groups=kinds(opened, selection), **options)
    assert (found.n, found.k) == x.shape
    # coordinates differ by float32 storage and by the order of sums
    assert found.r2_loo == pytest.approx(wanted.r2_loo, abs=1e-4)
    assert found.r2_train == pytest.approx(wanted.r2_train, abs=1e-4)
    np.testing.assert_allclose(found.null, wanted.null, atol=1e-3)
    blocks, along = profiled(opened, selection)
    assert blocks == list(range(LAYERS))
    for block in blocks:
        one = fit_bridge(*by_hand(opened, selection, block), draws=1, **options)
        assert along.r2_loo[block] == pytest.approx(one.r2_loo, abs=1e-4)


@pytest.mark.parametrize("name", VIEWS)
def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, name: str) -> None:
    selection = view(opened, name)
    panels = bridge.panels(opened, selection)
    assert len(panels) == (5 if BridgeFields.of(selection).fit == "minimum_norm" else 6)
    assert len({panel.name for panel in panels}) == len(panels)
    for panel in panels:
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"]), panel.name
        for palette in (LIGHT, DARK):
            drawn(panel, palette)
        assert panel.title in export.svg_bytes(panel.draw(LIGHT), panel.title).decode().replace("&apos;", "'")
        assert "problems" in panel.caption
        assert "nan" not in panel.title + panel.caption
        assert export.csv_bytes(panel.table)


def test_too_few_problems_for_so_many_coordinates_is_said(opened: Opened) -> None:
    assert bridge.warning(opened, view(opened)) is None
    small = view(opened, k=HEAD_DIM, split="validation", category="add")
    with pytest.raises(AnalysisError, match="too few problems"):
        bridge.warning(opened, small)
    rng = np.random.default_rng(0)
    few = fit_bridge(rng.normal(size=(8, 9)), rng.normal(size=(8, 9)), method="minimum_norm", draws=19)
    assert few.underdetermined
    assert bridge_words.underdetermined(few).startswith("N = 8 problems and k = 9 coordinates")


def test_prepare_reports_only_what_it_computes(opened: Opened) -> None:
    told: list[tuple[int, int]] = []
    prepare = spaces.prepare
    prepare(opened, view(opened), lambda text: lambda done, total: told.append((done, total)))
    assert told == [(block + 1, LAYERS) for block in range(LAYERS)]
    prepare(opened, view(opened, k=2, way="back"), lambda text: pytest.fail("nothing to prepare"))


def profile_of(r2: list[float], p: list[float]) -> Profile:
    values = np.array(r2)
    return Profile(values, values - 1, values - 0.9, np.zeros(9), np.array(p))


def test_titles_follow_their_rules() -> None:
    every = bridge_words.profile_title("base", [0, 1], profile_of([0.7, 0.5], [0.01, 0.04]))
    assert every == "base: the bridge holds up on left-out problems at every block (R² 0.50 to 0.70)"
    one = bridge_words.profile_title("base", [0, 1], profile_of([0.7, 0.5], [0.01, 0.05]))
    assert one.endswith("at block 0 (R² 0.70)")
    none = bridge_words.profile_title("base", [0, 1], profile_of([0.1, -0.2], [0.2, 0.6]))
    assert none == "base: at no block is the left-out R² shown to be above permuted pairs"
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30, 3))
    good = fit_bridge(x, x + 0.1 * rng.normal(size=x.shape))
    assert "thin wrapper" in bridge_words.scores_title("base", good)
    assert "is above permuted pairs" in bridge_words.null_title(good, within=False)
    bad = fit_bridge(x, rng.normal(size=x.shape))
    assert bridge_words.scores_title("base", bad).startswith("base: No bridge found")
    assert "is not above pairs permuted within categories" in bridge_words.null_title(bad, within=True)
    end = "; pairs of all categories were exchanged, against which a shared category is enough"
    assert bridge_words.scores_title("base", good, across=True).endswith(end)
    assert not bridge_words.scores_title("base", bad, across=True).endswith(end)
    assert bridge_words.profile_title("b", [0], profile_of([0.7], [0.01]), across=True).endswith(end)
    alone = fit_bridge(x, x, groups=np.arange(30))
    assert "are too few to permute (p = 1 at the least)" in bridge_words.null_title(alone, within=True)
    few = dataclasses.replace(profile_of([0.7], [0.01]), least_p=0.25)
    assert (
        bridge_words.profile_title("b", [0], few)
        == "b: too few problems of one category to tell at any block"
    )
    assert "at the end of the path" in bridge_words.path_title(bad)
    middle = fit_bridge(x, x + 2.0 * rng.normal(size=x.shape))
    assert DEFAULT_ALPHAS[0] < middle.alpha < DEFAULT_ALPHAS[-1]
    assert "at the end" not in bridge_words.path_title(middle)
    assert bridge_words.map_title(np.eye(4)).startswith("100 % of W's squared entries")
    assert "; 25 % in a W" in bridge_words.map_title(np.ones((4, 4)))


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    said = "\n".join([*(m.value for m in app.markdown), *(c.value for c in app.caption)])
    assert "Something went wrong" not in said
    return said


def test_the_page_on_a_store_with_pairs_and_on_one_without(
    planted: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_app(planted, "bridge", k="4", position="mean")
    said = text(app)
    assert "block 2, en → zh" in said
    assert "W's singular values" in said
    back = open_app(planted, "bridge", k="4", way="back", fit="minimum_norm")
    assert "block 2, zh → en" in text(back)
    few = open_app(planted, "bridge", split="validation", category="add")
    assert "too few problems in both languages" in text(few)
    alone = prompts_table().with_columns(language=pl.lit("en"))
    monkeypatch.setattr(Store, "prompts", property(lambda _store: alone))
    assert bridge.WHY_EMPTY[0] in text(open_app(planted, "bridge"))


def test_a_store_of_eight_pairs_at_least_is_bridged(opened: Opened) -> None:
    found = bridge_queries.fitted(opened.store, **spaces.at_block(opened, view(opened)))
    assert found.n == PAIRS
    assert found.p < 0.05


def test_dimensions_of_a_stored_fit_stand_for_z(own_store: Path) -> None:
    """The k of smallest lengthscale, at the blocks that have a fit; uncentred through the origin, "
    "by lstsq."""
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    selection = view(opened, k=2, space="ard", intercept="no", fit="minimum_norm")
    said = spaces.hint(opened, selection)
    assert said is not None
    assert "run one of them first" in said
    with pytest.raises(AnalysisError, match="No fit of lengthscales at block 1 is stored"):
        spaces.space_of(opened, selection, 1)
    d = store.model_info("base")["d"]
    logs = np.random.default_rng(0).normal(size=d)
    table = pl.DataFrame({"draw": 0, "dimension": range(d), "log10_lengthscale": logs, "start": 0.0})
    result = ExperimentResult({"fits": [{"collapsed": False, "held_out": None}]}, {"table": table})
    wanted = {"model": "base", "component": selection.site, "layer": 1, "languages": ("en", "zh")}
    save(str(own_store), store.fingerprint, Ard(**wanted), result)
    st.cache_data.clear()
    assert spaces.hint(opened, selection) is None
    assert spaces.blocks(opened, selection) == [1]
    order = np.argsort(logs)[:2]
    prompts, state = prompts_table().with_row_index("row"), streams()["base"]["resid", 2]
    x, y = (
        state[prompts.filter(pl.col("language") == name)["row"].to_numpy()][:, order].astype(float)
        for name in ("en", "zh")
    )
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    found = bridge_queries.fitted(opened.store, **spaces.at_block(opened, selection))
    np.testing.assert_allclose(found.w, w, rtol=1e-3, atol=1e-5)  # the store keeps bfloat16 or float32
    total = ((y - y.mean(axis=0)) ** 2).sum()
    assert found.r2_train == pytest.approx(1 - ((y - x @ w) ** 2).sum() / total, abs=1e-4)
    for panel in bridge.panels(opened, selection):
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"]), panel.name
        assert "dimensions of smallest lengthscale" in panel.caption or panel.name in ("bridge-path",)


def test_a_newer_fit_of_lengthscales_is_the_one_shown_and_told(own_store: Path) -> None:
    """Nothing kept of another fit stands for it: not at the block, and not along the blocks."""
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(own_store)
    opened = Opened(str(own_store), store, read_facts(store))
    d = store.model_info("base")["d"]

    def fit(layer: int, first: tuple[int, int], **more: Any) -> None:
        logs = np.zeros(d)
        logs[list(first)] = -2.0, -1.0
        table = pl.DataFrame({"draw": 0, "dimension": range(d), "log10_lengthscale": logs, "start": 0.0})
        result = ExperimentResult({"fits": [{"collapsed": False, "held_out": None}]}, {"table": table})
        asked = Ard(model="base", component="resid_post", layer=layer, languages=("en", "zh"), **more)
        save(str(own_store), store.fingerprint, asked, result)

    def by_lstsq(layer: int, first: tuple[int, int]) -> np.ndarray:
        prompts, state = prompts_table().with_row_index("row"), streams()["base"]["resid", layer + 1]
        x, y = (
            state[prompts.filter(pl.col("language") == name)["row"].to_numpy()][:, list(first)].astype(float)
            for name in ("en", "zh")
        )
        return np.linalg.lstsq(x, y, rcond=None)[0]

    choices: dict[str, Any] = {"k": 2, "intercept": "no", "fit": "minimum_norm"}
    heads = view(opened, **choices)
    bridge_queries.fitted(opened.store, **spaces.at_block(opened, heads))
    selection = view(opened, space="ard", **choices)
    with pytest.raises(AnalysisError, match="No fit of lengthscales at block 1 is stored"):
        bridge_queries.fitted(opened.store, **spaces.at_block(opened, selection))
    fit(1, (3, 0))
    np.testing.assert_allclose(
        bridge_queries.fitted(opened.store, **spaces.at_block(opened, selection)).w,
        by_lstsq(1, (3, 0)),
        rtol=1e-3,
        atol=1e-5,
    )
    assert profiled(opened, selection)[0] == [1]
    fit(0, (1, 2))
    blocks, found = profiled(opened, selection)
    assert (blocks, found.r2_loo.shape) == ([0, 1], (2,))
    fit(1, (2, 4), objective="paired", start="svd", k=3, fitted="all", category="add")
    np.testing.assert_allclose(
        bridge_queries.fitted(opened.store, **spaces.at_block(opened, selection)).w,
        by_lstsq(1, (2, 4)),
        rtol=1e-3,
        atol=1e-5,
    )
    newer = "paired, λ = 0.01, warm start by Z (k = 3), fitted on all problems of add"
    scores, along, *_ = bridge.panels(opened, selection)
    assert f"Lengthscales: {newer}. Left out" in scores.caption
    older = "contrastive, λ = 0.01, cold start, fitted on train problems of all categories"
    assert f"Lengthscales: block 0: {older}; block 1: {newer}." in along.caption


def test_by_default_pairs_keep_their_category(opened: Opened) -> None:
    usual, across, one = view(opened), view(opened, "across"), view(opened, category="add")
    rows = geometry_queries.problem_rows(opened.store, usual.split, usual.category, bridge_queries.MOST)[0]
    assert kinds(opened, usual) == opened.store.prompts["category"].gather(rows).to_list()
    assert kinds(opened, across) is None
    assert kinds(opened, one) is None
    captions = [bridge.panels(opened, chosen)[0].caption for chosen in (usual, across)]
    assert "with another of problems of its category, so that sharing a category is not enough" in captions[0]
    assert "with another of all problems" in captions[1]
    assert view(opened, pairing="category") != usual  # an older link
    assert kinds(opened, view(opened, pairing="category")) == kinds(opened, usual)
