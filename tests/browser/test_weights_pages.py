"""The pages of weight differences in a real browser: look, click, steer, and find the link again."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from browser_steps import click_chart, settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser


def heading(tab: Page, panel: str) -> str:
    return tab.locator(f".st-key-panel-{panel} h4").first.inner_text()


def test_the_planted_heads_are_told_and_a_click_selects_a_block(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/weights?layer=4")
    assert heading(tab, "weight-heads").startswith("Block 4: heads 2, 6 hold 100 %")
    assert "rank 4 of 128" in heading(tab, "weight-spectrum")
    click_chart(tab, "weight-blocks", 0.72, 0.5)  # block 5 of 0 to 7
    expect(tab.locator(".st-key-panel-weight-spectrum h4").first).to_contain_text("mlp.down_proj of block 5")
    expect(tab).to_have_url(re.compile("layer=5"))
    settle(tab)
    for width, scheme in ((1280, "light"), (400, "dark")):
        other = new_tab(width, scheme)
        visit(other, tab.url)
        assert other.evaluate("document.scrollingElement.scrollWidth") <= width
        assert other.locator('[data-testid="stException"]').count() == 0


def test_one_click_steers_and_the_link_shows_it_again(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/weight_steering?{urlencode({'neutral': 'language:en', 'strength': '-1'})}")
    tab.get_by_role("button", name="Run", exact=True).click()
    panel = tab.locator(".st-key-panel-weights-soft_refusal h4").first
    expect(panel).to_have_text(re.compile(r"at α = −1"), timeout=240_000)
    said = panel.inner_text()
    assert tab.locator(".st-key-panel-weight-answers h4").first.inner_text().startswith("At α = −1")
    again = new_tab(400, "dark")
    visit(again, tab.url)  # the link shows the stored run, nothing runs
    expect(again.locator(".st-key-panel-weights-soft_refusal h4").first).to_have_text(said)
    assert again.evaluate("document.scrollingElement.scrollWidth") <= 400
    assert again.locator('[data-testid="stException"]').count() == 0
