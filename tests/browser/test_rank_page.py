"""The page of ranks and steering in a real browser: run on the demo's models, and fit at both widths."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from browser_steps import visit
from playwright.sync_api import Page, expect

PLANTED = {"position": "decision", "site": "attn_out", "layer": "4"}
STEERED = {"part": "steering", "position": "decision", "words": "答 / T", "contrast": "language:zh/en"}


@pytest.mark.parametrize(
    ("params", "panel", "says"),
    [
        ({**PLANTED, "method": "Identity"}, "rank-swap", r"^[1-4] directions? of \d+ "),
        (STEERED, "steer-shift", r"^(Adding v at|Every amplitude)"),
    ],
    ids=["rank", "steering"],
)
def test_one_click_runs_and_the_link_shows_it_again(
    new_tab: Callable[..., Page], live_dashboard: str, params: dict[str, str], panel: str, says: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/rank?{urlencode(params)}")
    tab.get_by_role("button", name="Run", exact=True).click()
    heading = tab.locator(f".st-key-panel-{panel} h4").first
    expect(heading).to_have_text(re.compile(says), timeout=120_000)
    assert "Something went wrong" not in tab.locator('[data-testid="stMain"]').inner_text()
    said = heading.inner_text()
    again = new_tab()
    visit(again, tab.url)  # the link shows the stored run, nothing runs
    expect(again.locator(f".st-key-panel-{panel} h4").first).to_have_text(said)
    for width, scheme in ((1280, "light"), (400, "dark")):
        other = new_tab(width, scheme)
        visit(other, tab.url)
        expect(other.locator(f".st-key-panel-{panel} h4").first).to_have_text(said)
        wide = other.evaluate("document.scrollingElement.scrollWidth")
        assert wide <= width, "nothing may stick out to the right"
        assert other.locator('[data-testid="stException"]').count() == 0
