"""What a page shows first: its chart in a small window, short captions, nothing wider than a telephone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import clean, visit
from playwright.sync_api import Page

pytestmark = pytest.mark.browser

CHART_TOP = {
    "": 400,
    "similarity": 450,
    "residual_updates": 500,
    "transport": 480,
    "geometry": 560,
}
"""Where a page's first chart begins at most, in pixels of a window of 1280 × 800."""
LINES = """() => [...document.querySelectorAll('[class*="st-key-panel-"]')].map(panel => {
    const caption = panel.querySelector('[data-testid="stCaptionContainer"] p');
    if (!caption) return 0;
    const style = getComputedStyle(caption);
    return caption.getBoundingClientRect().height / parseFloat(style.lineHeight);
})"""


@pytest.mark.parametrize("page", CHART_TOP)
def test_the_chart_begins_in_the_upper_part_of_a_small_window(
    new_tab: Callable[..., Page], dashboard: str, page: str
) -> None:
    tab = new_tab()
    tab.set_viewport_size({"width": 1280, "height": 800})
    visit(tab, f"{dashboard}/{page}")
    box = tab.locator("[data-testid='stMain'] [data-testid='stVegaLiteChart']").first.bounding_box()
    assert box is not None
    assert box["y"] <= CHART_TOP[page]
    assert max(tab.evaluate(LINES), default=0) <= 3.1  # two lines, three in half-width panels
    clean(tab)


@pytest.mark.parametrize("page", CHART_TOP)
def test_nothing_is_wider_than_a_telephone(new_tab: Callable[..., Page], dashboard: str, page: str) -> None:
    tab = new_tab(width=400)
    visit(tab, f"{dashboard}/{page}")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
