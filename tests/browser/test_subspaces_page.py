"""Subspace scores in a real browser: click a point, move a slider, take files, score with another rank."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from browser_steps import click_chart, settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def heading(tab: Page, panel: str) -> str:
    return tab.locator(f".st-key-panel-{panel} h4").first.inner_text()


def test_a_click_on_a_point_shows_its_profile_and_the_link_keeps_it(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/subspaces?delta=full")
    before = heading(tab, "subspace-profile")
    click_chart(tab, "subspace-map", 0.95, 0.2)  # where ceilings are
    tab.wait_for_url(re.compile("candidate="))
    settle(tab)
    expect(tab.locator(".st-key-panel-subspace-profile h4").first).to_contain_text(
        "looks at the weight change itself"
    )
    after = heading(tab, "subspace-profile")
    assert after != before
    rank = tab.locator(".st-key-steps-dims").first.get_by_role("slider")
    rank.focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url(re.compile("dims=7"))
    settle(tab)
    scores = tab.locator(".st-key-panel-subspace-map").first
    scores.get_by_text("How to read it").click()
    expect(tab.get_by_test_id("stPopoverBody")).to_contain_text("rank below 7")
    tab.keyboard.press("Escape")
    for width, scheme in ((1280, "light"), (400, "dark")):
        again = new_tab(width, scheme)
        visit(again, tab.url)
        expect(again.locator(".st-key-panel-subspace-profile h4").first).to_contain_text(after.split(" ")[0])
        assert again.evaluate("document.scrollingElement.scrollWidth") <= width
        assert again.locator('[data-testid="stException"]').count() == 0


def test_tables_are_taken_away_as_files(new_tab: Callable[..., Page], live_dashboard: str) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/subspaces")
    tab.get_by_text("All files").click()
    found: dict[str, bytes] = {}
    for name in ("summary-tsv", "per-layer-parquet", "conclusion-md", "definitions-md"):
        with tab.expect_download() as waiting:
            tab.locator(f".st-key-file-subspaces-{name}").get_by_role("button").click()
        found[name] = Path(waiting.value.path()).read_bytes()
    summary = pl.read_csv(found["summary-tsv"], separator="\t")
    layers = pl.read_parquet(found["per-layer-parquet"])
    assert summary.height * 8 == layers.height
    assert {"joint", "holm_combined", "percent_act"} <= set(summary.columns)
    assert "| `mlp_write` |" in found["definitions-md"].decode()
    first = tab.locator(".st-key-panel-subspace-conclusion h4").first.inner_text()
    assert first in found["conclusion-md"].decode().replace("`", "")
    assert "ΔW: tuned. k = 8, broad" in found["conclusion-md"].decode()
    assert summary.row(0, named=True).items() >= {"delta": "tuned", "k": 8}.items()


def test_another_broad_rank_is_scored_by_one_click_and_survives_a_reload(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/subspaces?broad=16")
    expect(tab.locator('[data-testid="stMain"]')).to_contain_text("Not scored with broad rank 16")
    tab.get_by_role("button", name="Score all candidates").click()
    panel = tab.locator(".st-key-panel-subspace-map").first
    tab.get_by_role("button", name="Cancel").or_(panel).first.wait_for()
    tab.reload()
    expect(panel).to_be_visible(timeout=240_000)
    expect(tab.get_by_text("Run before").first).to_be_visible()
    assert tab.locator('[data-testid="stException"]').count() == 0
