"""Two pairs of models in one chart: the difference where prompts are the same, and none where they aren't."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from planted_store import CHECKS, LAYERS, build_store, prompts_table
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK
from app.frame.opened import Opened, read_facts
from app.frame.selection import changed, defaults
from app.similarity import contrast, tables
from engine.errors import AnalysisError
from engine.similarity.cka import cka_difference, gram, linear_cka
from store.reader import Store

GROUPS = np.repeat(np.arange(12), 2)


@pytest.mark.parametrize("groups", [None, GROUPS], ids=["prompts", "pairs"])
@pytest.mark.parametrize("debiased", [True, False])
def test_the_difference_is_the_jackknifes(groups: np.ndarray | None, debiased: bool) -> None:
    """Each unit left out by hand, CKA from the features."""
    rng, n = np.random.default_rng(0), 24
    x = rng.normal(size=(2, n, 6))
    y, z = x + 0.5 * rng.normal(size=x.shape), x + rng.normal(size=x.shape)
    unit = np.arange(n) if groups is None else groups
    sides = [[gram(one) for one in side] for side in (x, y, z)]
    found, low, high = cka_difference(
        (sides[0], sides[1]), (sides[0], sides[2]), debiased=debiased, groups=groups
    )

    def apart(layer: int, keep: np.ndarray) -> float:
        one, other = (linear_cka(x[layer][keep], side[layer][keep], debiased) for side in (y, z))
        return float(one) - float(other)

    for layer in range(2):
        assert found[layer] == pytest.approx(apart(layer, np.ones(n, dtype=bool)), abs=1e-6)
        left = np.array([apart(layer, unit != g) for g in np.unique(unit)])
        se = (left.size - 1) / np.sqrt(left.size) * left.std(ddof=1)
        student = {24: 2.0687, 12: 2.2010}[left.size]
        assert (high - low)[layer] / 2 == pytest.approx(student * se, rel=1e-3)


@pytest.fixture(scope="module")
def opened(planted: Path) -> Opened:
    store = Store(planted)
    return Opened(str(planted), store, read_facts(store))


def test_pairs_of_another_store_with_the_same_prompts(
    opened: Opened, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": str(planted)})
    start = changed(defaults(opened.facts), split="all")
    assert list(contrast.pairs(opened, start)) == ["other:base|tuned"]
    chosen = changed(start, against="other:base|tuned", layer=3)
    panel = contrast.panel(opened, chosen)
    assert panel is not None
    apart = panel.table.filter(series="difference")
    assert apart["layer"].to_list() == list(range(LAYERS))
    assert np.abs(apart.select("value", "low", "high").to_numpy()).max() < 1e-9, "a pair beside itself"
    assert panel.title.endswith("; difference 0 (0 to 0)")
    assert panel.chart(DARK) is not None
    assert contrast.panel(opened, changed(start, against="elsewhere:base|tuned")) is None
    assert contrast.panel(opened, start) is None


def test_the_printed_code_names_the_other_store(
    opened: Opened, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A notebook has no `--beside`: the second of two stores is read from its path."""
    with monkeypatch.context() as patched:
        patched.setattr(contrast, "other_stores", lambda _: {"gone": "nowhere", "other": str(planted)})
        panel = contrast.panel(
            opened, changed(defaults(opened.facts), split="all", against="other:base|tuned")
        )
    assert panel is not None
    scope: dict[str, object] = {}
    exec(panel.code, scope)
    assert panel.table.equals(scope["table"])


@pytest.mark.parametrize("held", [False, None], ids=["failed", "none"])
def test_a_store_that_is_not_to_be_trusted_has_no_numbers_beside(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: bool | None
) -> None:
    checks = [] if held is None else [check | {"passed": held} for check in CHECKS]
    path = build_store(tmp_path / "other", checks=checks)
    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": str(path)})
    chosen = changed(defaults(opened.facts), split="all", against="other:base|tuned")
    assert contrast.pairs(opened, chosen) == {}
    with pytest.raises(AnalysisError, match="its numbers are not shown"):
        contrast.panel(opened, chosen)


