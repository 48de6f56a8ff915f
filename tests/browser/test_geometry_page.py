"""The page of Z's geometry in a browser: sliders follow, a click on a block selects it, links come back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser_steps import settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_sliders_move_titles_and_the_link(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/geometry?layer=1&k=3")
    panel = tab.locator(".st-key-panel-z-separation-mean").first
    expect(panel.locator("h4")).to_contain_text("block 1, mean over content: Z ")
    before = panel.inner_text()
    tab.get_by_role("slider", name="Rank k of Z").press("ArrowRight")
    expect(tab).to_have_url(re.compile("k=4"))
    settle(tab)
    assert panel.inner_text() != before
    tab.get_by_role("slider", name="Block ℓ").press("ArrowRight")
    expect(panel.locator("h4")).to_contain_text("block 2, mean over content: Z ")
    expect(tab).to_have_url(re.compile("layer=2|geometry\\?k=4$"))


def test_every_block_is_measured_when_asked(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/geometry?layers=every&k=3")
    title = tab.locator(".st-key-panel-z-every-separation-mean h4").first
    expect(title).to_contain_text(
        re.compile("(is shown to separate in no block|separates in \\d of 5 blocks) at k = 3")
    )
    expect(tab.locator(".st-key-panel-z-structure").first).to_contain_text("least alike neighbours")
    expect(tab.locator(".st-key-panel-z-gates h4").first).to_contain_text("gates read")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_nothing_is_wider_than_the_window(
    new_tab: Callable[..., Page], dashboard: str, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    visit(tab, f"{dashboard}/geometry?layers=every")
    main = tab.locator('[data-testid="stMain"]')
    expect(main).to_contain_text("all heads together")
    assert "Something went wrong" not in main.inner_text()
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
