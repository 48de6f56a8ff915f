"""The report in a browser: made by a click, downloaded, opened from the disk, readable at every width."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from browser_steps import visit
from playwright.sync_api import Download, Page, expect

from app.report.build import CHAPTERS

pytestmark = pytest.mark.browser


def make(tab: Page, address: str) -> None:
    visit(tab, f"{address}/report")
    tab.locator(".st-key-make-report button").click()
    expect(tab.locator(".st-key-report-html")).to_be_visible(timeout=120_000)


def fetch(tab: Page, key: str, folder: Path) -> Path:
    with tab.expect_download() as waiting:
        tab.locator(f".st-key-{key} button").click()
    found: Download = waiting.value
    place = folder / found.suggested_filename
    found.save_as(place)
    return place


def test_a_click_makes_files_that_open_by_themselves(tab: Page, dashboard: str, tmp_path: Path) -> None:
    """The HTML opens from the disk and asks the network for nothing; the zip holds the journal."""
    make(tab, dashboard)
    expect(tab.locator("[data-testid='stMain']")).to_contain_text(f"{len(CHAPTERS)} chapters")
    document = fetch(tab, "report-html", tmp_path)
    assert document.name == "planted-base-tuned-report.html"
    with zipfile.ZipFile(fetch(tab, "report-zip", tmp_path)) as archive:
        assert "report.md" in archive.namelist()
    asked: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto(document.as_uri())
    expect(tab.locator("h1")).to_have_text("planted: base and tuned")
    assert asked == [document.as_uri()]
    assert complaints == []  # the policy of the file forbids nothing that it needs
    tab.locator("summary", has_text="Data").first.click()
    with tab.expect_download() as waiting:
        tab.get_by_role("link", name="CSV").first.click()
    assert waiting.value.suggested_filename.endswith(".csv")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_page_and_document_fit_their_window(
    new_tab: Callable[..., Page], dashboard: str, tmp_path: Path, width: int, scheme: str
) -> None:
    tab = new_tab(width, scheme)
    make(tab, dashboard)
    beyond = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(beyond) == 0
    document = fetch(tab, "report-html", tmp_path)
    tab.goto(document.as_uri())
    assert tab.evaluate(beyond) == 0
    ink, page = (
        sum(map(int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (ink > page) == (scheme == "dark")
    assert tab.locator("figure svg").first.bounding_box() is not None
    assert len(tab.pdf()) > 10_000  # it prints
