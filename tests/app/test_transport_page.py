"""The transport page on the planted store: numbers from the raw features, sliders that read nothing again,
results kept for the next process, and maps that leave and come back."""

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
from planted_store import CHANGED, LAYERS, WIDTH, prompts_table, streams
from sklearn.metrics import r2_score
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT, Palette
from app.frame import export
from app.frame.opened import Opened, read_facts
from app.frame.panel import Panel
from app.frame.selection import Selection, changed, defaults
from app.patching import words as patch_words
from app.transport import panels as transport
from app.transport import places as transport_table
from app.transport import saved as saved_maps
from app.transport import tables as tq
from app.transport import words as transport_words
from app.transport.fields import METHODS
from engine.errors import AnalysisError, StoreError
from engine.transport import RidgeTransport, ScaledProcrustes, Span, export_map
from engine.transport.sides import Paired
from store.maps import MapLog, SavedMap, from_bytes, to_bytes
from store.reader import Store

VIEWS: dict[str, dict[str, Any]] = {
    "default": {},
    "rank": {"rank": 3, "shrink": 0.3},
    "pca": {"method": "PCAProcrustes", "rank": 4},
    "ridge": {"method": "RidgeTransport"},
    "set": {"method": "RidgeTransport", "lam_mode": "set", "lam": 1.25},
    "logit": {"method": "LogitSubspaceRidge", "q": 5},
    "joint": {"method": "LogitSubspaceRidge", "q": 5, "joint": "yes", "lam_from": -6.0},
    "joint pca": {"method": "PCAProcrustes", "rank": 4, "joint": "yes"},
    "seed": {"rank": 3, "map_scale": "seed"},
    "small": {"method": "RidgeTransport", "lam_mode": "set", "lam": -6.0},
    "clusters": {"clusters": 2, "rank": 2},
    "ridges": {"method": "RidgeTransport", "clusters": 2},
    "moments": {"method": "MomentMatching", "target": "a", "site": "head_z"},
    "identity": {"method": "Identity", "position": "mean", "site": "resid_pre"},
}


@pytest.fixture
def opened(own_store: Path) -> Opened:
    st.cache_resource.clear()
    st.cache_data.clear()
    store = Store(own_store)
    return Opened(str(own_store), store, read_facts(store))


def anew(opened: Opened) -> Opened:
    """As another process has it: nothing is kept but what lies in the store."""
    return dataclasses.replace(opened, store=Store(opened.path))


def view(opened: Opened, name: str = "default", **more: Any) -> Selection:
    changes = {"layer": CHANGED, **VIEWS[name], **more}
    return transport.effective(opened, changed(defaults(opened.facts), **changes))


def panels(opened: Opened, selection: Selection) -> dict[str, Panel]:
    made = (make(opened, selection) for make in transport.PANELS)
    return {panel.name: panel for panel in made if panel is not None}


def split(name: str) -> np.ndarray:
    return (prompts_table()["split"] == name).to_numpy()


def value(panel: Panel, name: str) -> float:
    return float(panel.table.filter(pl.col("name") == name)["value"][0])


def test_scores_are_those_of_the_raw_features(opened: Opened) -> None:
    raw = streams()
    train, validation = split("train"), split("validation")
    x, y = (raw[m]["resid", CHANGED + 1].astype(float) for m in ("base", "tuned"))
    fitted = ScaledProcrustes(0.3, 3).fit(x[train], y[train])
    panel = panels(opened, view(opened, "rank"))["map-scores"]
    for name, part in (("train", train), ("validation", validation)):
        wanted = r2_score(y[part], fitted.predict(x[part]), multioutput="variance_weighted")
        assert value(panel, f"R², {name}") == pytest.approx(wanted, rel=1e-9)
    assert "16 validation prompts" in panel.caption
    assert "bootstrap over pairs" in panel.caption
    lower = view(opened, layer=CHANGED - 1)
    assert value(panels(opened, lower)["map-scores"], "CKA of the models, debiased") == pytest.approx(1.0)


def test_dimensions_that_do_not_vary_are_counted(opened: Opened) -> None:
    assert "do not vary on train" not in panels(opened, view(opened))["map-scores"].caption
    said = transport_words.constant_note(3, 1)
    assert said == "3 of the source's dimensions and 1 of the target's do not vary on train."
    assert transport_words.constant_note(0, 0) == ""
    note = patch_words.map_note(
        {
            "map": {"words": "ridge", "n": 4, "r2_train": 1.0, "r2_validation": None, "r2_shuffled": None},
            "constant_dimensions": {"source": 3, "target": 1},
        }
    )
    assert note.endswith(said)


