"""The transport page in a browser: sliders, a click on the heatmap, a map saved, taken and brought back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser_steps import clean, click_chart, settle, visit
from playwright.sync_api import Page, expect
from safetensors.numpy import load

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_the_window(
    new_tab: Callable[..., Page], dashboard: str, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    visit(tab, f"{dashboard}/transport?method=RidgeTransport&lam_mode=set")
    clean(tab)
    main = '[data-testid="stMain"]'
    overflow = tab.evaluate(
        f"(() => {{ const m = document.querySelector('{main}'); return m.scrollWidth - m.clientWidth; }})()"
    )
    assert overflow <= 1


def test_a_rank_slider_moves_title_and_link(new_tab: Callable[..., Page], dashboard: str) -> None:
    tab = new_tab()
    visit(tab, f"{dashboard}/transport?layer=2")
    title = tab.locator(".st-key-panel-map-path h4").first
    expect(title).to_contain_text("Full rank")
    tab.get_by_role("slider", name="Rank k").focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url("**rank=**")
    settle(tab)
    expect(title).to_contain_text("Rank ")
    clean(tab)


def test_a_click_on_the_heatmap_selects_block_and_site(new_tab: Callable[..., Page], dashboard: str) -> None:
    tab = new_tab()
    visit(tab, f"{dashboard}/transport?layer=2")
    tab.get_by_role("button", name="Fit this map at all 25 places").click()
    click_chart(tab, "map-places", 0.9, 0.6)
    tab.wait_for_url("**site=**")
    settle(tab)
    clean(tab)


def test_a_map_is_saved_taken_away_and_brought_back(
    new_tab: Callable[..., Page], dashboard: str, planted_store: Path, tmp_path: Path
) -> None:
    tab = new_tab()
    visit(tab, f"{dashboard}/transport?layer=3&method=RidgeTransport")
    tab.get_by_label("Name for the map in view").fill("mine")
    tab.get_by_label("Name for the map in view").press("Enter")
    settle(tab)
    tab.get_by_role("button", name="Save to the study").click()
    expect(tab.get_by_role("button", name="Delete")).to_be_visible()
    path = planted_store / "maps" / "mine.safetensors"
    assert "projected_" in load(path.read_bytes())
    with tab.expect_download() as waiting:
        tab.locator(".st-key-map-take").first.get_by_role("button").click()
    data = Path(waiting.value.path()).read_bytes()
    assert data == path.read_bytes()
    tab.get_by_role("button", name="Delete").click()
    expect(tab.get_by_text("No map is saved yet")).to_be_visible()
    assert not path.exists()
    file = tmp_path / "mine.safetensors"
    file.write_bytes(data)
    tab.locator("input[type=file]").set_input_files(file)
    expect(tab.get_by_text("when it was saved")).to_be_visible()
    tab.get_by_role("button", name="Keep it in the study").click()
    expect(tab.get_by_text("is in the study already")).to_be_visible()
    assert path.exists()
    clean(tab)
    file.write_bytes(b"not a map at all")
    tab = new_tab()
    visit(tab, f"{dashboard}/transport?layer=3&method=RidgeTransport")
    tab.locator("input[type=file]").set_input_files(file)
    expect(tab.get_by_text("is not a saved map")).to_be_visible()
    clean(tab)
