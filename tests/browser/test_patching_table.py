"""Raw against mapped in a real browser: run a site, run it again, cancel the whole table."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from browser_steps import clean, press, settle, visit
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

WAIT = 120_000
HERE = "patching?position=decision&site=mlp_out&layer=5"


def test_a_site_is_run_shown_and_run_again(new_tab: Callable[..., Page], live_dashboard: str) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/{HERE}")
    expect(tab.get_by_text("This site has not been run under these settings")).to_be_visible()
    tab.get_by_role("button", name="Run this site").click()
    title = tab.locator(".st-key-panel-patch-alphas h4").first
    expect(title).to_contain_text(
        "mlp_out of block 5: 5 prompts are too few to tell what the map changes", timeout=WAIT
    )
    settle(tab)
    clean(tab)
    expect(tab.locator(".st-key-panel-patch-drill [data-testid='stDataFrame']").first).to_be_visible()
    expect(tab.locator(".st-key-panel-patch-cosine h4").first).to_contain_text(
        "KL_raw is not told from rounding noise"
    )
    tab.get_by_role("button", name="Run again and compare").click()
    expect(tab.get_by_text("Run again (1): ")).to_be_visible(timeout=WAIT)
    again = new_tab(width=400)
    visit(again, tab.url)
    assert again.locator(".st-key-panel-patch-alphas h4").first.inner_text() == title.inner_text()
    assert again.evaluate("document.documentElement.scrollWidth") <= 400


def test_the_whole_table_can_be_started_and_cancelled(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/patching?position=last_content&site=attn_out&layer=4&method=MeanShift")
    tab.get_by_role("button", name="Run the whole table (66)").click()
    expect(tab.get_by_text("of 66 done")).to_be_visible(timeout=WAIT)
    tab.reload()  # the work goes on; a page loaded again finds it
    follow, cancel = (tab.get_by_role("button", name=n, exact=True) for n in ("Follow or cancel", "Cancel"))
    press(follow, until=tab.get_by_text(re.compile(r"of \d\d done")))
    press(cancel, until=tab.get_by_text("Cancelled:"))
    expect(tab.get_by_text("Cancelled:")).to_have_count(1)  # not once for each of them
    settle(tab)
    clean(tab)
    expect(tab.get_by_role("button", name="Run the whole table")).to_be_enabled()