def test_the_penalty_is_chosen_on_train_with_pairs_left_out_together(opened: Opened) -> None:
    raw, train = streams(), split("train")
    x, y = (raw[m]["attn_out", CHANGED][train] for m in ("base", "tuned"))
    pairs = prompts_table()["pair_id"].to_numpy()[train]
    alone, grouped = RidgeTransport().fit(x, y), RidgeTransport().fit(x, y, groups=pairs)
    assert alone.alpha_ != grouped.alpha_  # partners share their problem, so they help each other
    shown = panels(opened, view(opened, "ridge", site="attn_out"))
    assert shown["map-path"].title.startswith(
        f"λ = {grouped.alpha_:.4g}, chosen by leave-one-pair-out on train"
    )
    moved = panels(opened, view(opened, "set", site="attn_out"))["map-path"]
    assert moved.title.startswith("λ = 17.78, set by hand")
    marks = [p["data"]["values"][0].get("label") for p in moved.draw(LIGHT).spec()["layer"]]
    assert {f"leave-one-pair-out: {grouped.alpha_:.4g}", "set: 17.78"} <= set(marks)


@pytest.mark.parametrize("name", VIEWS)
def test_the_code_of_a_panel_gives_its_table(opened: Opened, name: str) -> None:
    for panel in panels(opened, view(opened, name)).values():
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert panel.table.equals(scope["table"]), panel.name


@pytest.mark.parametrize(("name", "palette"), [("default", LIGHT), ("set", DARK)])
def test_panels_draw_valid_charts(opened: Opened, name: str, palette: Palette) -> None:
    for panel in panels(opened, view(opened, name)).values():
        drawn(panel, palette)
        assert panel.caption
        assert len(panel.title) < 300
        assert b"<svg" in export.svg_bytes(panel.draw(LIGHT), panel.title)[:200]


