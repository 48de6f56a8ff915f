"""The Z-patching page in a real browser: one click, a reload while it runs, and fit at both widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import visit
from playwright.sync_api import Page, expect

SETTINGS = "z=problems:8;tokens:40;ks:8;layers:1;draws:2&report=all&layer=4"


def test_a_job_is_one_click_and_survives_a_reload(new_tab: Callable[..., Page], live_dashboard: str) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/z_patching?{SETTINGS}")
    expect(tab.get_by_text("Not run under these settings yet")).to_be_visible()
    tab.get_by_role("button", name="Run", exact=True).click()
    title = tab.locator(".st-key-panel-z-verdict h4").first
    tab.get_by_role("button", name="Cancel", exact=True).or_(title).first.wait_for()
    tab.reload()  # the job goes on in the worker; the page takes it up again, or finds its result
    expect(title).to_be_visible(timeout=180_000)
    assert "block 4, k = 8" in title.inner_text()
    expect(tab.locator(".st-key-panel-z-outputs h4").first).to_contain_text("Every problem")
    assert "Something went wrong" not in tab.locator('[data-testid="stMain"]').inner_text()
    again = new_tab()
    visit(again, tab.url)
    assert again.locator(".st-key-panel-z-verdict h4").first.inner_text() == title.inner_text()


def test_the_whole_job_shows_rows_as_they_finish_and_outlives_a_reload(
    new_tab: Callable[..., Page], problems_dashboard: str
) -> None:
    """20 problems, two blocks, two dimensions, every condition and control, up to 100 tokens: one click."""
    tab = new_tab()
    visit(tab, f"{problems_dashboard}/z_patching?z=tokens:100;problems:20;draws:4&report=all&layer=4")
    tab.get_by_role("button", name="Run", exact=True).click()
    growing = tab.locator(".st-key-z-so-far h4").first
    expect(growing).to_contain_text("problems so far", timeout=120_000)
    assert int(growing.inner_text().split()[0]) < 20, "rows are shown before the job is over"
    tab.reload()
    title = tab.locator(".st-key-panel-z-verdict h4").first
    expect(title).to_be_visible(timeout=240_000)
    expect(tab.locator(".st-key-panel-z-outputs").first).to_contain_text("20 of 20 problems")
    shown = tab.locator(".st-key-z-show button")
    expect(shown).to_have_text([f"block {layer}, k = {k}" for layer in (4, 5) for k in (8, 16)])
    expect(tab.get_by_text("no asymmetry is told apart")).to_be_visible()
    tab.get_by_role("button", name="Show the likeliest tokens of this problem").click()
    expect(tab.locator(".st-key-panel-z-tokens h4").first).to_contain_text("block 4, k = 8", timeout=120_000)
    expect(tab.locator(".st-key-z-tokens-steps").first).to_contain_text("100 %")
    assert "Something went wrong" not in tab.locator('[data-testid="stMain"]').inner_text()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_the_window(
    new_tab: Callable[..., Page], live_dashboard: str, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    visit(tab, f"{live_dashboard}/z_patching?{SETTINGS}")
    wide = tab.evaluate("document.scrollingElement.scrollWidth")
    assert wide <= width, "nothing may stick out to the right"
    assert tab.locator('[data-testid="stException"]').count() == 0
