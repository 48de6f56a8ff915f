"""What a reader does in a browser: navigate, share links, click charts, download, patch, in two tabs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import altair as alt
import polars as pl
import pytest
from browser_steps import clean, click_chart, press, settle, visit
from playwright.sync_api import Download, Locator, Page, expect

from app import main

pytestmark = pytest.mark.browser

PAGES = {
    title: "" if name == "overview" else name for entries in main.PAGES.values() for name, title, _ in entries
}


def layer_shown(tab: Page) -> str:
    """The block that the slider stands at."""
    return tab.get_by_role("slider", name="Block ℓ").input_value()


def download(tab: Page, panel: str, menu: str, kind: str) -> Download:
    """Take a file from a panel's menu."""
    tab.locator(f".st-key-panel-{panel}").first.get_by_role("button", name=menu).first.click()
    with tab.expect_download() as waiting:
        tab.locator(f".st-key-file-{panel}-{kind}").get_by_role("button").click()
    tab.keyboard.press("Escape")
    return waiting.value


def content(file: Download) -> bytes:
    """Bytes of a downloaded file."""
    return Path(file.path()).read_bytes()


def chart(tab: Page, panel: str) -> Locator:
    """The drawing inside a panel."""
    return tab.locator(
        f".st-key-panel-{panel} [data-testid='stVegaLiteChart'] svg, "
        f".st-key-panel-{panel} [data-testid='stVegaLiteChart'] canvas"
    ).first


def test_every_page_is_reached_from_the_navigation(tab: Page, dashboard: str) -> None:
    visit(tab, dashboard)
    for title, path in PAGES.items():
        tab.get_by_role("link", name=title, exact=True).first.click()
        expect(tab.get_by_role("heading", level=1)).to_contain_text(title)
        settle(tab)
        clean(tab)
        assert tab.url.split("?")[0].rstrip("/") == f"{dashboard}/{path}".rstrip("/")


@pytest.mark.parametrize("path", PAGES.values())
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_pages_fit_the_window_and_ask_no_other_server(
    new_tab: Callable[..., Page], dashboard: str, path: str, width: int, scheme: str
) -> None:
    tab, asked = new_tab(width, scheme), []
    tab.on("request", lambda request: asked.append(request.url))
    visit(tab, f"{dashboard}/{path}")
    clean(tab)
    assert [url for url in asked if not url.startswith((dashboard, "data:", "blob:"))] == []
    overflow = tab.evaluate(
        "(() => { const m = document.querySelector('[data-testid=\"stMain\"]');"
        " return m.scrollWidth - m.clientWidth; })()"
    )
    assert overflow <= 1, f"{overflow} px wider than the window"


def test_a_slider_moves_the_link_and_the_link_moves_the_slider(
    new_tab: Callable[..., Page], dashboard: str
) -> None:
    one = new_tab()
    visit(one, f"{dashboard}/similarity")
    slider = one.get_by_role("slider", name="Block ℓ")
    slider.focus()
    one.keyboard.press("ArrowRight")
    one.wait_for_url("**layer=3**")
    settle(one)
    two = new_tab()
    visit(two, one.url)
    assert layer_shown(two) == "3"


