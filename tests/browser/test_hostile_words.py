"""A study and links full of Markdown, HTML and addresses: no page and no report asks anybody for anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest
from browser_steps import clean, visit
from planted_store import build_store
from playwright.sync_api import Page

import precompute
from app import main
from app.frame.selection import free

pytestmark = pytest.mark.browser

PAGES = ["" if name == "overview" else name for entries in main.PAGES.values() for name, *_ in entries]
FOUND = """host => {
    const taking = 'a[href], img[src], image, iframe, object, script[src], link';
    return [...document.querySelectorAll(taking)]
        .map(e => e.getAttribute('href') || e.getAttribute('src') || e.getAttribute('xlink:href') || '')
        .filter(to => to.includes(host) || to.startsWith('javascript:') || to.startsWith('mailto:'));
}"""
OBEYED = "() => document.querySelectorAll('.katex, b.evil').length"


class Trap(HTTPServer):
    """Somebody else's server: remembers what it is asked."""

    asked: list[str]


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    class Listen(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked.append(self.path)  # type: ignore[attr-defined]
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = Trap(("127.0.0.1", 0), Listen)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def hostile(address: str) -> Callable[[str], str]:
    """A text with everything in it that a page could obey."""

    def say(text: str) -> str:
        return (
            f"{text}![i]({address}/md)<img src={address}/tag>[a](javascript:alert(1)) [l]({address}/l) "
            f"{address}/bare <{address}/angle> www.evil.example.org evil@example.org "
            f"$x^2$ :red[r] :smile: :material/delete: `c` <b class=evil>b</b> =1+1"
        )

    return say


@pytest.fixture(scope="module")
def store(trap: Trap, tmp_path_factory: pytest.TempPathFactory) -> Path:
    address = f"http://127.0.0.1:{trap.server_port}"
    return build_store(tmp_path_factory.mktemp("hostile") / "store", say=hostile(address))


@pytest.fixture(scope="module")
def dashboard(
    store: Path, serving: Callable[..., AbstractContextManager[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with serving(store, tmp_path_factory.mktemp("log") / "server.log") as url:
        yield url


def watched(tab: Page, own: str) -> list[str]:
    """Every request that leaves the page for somebody else, from now on."""
    foreign: list[str] = []

    def note(address: str) -> None:
        if not address.startswith((own, own.replace("http", "ws"), "data:", "blob:", "file:")):
            foreign.append(address)

    tab.on("request", lambda request: note(request.url))
    return foreign


@pytest.mark.parametrize("page", PAGES)
def test_no_page_obeys_what_a_study_or_a_link_says(
    new_tab: Callable[..., Page], dashboard: str, trap: Trap, page: str
) -> None:
    host = f"127.0.0.1:{trap.server_port}"
    text = quote(hostile(f"http://{host}")("x"))
    fields = ("layer", "site", "language", "category", "method", *free(), f"x{text}")
    link = "&".join(f"{name}={text}" for name in fields)
    tab = new_tab()
    foreign = watched(tab, dashboard)
    trap.asked.clear()
    for query in ("", f"?{link}"):
        visit(tab, f"{dashboard}/{page}{query}")
        clean(tab)
        assert tab.evaluate(FOUND, host) == []
        assert tab.evaluate(OBEYED) == 0
    assert foreign == []
    assert trap.asked == []


def test_no_report_obeys_it_either(tab: Page, store: Path, trap: Trap, tmp_path: Path) -> None:
    assert precompute.main(["report", str(store), "--out", str(tmp_path / "report")]) == 0
    foreign = watched(tab, "file:")
    tab.goto((tmp_path / "report" / "report.html").as_uri())
    host = f"127.0.0.1:{trap.server_port}"
    assert tab.evaluate(FOUND, host) == []
    assert tab.evaluate(OBEYED) == 0
    assert "evil.example.org" in tab.locator("body").inner_text()
    assert foreign == []
    assert trap.asked == []


def test_the_trap_notes_whoever_asks(tab: Page, trap: Trap) -> None:
    """The positive control: what the others find absent would have been seen."""
    address = f"http://127.0.0.1:{trap.server_port}"
    foreign = watched(tab, "file:")
    tab.set_content(f"<img src={address}/x><a href=javascript:alert(1)>a</a>")
    tab.wait_for_timeout(300)
    assert len(tab.evaluate(FOUND, str(trap.server_port))) == 2
    assert foreign == [f"{address}/x"]
    assert trap.asked == ["/x"]
    trap.asked.clear()
