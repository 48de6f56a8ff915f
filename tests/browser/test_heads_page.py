"""The heads page in a real browser: run a block and the map, click the map, read on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import clean, click_chart, settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

SETTINGS = "a=base&b=tuned&substitute=head_out&position=decision"


def test_a_block_and_the_map_are_run_and_a_click_on_the_map_selects_the_block(
    tab: Page, live_dashboard: str, new_tab: Callable[..., Page]
) -> None:
    visit(tab, f"{live_dashboard}/heads?layer=4&{SETTINGS}")
    tab.get_by_role("button", name="Run this block").click()
    panel = tab.locator(".st-key-panel-heads-sets").first
    expect(panel).to_contain_text("block 4's effect on tuned", timeout=120_000)
    settle(tab)
    tab.get_by_role("button", name="Run every block's map").click()
    cells = tab.locator(".st-key-panel-heads-map").first
    expect(cells).to_contain_text("the first on train", timeout=120_000)
    settle(tab)
    clean(tab)
    click_chart(tab, "heads-map", 0.97, 0.55)  # a cell near the right end: the last block
    expect(tab.get_by_role("slider", name="Block ℓ")).to_have_value("7")
    settle(tab)
    expect(tab.locator('[class*="st-key-empty-the-heads-of-block-7"]')).to_be_visible()
    clean(tab)
    phone = new_tab(400, "dark")
    visit(phone, f"{live_dashboard}/heads?layer=4&{SETTINGS}")
    expect(phone.locator(".st-key-panel-heads-alone").first).to_be_visible(timeout=60_000)
    wide = phone.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert wide <= 400
    clean(phone)


def test_a_block_without_an_effect_says_why(tab: Page, live_dashboard: str) -> None:
    visit(tab, f"{live_dashboard}/heads?layer=1&{SETTINGS}")
    main = tab.locator('[data-testid="stMain"]')
    said = main.get_by_text("There is no effect of block 1's heads to divide up")
    tab.get_by_role("button", name="Run this block").or_(said).first.wait_for()
    if not said.count():  # a second try finds it stored
        tab.get_by_role("button", name="Run this block").click()
    expect(said).to_be_visible(timeout=120_000)
    expect(main).to_contain_text("nothing to cover")
    assert tab.locator(".st-key-panel-heads-alone").count() == 0
    clean(tab)