def test_the_selection_follows_from_page_to_page(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/similarity?layer=4")
    tab.get_by_role("link", name="Patching", exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("Patching")
    settle(tab)
    assert layer_shown(tab) == "4"
    assert "layer=4" in tab.url


def test_clicking_a_block_in_a_chart_selects_it_everywhere(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/similarity")
    assert layer_shown(tab) == "2"
    for fraction, block in ((0.97, "4"), (0.15, "0")):
        click_chart(tab, "cka", fraction, 0.5)
        tab.wait_for_url(f"**layer={block}**")
        settle(tab)
        assert layer_shown(tab) == block
    tab.get_by_role("link", name="Patching", exact=True).click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("Patching")
    settle(tab)
    assert layer_shown(tab) == "0"


def test_garbage_in_the_link_gives_a_notice_and_a_page(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/similarity?layer=999&site=%3Cscript%3E&nonsense=1")
    said = tab.locator('[data-testid="stMain"]').inner_text()
    assert "is outside 0 to 4" in said
    assert "does not exist" in said
    clean(tab)


def test_panels_hand_out_data_and_images(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/similarity")
    csv = pl.read_csv(io.BytesIO(content(download(tab, "cka", "Data", "csv"))))
    parquet = pl.read_parquet(io.BytesIO(content(download(tab, "cka", "Data", "parquet"))))
    assert csv.shape == parquet.shape
    assert csv["layer"].unique().sort().to_list() == [0, 1, 2, 3, 4]
    assert content(download(tab, "cka", "Image", "png")).startswith(b"\x89PNG")
    svg = content(download(tab, "cka", "Image", "svg")).decode()
    assert svg.startswith("<svg")
    assert "leaves base at block 2" in svg  # the finding travels with the picture
    assert content(download(tab, "cka", "Image", "pdf")).startswith(b"%PDF")
    drawn = json.loads(content(download(tab, "cka", "Image", "vl-json")))
    assert "leaves base at block 2" in " ".join(drawn["title"]["text"])
    assert alt.Chart.from_dict(drawn).to_dict()["layer"] == drawn["layer"]


def test_the_trust_badge_opens_into_the_checks(tab: Page, dashboard: str) -> None:
    visit(tab, dashboard)
    tab.get_by_role("button", name="2 checks hold").click()
    expect(tab.get_by_text("Self-checks of the precompute run").first).to_be_visible()


def run_patch(tab: Page) -> None:
    """Press Run and wait for the result."""
    tab.get_by_role("button", name="Run", exact=True).click()
    expect(tab.locator(".st-key-panel-patch h4").first).to_be_visible(timeout=120_000)
    settle(tab)


def finding(tab: Page) -> str:
    """Title of the patch result."""
    return tab.locator(".st-key-panel-patch h4").first.inner_text()


def test_a_patch_is_run_kept_and_opened_again_without_a_model(
    new_tab: Callable[..., Page], live_dashboard: str
) -> None:
    tab = new_tab()
    visit(tab, f"{live_dashboard}/patching?patch=one&layer=5&site=resid_post&kind=mean")
    expect(tab.get_by_text("Not run yet")).to_be_visible()
    run_patch(tab)
    clean(tab)
    said = finding(tab)
    assert "nats" in said
    expect(tab.get_by_text("Prompt by prompt")).to_be_visible()
    again = new_tab()
    visit(again, tab.url)  # the link shows the stored result, nothing runs
    assert finding(again) == said
    tab.get_by_role("link", name="Runs").click()
    expect(tab.get_by_role("heading", level=1)).to_contain_text("Runs")
    settle(tab)
    expect(tab.locator(".st-key-runs-list")).to_be_visible()


def test_two_tabs_get_their_own_results(new_tab: Callable[..., Page], live_dashboard: str) -> None:
    """Upstream of the fine-tune the other model changes nothing; the mean of the prompts does."""
    one, two = new_tab(), new_tab()
    visit(one, f"{live_dashboard}/patching?patch=one&layer=1&site=resid_post&kind=literal")
    visit(two, f"{live_dashboard}/patching?patch=one&layer=6&site=resid_post&kind=mean")
    one.get_by_role("button", name="Run", exact=True).click()
    two.get_by_role("button", name="Run", exact=True).click()
    for tab in (one, two):
        expect(tab.locator(".st-key-panel-patch h4").first).to_be_visible(timeout=120_000)
        settle(tab)
    assert "block 1 changes nothing" in finding(one)
    assert re.search(r"block 6 moves tuned's next token by 0?\.?\d", finding(two))
    assert layer_shown(one) == "1"
    assert layer_shown(two) == "6"


def test_cancelling_in_one_tab_leaves_the_other(new_tab: Callable[..., Page], live_dashboard: str) -> None:
    """The work that is cancelled takes many seconds where all else is loaded: it can't be over before."""
    one, two = new_tab(), new_tab()
    visit(one, f"{live_dashboard}/weight_steering?neutral=language:zh")
    visit(two, f"{live_dashboard}/patching?patch=one&site=attn_out&kind=mean&layer=0")
    one.get_by_role("button", name="Run", exact=True).click()
    cancel = one.get_by_role("button", name="Cancel", exact=True)
    cancel.wait_for()
    two.get_by_role("button", name="Run", exact=True).click()
    press(cancel, until=one.get_by_text("Cancelled:").first)
    expect(one.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    clean(one)
    result = two.locator(".st-key-panel-patch h4").first
    expect(result).to_contain_text("attn_out of block 0", timeout=120_000)


def test_a_patch_that_cannot_run_says_why(tab: Page, dashboard: str) -> None:
    """The planted store has no model behind it."""
    visit(tab, f"{dashboard}/patching?patch=one&layer=1")
    tab.get_by_role("button", name="Run", exact=True).click()
    expect(tab.get_by_text("The experiment did not run")).to_be_visible(timeout=120_000)
    settle(tab)
    clean(tab)
    expect(tab.get_by_role("button", name="Run", exact=True)).to_be_enabled()


def test_the_back_button_brings_the_selection_back(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/similarity?layer=4")
    slider = tab.get_by_role("slider", name="Block ℓ")
    slider.focus()
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_url("**layer=3**")
    settle(tab)
    tab.go_back()
    tab.wait_for_url("**layer=4**")
    tab.reload()
    settle(tab)
    assert layer_shown(tab) == "4"
