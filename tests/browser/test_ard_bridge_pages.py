"""Bridge and fitted lengthscales in a real browser: sliders, clicks on curves, a fit as it runs, a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import clean, click_chart, settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_bridge_follows_k_the_direction_and_a_click_on_the_profile(
    tab: Page, dashboard: str, new_tab: Callable[..., Page]
) -> None:
    visit(tab, f"{dashboard}/bridge?layer=1&k=3&position=mean")
    scores = tab.locator(".st-key-panel-bridge-scores").first
    expect(scores).to_contain_text("block 1, en → zh")
    before = tab.locator(".st-key-panel-bridge-map").first.inner_text()
    tab.get_by_role("slider", name="Rank k of Z").press("ArrowRight")
    expect(tab.locator(".st-key-panel-bridge-map").first).not_to_have_text(before)
    settle(tab)
    tab.get_by_role("radio", name="zh → en").click()
    expect(scores).to_contain_text("block 1, zh → en")
    settle(tab)
    click_chart(tab, "bridge-profile", 0.95, 0.4)
    expect(scores).to_contain_text("block 4, zh → en")
    clean(tab)
    phone = new_tab(400, "dark")
    visit(phone, f"{dashboard}/bridge?k=3")
    expect(phone.locator(".st-key-panel-bridge-map").first).to_be_visible(timeout=60_000)
    assert phone.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 400
    clean(phone)


def test_lengthscales_are_fitted_watched_and_opened_again(
    tab: Page, live_dashboard: str, new_tab: Callable[..., Page]
) -> None:
    visit(tab, f"{live_dashboard}/ard?layer=3&steps=60")
    main = tab.locator('[data-testid="stMain"]')
    expect(main).to_contain_text("Block 3 has not been fitted under these settings")
    tab.get_by_role("button", name="Fit 3 lengthscale sets").click()
    expect(tab.locator(".st-key-panel-ard-loss").first).to_contain_text("λ = 0.001", timeout=240_000)
    settle(tab)
    expect(tab.get_by_text("Run before").first).to_be_visible()
    tab.get_by_role("radio", name="median").click()
    expect(tab.locator(".st-key-panel-ard-sorted").first).to_contain_text("by construction")
    clean(tab)
    phone = new_tab(400, "dark")
    visit(phone, f"{live_dashboard}/ard?layer=3&steps=60&rule=fixed&cut=1")
    expect(phone.locator(".st-key-panel-ard-sorted").first).to_contain_text("chosen by hand")
    assert phone.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 400
    clean(phone)
