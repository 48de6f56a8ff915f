"""The behaviour page in a real browser: run on the demo's models, and fit at both widths."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from browser_steps import visit
from playwright.sync_api import Page, expect


def title(tab: Page) -> str:
    return tab.locator(".st-key-panel-behaviour-difference h4").first.inner_text()


def test_answers_are_generated_kept_and_shown_again(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/behaviour?measure=right&report=all")
    expect(tab.get_by_text("Not run yet")).to_be_visible()
    tab.get_by_role("button", name="Run", exact=True).click()
    expect(tab.locator(".st-key-panel-behaviour-difference h4").first).to_be_visible(timeout=120_000)
    said = title(tab)
    assert said.startswith("Right answer: tuned")
    expect(tab.locator(".st-key-panel-answers h4").first).to_contain_text("answers")
    assert "Something went wrong" not in tab.locator('[data-testid="stMain"]').inner_text()
    again = new_tab()
    visit(again, tab.url)  # the link shows the stored runs, nothing runs
    assert title(again) == said


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_the_page_fits_the_window(
    new_tab: Callable[..., Page], live_dashboard: str, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    visit(tab, f"{live_dashboard}/behaviour?measure=right&report=all")
    wide = tab.evaluate("document.scrollingElement.scrollWidth")
    assert wide <= width, "nothing may stick out to the right"
    assert tab.locator('[data-testid="stException"]').count() == 0
