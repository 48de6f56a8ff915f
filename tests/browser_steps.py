"""What every browser test does with a page: open it, wait for it, see that nothing went wrong."""

from __future__ import annotations

import time
from contextlib import suppress

from playwright.sync_api import Locator, Page, TimeoutError

PATIENCE = 60_000
QUIET = 300
"""Milliseconds without a run after which a page counts as settled: a click takes a while to start one."""

SETTLED = """([quiet, call]) => {
    const app = document.querySelector('[data-testid="stApp"]');
    const drawn = document.querySelector(
        '[data-testid="stMain"] [data-testid="stMarkdown"], [data-testid="stMain"] h1');
    const still = drawn && app && app.dataset.testScriptState === "notRunning";
    const seen = window.settling;
    if (!still || !seen || seen.call !== call || seen.since === Infinity)
        window.settling = {call, since: still ? performance.now() : Infinity};
    return performance.now() - window.settling.since >= quiet;
}"""


def visit(tab: Page, address: str) -> None:
    """Open an address and wait until the page has settled."""
    tab.goto(address)
    settle(tab)


def settle(tab: Page) -> None:
    """Wait until the script has run to its end and no other run has begun for a moment."""
    call = str(time.monotonic_ns())
    tab.wait_for_function(SETTLED, arg=[QUIET, call], polling=50, timeout=PATIENCE)


def press(button: Locator, until: Locator) -> None:
    """Click a button on a page that is still being drawn, again where it moved away under the click.

    Args:
        until: what shows once the click has arrived.
    """
    shown = until.first
    button.or_(until).first.wait_for()
    for _ in range(5):
        with suppress(TimeoutError):
            button.click(timeout=2_000)
            shown.wait_for(timeout=2_000)
            return
    shown.wait_for()


def click_chart(tab: Page, panel: str, across: float, down: float) -> None:
    """Click into a panel's first drawing, at these fractions of its width and height."""
    drawings = tab.locator(f".st-key-panel-{panel} [data-testid='stVegaLiteChart']")
    drawing = drawings.locator("canvas, svg.marks").first
    drawing.scroll_into_view_if_needed()
    settle(tab)
    box = drawing.bounding_box()
    assert box is not None
    drawing.click(position={"x": across * box["width"], "y": down * box["height"]})


def clean(tab: Page) -> None:
    """No traceback, no unexpected error."""
    said = tab.locator('[data-testid="stMain"]').inner_text()
    assert "Traceback" not in said
    assert "Something went wrong" not in said
    assert tab.locator('[data-testid="stException"]').count() == 0