def test_sliders_read_no_activation_and_decompose_none(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("default", "ridge", "logit", "pca"):
        panels(opened, view(opened, name))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("activations were read or decomposed again")

    monkeypatch.setattr(Store, "activations", refuse)
    for place in ("default", "ridge", "pca"):  # the small ridge in q directions is decomposed, no side is
        with monkeypatch.context() as local:
            local.setattr(Span, "of", refuse)
            changes = {
                "default": {"rank": 5, "shrink": 0.4},
                "ridge": {"lam_mode": "set"},
                "pca": {"rank": 2},
            }
            assert panels(opened, view(opened, place, **changes[place]))
    assert panels(opened, view(opened, "logit", q=7, lam_mode="set"))


def test_the_next_process_finds_the_decompositions(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    before = panels(opened, view(opened))["map-scores"].table
    kept = MapLog(opened.path, kept=True).names()
    assert sum(name.startswith("side-") for name in kept) == 2
    opened = anew(opened)

    def refuse(*_: object) -> None:
        raise AssertionError("decomposed again")

    monkeypatch.setattr(Span, "of", refuse)
    assert panels(opened, view(opened))["map-scores"].table.equals(before)
    # what enters block 2 is what leaves block 1: the same state, whose decompositions are kept under one name
    monkeypatch.undo()
    panels(opened, view(opened, site="resid_pre", layer=CHANGED + 1))
    assert MapLog(opened.path, kept=True).names() == kept


def test_damaged_keepsakes_are_computed_again(opened: Opened) -> None:
    before = panels(opened, view(opened))["map-scores"].table
    for path in (Path(opened.path) / "maps" / ".kept").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    opened = anew(opened)
    assert panels(opened, view(opened))["map-scores"].table.equals(before)


def test_every_place_is_scored_once_and_kept(opened: Opened) -> None:
    selection = view(opened)
    place, spec = tq.Place.of(selection), tq.spec_of(selection)
    assert transport_table.known(opened.store, place, spec) is None
    steps: list[tuple[int, int]] = []
    table = transport_table.compute(opened.store, place, spec, lambda _: lambda *step: steps.append(step))
    assert table.height == 5 * LAYERS == steps[-1][0]
    here = table.filter((pl.col("site") == place.site) & (pl.col("layer") == place.layer)).row(0, named=True)
    scores = tq.scores(opened.store, place, spec)
    assert here["r2_validation"] == pytest.approx(scores.r2_validation)
    assert here["cka_mapped_debiased"] == pytest.approx(scores.cka_mapped_debiased)
    assert here["r2_shuffled_max"] == pytest.approx(scores.r2_shuffled_max)
    same = table.filter((pl.col("site") == "resid_post") & (pl.col("layer") < CHANGED))
    assert (same["cka_raw_debiased"] - 1).abs().max() < 1e-9
    opened = anew(opened)
    assert transport_table.known(opened.store, place, spec).equals(table)  # type: ignore[union-attr]
    panel = transport.table_panel(opened, selection)
    drawn(panel)
    scope: dict[str, Any] = {}
    exec(panel.code, scope)
    assert panel.table.equals(table)
    assert scope["table"].equals(table)
    for path in (Path(opened.path) / "maps" / ".kept").glob("table-*"):
        path.unlink()
    assert transport_table.known(anew(opened).store, place, spec) is None
    exec(panel.code, scope)  # nothing is kept: fitted at every place again
    assert scope["table"].equals(table)


def test_a_place_where_one_model_does_not_vary_has_nothing_to_map(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All prompts share one token there: no variance, so that no score is defined; the other places have."""
    selection = view(opened)
    still, moving = (dataclasses.replace(tq.Place.of(selection), layer=layer) for layer in (0, 1))
    load = tq.pair

    def pair(store: Store, place: tq.Place, *, keep: bool = True) -> tq.Pair:
        both = load(store, place, keep=keep)
        if place == moving:
            return both
        x, y = both.train.x.rows, np.ones_like(both.train.y.rows)
        return dataclasses.replace(both, train=Paired.of(x, y, both.train.groups, both.train.roles))

    monkeypatch.setattr(tq, "pair", pair)
    monkeypatch.setattr(tq, "places", lambda *_: [still, moving])
    table = transport_table.compute(opened.store, still, tq.spec_of(selection))
    assert table["words"][0] == transport_table.CONSTANT
    assert table["r2_validation"].is_null().to_list() == [True, False]


def test_places_without_a_score_say_why(opened: Opened) -> None:
    selection = view(opened, "logit")
    table = transport_table.compute(opened.store, tq.Place.of(selection), tq.spec_of(selection))
    heads = table.filter(pl.col("site") == "head_z")
    assert heads["r2_validation"].null_count() == heads.height == LAYERS
    assert "reads the residual stream" in heads["words"][0]
    with pytest.raises(AnalysisError, match="cannot be fitted here"):
        transport.check(opened, dataclasses.replace(selection, site="head_z"))


def test_a_place_where_nothing_varies_is_named(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.activations
    monkeypatch.setattr(
        Store, "activations", lambda self, *a, **k: np.full_like(real(self, *a, **k), 0.1, dtype=np.float32)
    )
    for name in ("default", "ridge", "moments", "pca", "clusters"):
        for panel in panels(opened, view(opened, name)).values():
            assert panel.draw(LIGHT).spec()["layer"]
            if panel.name == "map-scores":
                assert "there is nothing to map" in panel.title
                assert panel.table["value"].drop_nulls().len() < 7
    bad = np.full((48, WIDTH), np.nan, np.float32)
    monkeypatch.setattr(Store, "activations", lambda self, *a, rows, **k: bad[: len(rows)])
    with pytest.raises(AnalysisError, match=r"not numbers.*32 prompts with NaN"):
        panels(opened, view(opened, layer=0))


def test_a_rank_path_without_shrinkage_on_few_prompts_is_called_meaningless() -> None:
    table = pl.DataFrame({"x": [1.0, 2.0], "series": "validation", "value": [0.1, 0.2]})
    assert "means nothing here" in transport_words.rank_title(table, 1, 2, True)
    assert transport_words.rank_title(table, 1, 2, False) == (
        "Rank 1 of 2: R² 0.10 on validation, 0.20 at full rank"
    )


def test_the_place_that_is_named_is_the_first_on_train() -> None:
    def table(second: float, train: tuple[float, float] = (0.95, 0.93)) -> pl.DataFrame:
        rows = [("attn_out", 1, 0.9, 0.05), ("mlp_out", 2, second, 0.05), ("resid_post", 0, 0.02, 0.1)]
        return pl.DataFrame(
            [
                {"site": s, "layer": b, "r2_validation": v, "r2_low": v - w, "r2_high": v + w}
                | {"r2_shuffled_max": -0.1, "r2_train": t}
                for (s, b, v, w), t in zip(rows, (*train, 0.99), strict=True)
            ]
        )

    start = "base → tuned: new prompts are predicted at 2 of 3 places"
    title = transport_words.table_title(table(0.5), "base", "tuned")
    first = f"{start}; the first on train, attn_out of block 1, has R² 0.90 (0.85 to 0.95)"
    assert title == f"{first}, above every other"
    level = transport_words.table_title(table(0.88), "base", "tuned")
    assert level == f"{first}; of the others, 1 level within the intervals"
    other = transport_words.table_title(table(0.5, train=(0.93, 0.95)), "base", "tuned")
    assert other == (
        f"{start}; the first on train, mlp_out of block 2, has R² 0.50 (0.45 to 0.55); of the others, "
        "1 above it"
    )
    tied = transport_words.table_title(table(0.5, train=(1.0, 1.0)), "base", "tuned")
    assert tied == f"{start}; 2 of them are fitted alike on train, R² 1.00 there"
    none = table(0.5).with_columns(r2_shuffled_max=pl.lit(1.0))
    assert transport_words.table_title(none, "base", "tuned").endswith("predicted at 0 of 3 places")


@pytest.mark.parametrize("name", VIEWS)
def test_a_saved_map_comes_back_with_its_predictions(opened: Opened, name: str) -> None:
    selection = view(opened, name)
    fitted, provenance = saved_maps.made(opened, selection), saved_maps.provenance(opened, selection)
    log = MapLog(opened.path)
    log.save(saved_maps.suggested(selection), *export_map(fitted), provenance)
    [kept], _ = log.list()
    saved = from_bytes(log.data(kept.name))
    place, score = saved_maps.opened_map(saved, opened)
    assert place == tq.Place.of(selection)
    assert score == pytest.approx(saved.provenance["scores"]["r2_validation"], rel=1e-9)
    line = saved_maps.listing([kept]).row(0, named=True)
    assert line["map"] == tq.spec_of(selection).describe()
    assert line["from"] == f"{place.source} → {place.target}"


def test_a_map_of_another_width_or_study_is_refused(opened: Opened) -> None:
    selection = view(opened)
    description, arrays = export_map(saved_maps.made(opened, selection))
    provenance = saved_maps.provenance(opened, selection)

    def saved(**changes: Any) -> SavedMap:
        return from_bytes(to_bytes("other", description, arrays, {**provenance, **changes}))

    with pytest.raises(StoreError, match=rf"another width.*64 → 64.*Given: {WIDTH} → {WIDTH} in this store"):
        saved_maps.check_fits(saved(widths=[64, 64]), opened)
    with pytest.raises(StoreError, match=r"another study.*no model 'chat' among base, tuned"):
        saved_maps.check_fits(saved(target="chat"), opened)
    with pytest.raises(StoreError, match="no block 9 of tuned"):
        saved_maps.check_fits(saved(layer=9), opened)
    with pytest.raises(StoreError, match="no site 'resid_mid'"):
        saved_maps.check_fits(saved(site="resid_mid"), opened)
    with pytest.raises(StoreError, match="no position 'decision'"):
        saved_maps.check_fits(saved(position="decision"), opened)
    nowhere = from_bytes(to_bytes("other", description, arrays, {}))
    with pytest.raises(StoreError, match="doesn't say where it belongs"):
        saved_maps.check_fits(nowhere, opened)
    torn = from_bytes(to_bytes("other", {**description, "state": {}}, arrays, provenance))
    with pytest.raises(AnalysisError, match="can't be put together"):
        saved_maps.opened_map(torn, opened)


@pytest.mark.parametrize("method", METHODS)
def test_the_page_shows_every_map(open_app: Callable[..., AppTest], own_store: Path, method: str) -> None:
    app = open_app(own_store, "transport", method=method, clusters="2", rank="3", lam_mode="set")
    assert not app.exception
    assert app.selectbox("choose-target").options == ["base ← tuned", "tuned ← base"]
    text = " ".join(m.value for m in app.markdown)
    assert "Saved maps" in text
    assert "went wrong" not in text
    assert "cannot be fitted" not in text


def test_a_click_fits_every_place_and_saving_lists_the_map(
    open_app: Callable[..., AppTest], own_store: Path
) -> None:
    app = open_app(own_store, "transport")
    app.button(key="map-everywhere").click().run()
    assert any("new prompts are predicted at" in m.value for m in app.markdown)
    app.button(key="map-save").click().run()
    app.button(key="map-open").click().run()
    assert "when it was saved" in app.success[0].value
    [name] = MapLog(own_store).names()
    assert name == "base-tuned-resid_post-2-last_content-ScaledProcrustes"
    app.button(key="map-save").click().run()
    assert any("There is a map named" in m.value for m in app.markdown)
    app.button(key="map-delete").click().run()
    assert not MapLog(own_store).names()


def test_a_study_without_splits_is_told_what_is_missing(
    open_app: Callable[..., AppTest], own_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "prompts", prompts_table().drop("split"))
    st.cache_resource.clear()
    app = open_app(own_store, "transport")
    text = " ".join(m.value for m in app.markdown)
    assert "fitted on train prompts and judged on validation prompts" in text
    assert "Saved maps" not in text
    st.cache_resource.clear()
