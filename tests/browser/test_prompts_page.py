"""The prompts page in a browser: reached, live, and readable on a store with tokens and one without."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser_steps import visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def test_the_threshold_is_live_and_in_the_link(tab: Page, live_dashboard: str) -> None:
    visit(tab, f"{live_dashboard}/prompts?threshold=0.5")
    expect(tab.locator(".st-key-panel-shared").first).to_contain_text("the ratio is 1 for all")
    expect(tab.locator(".st-key-panel-lengths").first).to_contain_text("as many tokens for base as for tuned")
    lines = tab.locator(".st-key-panel-kept [data-testid='stCode']").first
    expect(lines).to_contain_text("min_shared_ratio = 0.5")
    slider = tab.get_by_role("slider", name="Least shared-vocabulary ratio")
    slider.press("ArrowRight")
    expect(lines).to_contain_text("min_shared_ratio = 0.51")
    expect(tab).to_have_url(re.compile("threshold=0.51"))


def test_a_search_narrows_the_table_and_the_lines(tab: Page, live_dashboard: str) -> None:
    visit(tab, f"{live_dashboard}/prompts?language=en")
    panel = tab.locator(".st-key-panel-kept").first
    before = panel.locator("h4").inner_text()
    box = panel.get_by_role("textbox", name=re.compile("Search the texts"))
    box.fill("How many")
    box.press("Enter")
    expect(panel.locator("h4")).not_to_have_text(before)
    expect(panel.locator("[data-testid='stCode']")).to_contain_text('language = ["en"], text = "How many"')


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_store_without_tokens_says_so_at_every_width(
    new_tab: Callable[..., Page], dashboard: str, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    visit(tab, f"{dashboard}/prompts")
    main = tab.locator('[data-testid="stMain"]')
    expect(main).to_contain_text("does not know its tokens' strings")
    expect(main).to_contain_text("validation texts")
    assert "Something went wrong" not in main.inner_text()
    # nothing is wider than the window: no sideways scrolling
    assert tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
