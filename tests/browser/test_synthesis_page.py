"""The synthesis in a real browser: every link leads to the page it names, at the block it is about."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest
from browser_steps import settle, visit
from playwright.sync_api import Locator, Page, expect

pytestmark = pytest.mark.browser

TITLES = {
    "geometry": "Z geometry",
    "residual_updates": "Residual updates",
    "z_patching": "Z-patching",
    "ard": "ARD-MMD",
    "bridge": "Bridge",
}
VIEW = "synthesis?layer=1&k=3"


def parts(tab: Page) -> Locator:
    """The lines of the checklist that have a link."""
    return tab.locator('[class*="st-key-part-"]').filter(has=tab.locator("a"))


def test_every_link_leads_where_it_says(tab: Page, dashboard: str) -> None:
    visit(tab, f"{dashboard}/{VIEW}")
    expect(parts(tab).first).to_be_visible(timeout=60_000)
    seen, count = set(), parts(tab).count()
    assert count >= 8
    for number in range(count):
        line = parts(tab).nth(number)
        name = line.locator("a").inner_text()
        findings = [item.inner_text() for item in line.locator("li").all()]
        line.locator("a").click()
        expect(tab.locator('[data-testid="stMain"] h1')).not_to_have_text("Synthesis")
        settle(tab)
        where = urlsplit(tab.url)
        page = where.path.strip("/")
        seen.add(page)
        assert name.endswith(f"Open {TITLES[page]}")
        expect(tab.locator('[data-testid="stMain"] h1')).to_have_text(re.compile(f"^{TITLES[page]}"))
        query = parse_qs(where.query)
        block = "ref" if page == "residual_updates" else "layer"
        assert query.get(block) == ["1"], "the link keeps the block"
        if page != "z_patching":  # not run yet: that page has its own dimensions
            assert query["k"] == ["3"]
        main = tab.locator('[data-testid="stMain"]')
        if findings and page in ("geometry", "bridge"):
            said = findings[0].split(": ", 1)[1]
            expect(main).to_contain_text(said[:60])
        assert "Something went wrong" not in main.inner_text()
        visit(tab, f"{dashboard}/{VIEW}")
        expect(parts(tab)).to_have_count(count)
    assert seen == set(TITLES)


def test_it_fits_a_phone(new_tab: Callable[..., Page], dashboard: str) -> None:
    tab = new_tab(400, "dark")
    visit(tab, f"{dashboard}/{VIEW}")
    expect(parts(tab).first).to_be_visible(timeout=60_000)
    assert tab.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 400