@pytest.mark.parametrize("lost", ["positions", "sites"])
def test_there_is_no_contrast_with_another_position_or_site(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    chosen = changed(defaults(opened.facts), split="all", against="other:base|tuned")
    asked = {"positions": chosen.position, "sites": chosen.site}[lost]
    kept = tuple(one for one in getattr(opened.facts, lost) if one != asked)
    there = dataclasses.replace(opened, facts=dataclasses.replace(opened.facts, **{lost: kept}))
    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": "other"})
    monkeypatch.setattr(contrast, "open_at", lambda _: there)
    with pytest.raises(AnalysisError, match=f"its store lacks the {lost[:-1]} {asked}"):
        contrast.panel(opened, chosen)


def test_draws_of_two_seeds_are_not_the_same_tokens(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(seed: int) -> Opened:
        manifest = {**opened.store.manifest, "study": {**opened.store.manifest["study"], "seed": seed}}
        store = Store(Path(opened.path))
        store.manifest = manifest
        return dataclasses.replace(opened, store=store)

    drawn = "sample(k=4,skip_last=0,draw=2)"
    assert contrast.same_place(seeded(1), seeded(1), drawn)
    assert not contrast.same_place(seeded(1), seeded(2), drawn)
    assert contrast.same_place(seeded(1), seeded(2), "last_content")
    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": "other"})
    monkeypatch.setattr(contrast, "open_at", lambda _: there)
    at = dataclasses.replace(opened.facts, positions=(drawn,))
    here, there = (dataclasses.replace(seeded(seed), facts=at) for seed in (1, 2))
    with pytest.raises(AnalysisError, match="these are other tokens there"):
        contrast.other(here, changed(defaults(at), against="other:base|tuned"))


def test_pairs_without_a_common_block_have_no_contrast(
    opened: Opened, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve, asked = tables.cka_curve, []

    def parted(store: Store, *place: Any) -> pl.DataFrame:
        asked.append(place)
        early = pl.col("layer") < 2
        return curve(store, *place).filter(early if len(asked) == 1 else ~early)

    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": str(planted)})
    monkeypatch.setattr(tables, "cka_curve", parted)
    with pytest.raises(AnalysisError, match="no block was captured of both"):
        contrast.panel(opened, changed(defaults(opened.facts), split="all", against="other:base|tuned"))


def test_other_prompts_have_no_difference(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    table = prompts_table().with_columns(text=pl.col("text") + "!")
    store = type("Told", (Store,), {"prompts": table})(Path(opened.path))
    there = dataclasses.replace(opened, path=f"{opened.path}?other", store=store)
    monkeypatch.setattr(contrast, "other_stores", lambda _: {"other": "other"})
    monkeypatch.setattr(contrast, "open_at", lambda _: there)
    chosen = changed(defaults(opened.facts), split="all", against="other:base|tuned")
    panel = contrast.panel(opened, chosen)
    assert panel is not None
    assert "difference" not in panel.table["series"].to_list()
    assert panel.table["series"].n_unique() == 2
    assert panel.title.endswith("not the same prompts, so no difference is told")
    assert "don't hold the same prompts" in panel.caption


def test_the_page_offers_what_the_server_was_started_with(
    open_app: Callable[..., AppTest], planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = build_store(tmp_path / "beside")
    monkeypatch.setattr(
        contrast, "other_stores", lambda _: {"other": str(beside), "gone": str(tmp_path / "gone")}
    )
    app = open_app(planted, "similarity")
    assert not app.exception
    app.selectbox(key="contrast").set_value("other:base|tuned").run()
    assert not app.exception
    assert any("1 − CKA at block" in block.value for block in app.markdown)
    assert app.query_params["against"] == "other:base|tuned"
    assert any("gone can't be opened" in block.value for block in app.caption)
