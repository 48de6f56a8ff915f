"""Panels on the planted store: the numbers are the planted ones, and the code shown gives them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted_store import CHANGED, HEAD_DIM, LAYERS, WIDTH, prompts_table, streams

from app.charts.palette import DARK, LIGHT
from app.frame import export, words
from app.frame import prompts as queries
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, changed, defaults
from app.overview import panels as overview
from app.residual_updates import panels as updates
from app.residual_updates import tables as update_queries
from app.similarity import panels as similarity
from app.similarity import tables
from engine.geometry.z import multi_head_basis
from engine.residual_updates.numbers import chance_ratio
from engine.similarity.cka import gram, linear_cka, permutation_null
from store.reader import Store

ROUNDING = 1e-6
"""Gram matrices are float32 (unit 6e-8); the code centres a subset where the page takes the whole."""

MAKERS: dict[str, Callable[[Opened, Selection], Panel | None]] = {
    "cka": similarity.curve_panel,
    "cka-language": similarity.language_panel,
    "cka-grid": similarity.heatmap_panel,
    "updates": updates.curve_panel,
    "updates-language": updates.language_panel,
    "updates-asymmetry": updates.asymmetry_panel,
    "updates-norms": updates.norms_panel,
    "updates-split": updates.split_panel,
}


@pytest.fixture(scope="module")
def opened(planted: Path) -> Opened:
    store = Store(planted)
    return Opened(str(planted), store, read_facts(store))


@pytest.fixture
def chosen(opened: Opened) -> Selection:
    return defaults(opened.facts)


def make(opened: Opened, selection: Selection, name: str) -> Panel:
    if name.startswith("updates"):
        selection = updates.effective(opened, selection)
    panel = MAKERS[name](opened, selection)
    assert panel is not None
    return panel


def values(panel: Panel, series: str) -> np.ndarray:
    return panel.table.filter(pl.col("series") == series).sort("layer")["value"].to_numpy()


def test_similarity_is_one_before_the_planted_change_and_drops_there(
    opened: Opened, chosen: Selection
) -> None:
    panel = make(opened, chosen, "cka")
    debiased = values(panel, "debiased")
    assert np.abs(debiased[:CHANGED] - 1).max() < 1e-6  # equal inputs; float32 Gram matrices
    assert (debiased[CHANGED:] < 0.95).all()
    assert panel.title.startswith(f"tuned leaves base at block {CHANGED} (resid_post): identical before")


def test_the_curve_is_the_analysis_on_the_raw_features(opened: Opened, chosen: Selection) -> None:
    raw = streams()
    panel = make(opened, chosen, "cka")
    for debiased, name in ((True, "debiased"), (False, "biased")):
        wanted = [
            linear_cka(raw["base"]["resid", b + 1], raw["tuned"]["resid", b + 1], debiased)
            for b in range(LAYERS)
        ]
        assert values(panel, name) == pytest.approx(wanted, abs=1e-5)  # stored Grams are float32


def test_filters_pick_the_prompts(opened: Opened, chosen: Selection) -> None:
    keep = (prompts_table()["language"] == "zh").to_numpy()
    raw = streams()
    panel = make(opened, dataclasses.replace(chosen, language="zh"), "cka")
    wanted = linear_cka(raw["base"]["resid", LAYERS][keep], raw["tuned"]["resid", LAYERS][keep], True)
    assert values(panel, "debiased")[-1] == pytest.approx(wanted, abs=1e-5)
    assert panel.table["n"][0] == keep.sum()


def test_only_the_changed_site_differs(opened: Opened, chosen: Selection) -> None:
    attention = values(make(opened, dataclasses.replace(chosen, site="attn_out"), "cka"), "debiased")
    assert attention.argmin() == CHANGED
    assert np.delete(attention, CHANGED) == pytest.approx(1.0, abs=1e-6)
    mlp = make(opened, dataclasses.replace(chosen, site="mlp_out"), "cka")
    assert mlp.title == "base and tuned have the same geometry at mlp_out in every block"


def test_unrelated_pairing_gives_the_null_not_one(opened: Opened, chosen: Selection) -> None:
    null = tables.cka_null(opened.store, **similarity.place(chosen), estimator="debiased")
    assert (null["high"] < 0.8).all()
    assert (null["p"] <= 0.05).all()


def with_prompts(opened: Opened, name: str, prompts: pl.DataFrame) -> Opened:
    """The same store, whose prompts say something else of themselves."""
    store = type("Told", (Store,), {"prompts": prompts})(Path(opened.path))
    return dataclasses.replace(opened, path=f"{opened.path}?{name}", store=store)


def test_wrong_pairings_stay_within_language_and_category(opened: Opened, chosen: Selection) -> None:
    """What categories have in common is no shared geometry: two unrelated models look alike across them."""
    rng, n = np.random.default_rng(0), 48
    category = np.repeat(np.arange(4), 12)
    one, two = (3 * rng.normal(size=(4, 12))[category] + rng.normal(size=(n, 12)) for _ in range(2))
    grams = [gram(x) for x in (one, two)]
    loose = permutation_null(*grams, n_draws=199)
    assert loose.observed > loose.high  # where pairings cross categories, this is called shared
    prompts = pl.DataFrame({"category": [f"c{i}" for i in category], "language": ["en"] * n})
    labels, within = queries.kinds(with_prompts(opened, "kinds", prompts).store, np.arange(n))
    assert within == "category"
    held = permutation_null(*grams, roles=labels, n_draws=199)
    assert held.low < held.observed < held.high
    both = queries.kinds(opened.store, np.arange(2 * 24))
    assert both[1] == "language and category"
    table = prompts_table()
    wanted = table.select(pl.concat_str("language", "category", separator="\n"))[:, 0].to_list()
    assert both[0] is not None
    assert both[0].tolist() == wanted
    single = prompts.with_columns(category=pl.Series([f"c{i // 2}" for i in range(n)]))
    few = with_prompts(opened, "few", single[:4])
    assert queries.kinds(few.store, np.arange(4))[1] == ""  # two categories of two: four orders tell nothing
    assert "paired wrongly within their language and category" in make(opened, chosen, "cka").caption


def test_many_categories_are_drawn_whole(opened: Opened, chosen: Selection) -> None:
    """Intervals of CKA and R draw categories of which there are 20, as those of patches do."""
    assert queries.unit_said(opened.store, ("all", "all", "all")) == "pair"
    table = prompts_table()
    of = table.with_columns(category=pl.concat_str(pl.lit("t"), pl.int_range(pl.len()) // 2 % 22))
    clustered = with_prompts(opened, "clusters", of)
    assert queries.unit_said(clustered.store, ("all", "all", "all")) == "category cluster"
    drawn = queries.units(clustered.store, np.arange(of.height))
    assert drawn is not None
    assert len(set(drawn.tolist())) == 22
    assert [len(set(drawn[np.array(of["category"] == name)].tolist())) for name in ("t0", "t21")] == [1, 1]
    panel = similarity.curve_panel(clustered, chosen)
    assert "bootstrap over category clusters" in panel.caption
    plain = make(opened, chosen, "cka")
    assert values(panel, "debiased") == pytest.approx(values(plain, "debiased"), abs=ROUNDING)
    assert panel.table["low"].to_list() != plain.table["low"].to_list()


def test_a_block_without_a_null_does_not_hide_the_range_of_the_others(
    opened: Opened, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    null = tables.cka_null(opened.store, **similarity.place(chosen), estimator="debiased")
    first = pl.when(pl.col("layer") == 0).then(float("nan"))
    holed = null.with_columns(first.otherwise(pl.col(c)).alias(c) for c in ("low", "high"))
    monkeypatch.setattr(tables, "cka_null", lambda *_, **__: holed)
    panel = make(opened, chosen, "cka")
    least, most = min(null["low"].to_list()[1:]), max(null["high"].to_list()[1:])
    assert f"here {words.number(least)} to {words.number(most)}." in panel.caption
    assert "unrelated" not in panel.title


def test_prompts_partly_in_pairs_are_called_paired(opened: Opened) -> None:
    pairs = {"some": ["a", "a", None], "none": [None, None, None], "alone": ["a", "b", None]}
    found = {}
    for name, ids in pairs.items():
        table = pl.DataFrame({"pair_id": ids}, schema={"pair_id": pl.String})
        stub = Opened(opened.path, SimpleNamespace(prompts=table), opened.facts)  # type: ignore[arg-type]
        found[name] = queries.paired(stub.store)
    assert found == {"some": True, "none": False, "alone": False}


def test_updates_are_measured_against_the_stored_kernels(opened: Opened, chosen: Selection) -> None:
    effective = updates.effective(opened, dataclasses.replace(chosen, k=3, ref=1))
    panel = make(opened, dataclasses.replace(chosen, k=3, ref=1), "updates")
    raw = streams()["base"]
    store = opened.store
    name = update_queries.kernel_name("base")
    basis = multi_head_basis(store.array(name)[1], store.array(name.replace("right", "sigma"))[1], 3)
    wanted = []
    for block in range(LAYERS):
        delta = raw["resid", block + 1] - raw["resid", block]
        inside = np.linalg.norm(delta @ basis, axis=1)
        outside = np.linalg.norm(delta - delta @ basis @ basis.T, axis=1)
        wanted.append(inside.mean() / outside.mean())
    assert values(panel, "base") == pytest.approx(wanted, rel=1e-4)
    assert panel.table["chance"][0] == pytest.approx(chance_ratio(WIDTH, 3))
    over = make(opened, dataclasses.replace(effective, scale="r_over_chance"), "updates")
    assert values(over, "base") == pytest.approx(np.array(wanted) / chance_ratio(WIDTH, 3), rel=1e-4)


def test_lengths_and_asymmetry_are_those_of_the_raw_updates(opened: Opened, chosen: Selection) -> None:
    selection = dataclasses.replace(chosen, k=3, ref=1)
    raw, store = streams()["base"], opened.store
    name = update_queries.kernel_name("base")
    basis = multi_head_basis(store.array(name)[1], store.array(name.replace("right", "sigma"))[1], 3)
    spoken = prompts_table()["language"].to_numpy()
    norms, apart = (make(opened, selection, f"updates-{n}") for n in ("norms", "asymmetry"))
    for block in range(LAYERS):
        delta = raw["resid", block + 1] - raw["resid", block]
        inside = np.linalg.norm(delta @ basis, axis=1)
        outside = np.linalg.norm(delta - delta @ basis @ basis.T, axis=1)
        for series, wanted in (
            ("whole", np.linalg.norm(delta, axis=1).mean()),
            ("outside Z", outside.mean()),
            ("in Z", inside.mean()),
            ("in Z by chance", outside.mean() * chance_ratio(WIDTH, 3)),
        ):
            assert values(norms, series)[block] == pytest.approx(wanted, rel=1e-4)
        one, two = (inside[spoken == s].mean() / outside[spoken == s].mean() for s in ("en", "zh"))
        assert apart.table["value"][block] == pytest.approx(one - two, abs=1e-5)
    assert "in Z by chance" in norms.caption


def test_every_rank_of_a_narrow_head_is_offered() -> None:
    assert update_queries.offered_ranks(HEAD_DIM) == tuple(range(1, HEAD_DIM + 1))
    assert update_queries.offered_ranks(128)[-1] == 64
    assert max(np.diff(update_queries.offered_ranks(64))) <= 16


VIEWS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "filtered": {"language": "en", "split": "train"},
    "other": {
        "interval": "jackknife",
        "estimator": "biased",
        "site": "head_z",
        "position": "mean",
        "model": "b",
    },
    "scaled": {"scale": "r_over_chance", "mean": "mean_of_ratios", "k": 2, "ref": 0},
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", MAKERS)
def test_the_code_of_a_panel_gives_its_numbers_again(
    opened: Opened, chosen: Selection, name: str, view: str
) -> None:
    selection = changed(chosen, **VIEWS[view])
    if name.endswith(("language", "asymmetry")) and selection.language != "all":
        maker_input = updates.effective(opened, selection) if name.startswith("updates") else selection
        assert MAKERS[name](opened, maker_input) is None
        return
    panel = make(opened, selection, name)
    scope: dict[str, Any] = {}
    exec(panel.code, scope)
    assert panel.table.equals(scope["table"])


@pytest.mark.parametrize("name", ["prompts", "disk"])
def test_the_code_of_the_overview_panels_runs(opened: Opened, name: str) -> None:
    panel = {"prompts": overview.prompts_panel, "disk": overview.disk_panel}[name](opened)
    scope: dict[str, Any] = {}
    exec(panel.code, scope)
    table = scope["table"]
    if name == "prompts":
        assert table["value"].sum() == panel.table["value"].sum() == prompts_table().height
    else:
        shown = dict(zip(panel.table["name"], panel.table["value"], strict=True))
        assert shown == pytest.approx({name: table[name] / 1e6 for name in shown})


@pytest.mark.parametrize("name", MAKERS)
def test_panels_draw_valid_charts_and_files(opened: Opened, chosen: Selection, name: str) -> None:
    panel = make(opened, chosen, name)
    for palette in (LIGHT, DARK):
        panel.chart(palette).to_dict()
    assert panel.title.split()[0] in export.svg_bytes(panel.draw(LIGHT), panel.title).decode()
    assert panel.caption
    assert len(panel.title) < 300


def test_the_selected_layer_is_marked_in_every_layer_chart(opened: Opened, chosen: Selection) -> None:
    for name in MAKERS:
        spec = make(opened, dataclasses.replace(chosen, layer=3), name).draw(LIGHT).spec()
        marked = [part["data"]["values"][0] for part in spec["layer"] if part["mark"]["type"] == "rect"]
        assert any(row.get("x") == 2.5 or row.get("layer") == 3 for row in marked), name
        assert [param["name"] for param in spec["params"]] == ["pick"], name
