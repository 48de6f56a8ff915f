"""Every page of the demo in real windows: its chart first, nothing cut, short words, and readable by all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
from browser_steps import clean, settle, visit
from playwright.sync_api import ConsoleMessage, Page, expect

from app import main
from app.frame.panel import HEADING

pytestmark = pytest.mark.browser

PAGES = ["" if name == "overview" else name for entries in main.PAGES.values() for name, _, _ in entries]
FIRST, LAST = (1280, 800, "light"), (400, 800, "dark")
"""Every page is seen in these two."""
OTHERS = ((1280, 800, "dark"), (1920, 1080, "light"), (1920, 1080, "dark"), (400, 800, "light"))
"""Each of these is seen of every third page."""
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
NOT_OURS = [
    ("list", '[data-testid="stSidebarNav"] ul'),  # the menu of pages is Streamlit's, headings inside the list
    ("listitem", '[data-testid="stSidebarNav"] li'),  # the same: its items are not children of that list
]
"""(rule, selector) of what the library draws and no setting of it changes."""

DRAWN = """() => {
    const caption = document.querySelector('[data-testid="stMain"] [data-testid="stCaptionContainer"]');
    const charts = [...document.querySelectorAll('[data-testid="stVegaLiteChart"]')];
    const parts = [...document.querySelectorAll('[data-stale]')];
    return (!caption || getComputedStyle(caption).opacity === '0.78')
        && parts.every(part => part.dataset.stale === 'false' && getComputedStyle(part).opacity === '1')
        && charts.every(chart => chart.querySelector('svg, canvas'));
}"""
"""Whether the styles and every chart have come, which the browser loads after the page, and nothing fades."""
LOOK = """() => {
    const main = document.querySelector('[data-testid="stMain"]');
    const shown = found => [...found].filter(one => one.getBoundingClientRect().height > 0);
    const charts = shown(main.querySelectorAll('[data-testid="stVegaLiteChart"]'));
    const name = one => (one.closest('[class*="st-key-panel-"]') || one).className.match(/st-key-\\S+|$/)[0];
    const lines = p => p.getBoundingClientRect().height / parseFloat(getComputedStyle(p).lineHeight);
    const faults = [];
    for (const chart of charts) {
        const drawing = chart.querySelector('svg.marks');
        if (!drawing) continue;
        const {left, right, top, bottom} = drawing.getBoundingClientRect();
        const texts = [...drawing.querySelectorAll('text')].filter(
            t => t.textContent.trim() && t.getAttribute('opacity') !== '0').map(t => {
            const box = t.getBBox(), to = t.getScreenCTM();
            const ends = [box.x, box.x + box.width].flatMap(x => [box.y, box.y + box.height].map(
                y => [to.a * x + to.c * y + to.e, to.b * x + to.d * y + to.f]));
            const [xs, ys] = [0, 1].map(axis => ends.map(end => end[axis]));
            return {said: t.textContent, l: Math.min(...xs), r: Math.max(...xs), u: Math.min(...ys),
                    d: Math.max(...ys)};
        });
        const slack = 3;  // a box has room above and below its letters
        texts.forEach((one, number) => {
            const out = Math.max(left - one.l, one.r - right, top - one.u, one.d - bottom);
            if (out > slack || one.said.includes('…')) faults.push(`${name(chart)}: “${one.said}” is cut`);
            for (const other of texts.slice(number + 1)) {
                const wide = Math.min(one.r, other.r) - Math.max(one.l, other.l);
                const high = Math.min(one.d, other.d) - Math.max(one.u, other.u);
                const here = Math.abs(one.l - other.l) < 1 && Math.abs(one.u - other.u) < 1;
                const outline = here && one.said === other.said;
                if (wide > slack && high > slack && !outline)  // a name over its own outline is one name
                    faults.push(`${name(chart)}: “${one.said}” and “${other.said}” overlap`);
            }
        });
    }
    const below = '> [data-testid="stElementContainer"] [data-testid="stCaptionContainer"] p';
    const captions = shown(main.querySelectorAll(`[class*="st-key-panel-"] ${below}`));
    const page = document.documentElement;
    return {
        faults,
        top: charts.length ? charts[0].getBoundingClientRect().top + main.scrollTop : 0,
        wider: Math.max(page.scrollWidth - innerWidth, main.scrollWidth - main.clientWidth),
        captions: captions.filter(p => lines(p) > 2.1).map(p => p.innerText),
        titles: shown(main.querySelectorAll('[class*="st-key-panel-"] h4')).map(h => h.innerText),
    };
}"""
CHECK = """async notOurs => {
    const found = await axe.run(document, {resultTypes: ['violations']});
    const ours = (rule, node) => !notOurs.some(([one, selector]) =>
        one === rule && document.querySelector(node.target[0])?.matches(selector));
    const told = (rule, node) => `${rule}: ${node.target} ${node.html.slice(0, 90)}`;
    return found.violations.filter(v => ['serious', 'critical'].includes(v.impact)).flatMap(v =>
        v.nodes.filter(node => ours(v.id, node)).map(node => told(v.id, node)));
}"""


def windows(number: int) -> Iterator[tuple[int, int, str]]:
    """The windows that a page is seen in: the first, the last, and those of the others whose turn it is."""
    yield FIRST
    yield from (look for turn, look in enumerate(OTHERS) if turn % 3 == number % 3)
    yield LAST


def look_at(tab: Page, width: int) -> None:
    """What holds of every page in every window."""
    clean(tab)
    seen: dict[str, Any] = tab.evaluate(LOOK)
    assert seen["faults"] == []
    assert seen["wider"] <= 1
    assert seen["captions"] == []
    assert [title for title in seen["titles"] if len(title) > HEADING] == []
    assert width != 1280 or seen["top"] < 800


def told(line: ConsoleMessage) -> bool:
    """Whether the console has an error; Streamlit's client asks below a page's address first, in vain."""
    return line.type == "error" and "/_stcore/" not in line.location["url"]


@pytest.mark.parametrize("number", range(len(PAGES)), ids=[name or "overview" for name in PAGES])
def test_a_page_is_whole_in_every_window(
    new_tab: Callable[..., Page], live_dashboard: str, number: int
) -> None:
    said: list[str] = []
    tab = new_tab()
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("console", lambda line: said.append(f"{line.text} {line.location['url']}") if told(line) else None)
    for width, height, scheme in windows(number):
        tab.set_viewport_size({"width": width, "height": height})
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        if (width, height, scheme) == FIRST or width == 400:  # a legend keeps the columns it was drawn with
            visit(tab, f"{live_dashboard}/{PAGES[number]}")
        settle(tab)
        tab.wait_for_function(DRAWN)
        look_at(tab, width)
        if (width, height, scheme) in (FIRST, LAST):
            tab.evaluate(AXE)
            assert tab.evaluate(CHECK, NOT_OURS) == []
    assert said == []


def tab_to(tab: Page, selector: str, most: int = 80) -> None:
    """Press Tab until the focus is on what the selector names."""
    for _ in range(most):
        tab.keyboard.press("Tab")
        if tab.evaluate("selector => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is not reached in {most} steps")


def test_a_page_is_used_with_the_keyboard_alone(new_tab: Callable[..., Page], dashboard: str) -> None:
    """From the top: the checks open, a slider moves the chart, a chart's menu opens, and the focus shows."""
    tab = new_tab()
    visit(tab, f"{dashboard}/similarity?layer=2")
    tab_to(tab, '[class*="st-key-trust-badge"] button')
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("Self-checks of the precompute run").first).to_be_visible()
    tab.keyboard.press("Escape")
    settle(tab)
    chart = tab.locator('[class*="st-key-chart-cka-2"]')
    expect(chart).to_be_visible()
    tab_to(tab, '[role="slider"], input[type="range"]')
    tab.keyboard.press("ArrowRight")
    tab.wait_for_url("**layer=3**")
    settle(tab)
    expect(tab.locator('[class*="st-key-chart-cka-3"]')).to_be_visible()
    expect(chart).to_have_count(0)
    tab_to(tab, '.st-key-panel-cka [data-testid="stPopover"] button')
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("fingerprint").first).to_be_visible()
