"""What every browser test does with a page: open it, wait for it, see that nothing went wrong."""

from __future__ import annotations

from playwright.sync_api import Page, expect

PATIENCE = 60_000


def visit(tab: Page, address: str) -> None:
    """Open an address and wait until the page has settled."""
    tab.goto(address)
    settle(tab)


def settle(tab: Page) -> None:
    """Wait until the script has run to its end."""
    tab.wait_for_selector('[data-testid="stMain"] [data-testid="stMarkdown"], [data-testid="stMain"] h1')
    app = tab.locator('[data-testid="stApp"]')
    expect(app).to_have_attribute("data-test-script-state", "notRunning", timeout=PATIENCE)


def clean(tab: Page) -> None:
    """No traceback, no unexpected error."""
    said = tab.locator('[data-testid="stMain"]').inner_text()
    assert "Traceback" not in said
    assert "Something went wrong" not in said
    assert tab.locator('[data-testid="stException"]').count() == 0
