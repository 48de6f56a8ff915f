"""Stores of more prompts than similarity looks at: what is kept, what is drawn, and what the pages say of it.

The planted store's 48 prompts are 24 pairs, streams of width 24, heads' values of width 18. Of 24 prompts at
most, Grams of the streams are kept (24 numbers are no more than the 24 features of a row) and those of heads
are not; of 30 at most, none are.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted_store import CHANGED, LAYERS, build_store, prompts_table, streams

from app.bridge import spaces
from app.bridge import tables as bridge_queries
from app.frame import prompts as queries
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults
from app.geometry import tables as geometry_queries
from app.similarity import panels as similarity
from app.similarity.tables import stack
from engine.errors import AnalysisError
from engine.similarity.cka import gram, linear_cka
from store.manifest import verify
from store.reader import Store

KEPT, DRAWN = 24, 30


def at(path: Path) -> Opened:
    store = Store(path)
    return Opened(str(path), store, read_facts(store))


@pytest.fixture(scope="module", params=[KEPT, DRAWN], ids=["kept", "drawn"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = tmp_path_factory.mktemp("many") / "store"
    return at(build_store(path, similarity_prompts=request.param))


@pytest.fixture
def chosen(opened: Opened) -> Selection:
    return defaults(opened.facts)


def most(opened: Opened) -> int:
    return queries.sampling(opened.store)[0]


def test_grams_are_kept_where_they_are_smaller_than_the_features(opened: Opened) -> None:
    store, kept = opened.store, most(opened) == KEPT
    found = {name for name in store.array_names() if name.startswith("grams/")}
    wanted = {
        f"grams/{model}/{position}/{component}"
        for model in store.models
        for position in store.positions()
        for component in ("resid", "attn_out", "mlp_out")
    }
    assert found == (wanted if kept else set())
    assert not store.has_grams("base", "head_z")
    assert (store.gram_prompts() is not None) == kept
    assert verify(opened.path) == []


def test_grams_of_the_sample_are_those_of_its_rows(opened: Opened) -> None:
    everyone = ("all", "all", "all")
    rows, raw = queries.looked_at(opened.store, everyone), streams()
    assert rows.size == most(opened)
    for model in ("base", "tuned"):
        for site, component, step in (("resid_post", "resid", 1), ("head_z", "head_z", 0)):
            found = stack(opened.store, model, site, "mean", everyone)
            for block in range(LAYERS):
                exact = gram(raw[model][component, block + step][rows])
                # float32 entries and sums of 24 products
                np.testing.assert_allclose(found[block], exact, rtol=0, atol=1e-6 * exact.max())


def test_samples_keep_pairs_whole_and_shares_fair(opened: Opened) -> None:
    part = prompts_table()[queries.looked_at(opened.store, ("all",) * 3)]
    assert set(part.group_by("pair_id").len()["len"]) == {2}
    share = most(opened) / 48
    for _, cell in prompts_table().group_by("split", "category"):
        seen = part.filter(split=cell["split"][0], category=cell["category"][0]).height
        assert abs(seen - share * cell.height) <= 2  # one pair


def test_filters_pick_from_the_kept_sample_or_draw_anew(opened: Opened) -> None:
    zh = np.flatnonzero((prompts_table()["language"] == "zh").to_numpy())
    found = queries.looked_at(opened.store, ("all", "zh", "all"))
    if most(opened) == KEPT:
        everyone = queries.looked_at(opened.store, ("all",) * 3)
        np.testing.assert_array_equal(found, np.intersect1d(zh, everyone))
    else:  # all 24 fit
        np.testing.assert_array_equal(found, zh)


def test_curve_and_captions_are_those_of_the_sample(opened: Opened, chosen: Selection) -> None:
    raw, rows = streams(), queries.looked_at(opened.store, ("all",) * 3)
    panel = similarity.curve_panel(opened, chosen)
    table = panel.table.filter(series="debiased").sort("layer")
    wanted = [
        linear_cka(*(raw[model]["resid", block + 1][rows] for model in ("base", "tuned")), debiased=True)
        for block in range(LAYERS)
    ]
    assert table["value"].to_numpy() == pytest.approx(wanted, abs=1e-5)
    assert (table["n"] == rows.size).all()
    assert (table["value"][CHANGED:] < 0.95).all(), "the planted change is found"
    half = float(((table["high"] - table["low"]) / 2).max())  # type: ignore[arg-type]
    assert f"{rows.size} prompts, a random sample of whole pairs of 48" in panel.caption
    assert f"sampling error at most ±{half:.2f}, in the band" in panel.caption
    grid = similarity.heatmap_panel(opened, chosen)
    assert f"{rows.size} prompts, a random sample of whole pairs of 48." in grid.caption


@pytest.mark.parametrize("site", ["resid_post", "head_z"])
@pytest.mark.parametrize("filtered", [{}, {"language": "en"}])
def test_the_code_gives_the_numbers_again(
    opened: Opened, chosen: Selection, site: str, filtered: dict[str, Any]
) -> None:
    selection = dataclasses.replace(chosen, site=site, **filtered)
    panels = [similarity.curve_panel(opened, selection), similarity.language_panel(opened, selection)]
    for panel in (p for p in panels if p is not None):
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"])


def test_too_few_of_the_sample_are_told_apart_from_too_few_prompts(opened: Opened) -> None:
    which = ("validation", "all", "add")
    assert queries.rows(opened.store, which).size == 8
    if most(opened) == KEPT:
        with pytest.raises(AnalysisError, match=r"too few of the sampled prompts.*4 of 8"):
            queries.looked_at(opened.store, which)
    else:
        assert queries.looked_at(opened.store, which).size == 8


def test_a_store_of_all_grams_is_sampled_when_its_study_asks(planted: Path) -> None:
    opened = at(planted)
    assert opened.store.gram_prompts() is None
    whole, which = opened.store.grams("base", "resid_post"), ("train", "en", "all")
    rows = queries.rows(opened.store, which)
    assert 8 <= rows.size < 48
    exact = gram(streams()["base"]["resid", 2][rows])
    found = stack(opened.store, "base", "resid_post", "last_content", which)
    np.testing.assert_allclose(found[1], exact, rtol=0, atol=1e-6 * exact.max())
    np.testing.assert_array_equal(
        stack(opened.store, "base", "resid_post", "last_content", ("all", "all", "all")), whole
    )


def test_many_problems_are_a_sample_and_it_is_said(
    opened: Opened, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = geometry_queries.problem_rows(opened.store, chosen.split, chosen.category)
    assert every[0].size == 24
    assert geometry_queries.problem_count(opened.store, chosen.split, chosen.category) == "24 problems"
    one, two = geometry_queries.problem_rows(opened.store, chosen.split, chosen.category, 10)
    pairs = prompts_table()["pair_id"]
    assert one.size == 10
    assert pairs.gather(one).to_list() == pairs.gather(two).to_list()
    assert set(one) < set(every[0])
    said = geometry_queries.problem_count(opened.store, chosen.split, chosen.category, 10)
    assert said == "10 problems, a random sample of 24,"
    monkeypatch.setattr(bridge_queries, "MOST", 10)
    selection = spaces.effective(opened, chosen)
    found = bridge_queries.coordinates(opened.store, **spaces.place(selection), layer=0, space="blocks")
    assert len(found[selection.k][0]) == 10
