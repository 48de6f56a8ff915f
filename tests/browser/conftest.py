"""Real servers and a real Chromium for browser tests: every server on its own free local port."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal

import pytest
from browser_steps import PATIENCE
from demo_files import DEMO
from planted_store import build_store
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.build.build import build
from engine.study.study import Study

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
)
expect.set_options(timeout=PATIENCE)  # five seconds are short where everything else runs too

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A second try, as a stalled machine can lose a click; pytest's summary names the tests that took it."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.flaky(reruns=1))


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serve(store: Path | None, log: Path) -> Iterator[str]:
    """The dashboard as a user starts it; stopped by its process id."""
    port = free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.port", str(port)]
    command += ["--", "--store", str(store)] if store is not None else []
    with log.open("w") as output:
        server = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT}
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, server)
            yield url
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the server did not start")


@pytest.fixture(scope="session")
def serving() -> Callable[[Path | None, Path], AbstractContextManager[str]]:
    """`serve`, for tests with a store of their own."""
    return serve


@pytest.fixture(scope="session")
def planted_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store with planted structure that the page tests use."""
    return build_store(tmp_path_factory.mktemp("browser") / "planted")


@pytest.fixture(scope="session")
def dashboard(planted_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard on the planted store."""
    with serve(planted_store, tmp_path_factory.mktemp("log") / "server.log") as url:
        yield url


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of the demo's real models, made by the command a user types.

    The first process that asks for it makes it, and each works on a copy.
    """
    own = tmp_path_factory.getbasetemp()
    place = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    store, made = place / "demo-store", place / "demo-store-made"
    command = [sys.executable, "precompute.py", "studies/demo.toml", "--store", str(store), "--limit", "32"]
    with (place / "demo-store-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            done = subprocess.run(
                command,
                cwd=ROOT,
                capture_output=True,
                text=True,
                env={**os.environ, **ENVIRONMENT},
                check=False,
            )
            assert done.returncode == 0, done.stderr[-2000:]
            made.touch()
    return Path(shutil.copytree(store, tmp_path_factory.mktemp("demo") / "store"))


@pytest.fixture(scope="session")
def live_dashboard(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard on the demo's models, for live patches."""
    with serve(demo_store, tmp_path_factory.mktemp("log") / "live.log") as url:
        yield url


@pytest.fixture(scope="session")
def problems_dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the dashboard on 20 problems in both languages and the demo's base model."""
    folder = tmp_path_factory.mktemp("problems")
    lines = (DEMO / "problems.jsonl").read_text().splitlines()[:40]
    (folder / "problems.jsonl").write_text("\n".join(lines) + "\n")
    data = {
        "name": "problems",
        "models": {"base": {"path": str(DEMO / "base"), "device": "cpu"}},
        "prompts": {"files": ["problems.jsonl"], "template": "chat"},
        "capture": {"components": ["resid"], "positions": ["last_content"], "dtype": "float32"},
    }
    build(Study.from_dict(data, folder), folder / "store", quiet=True)
    with serve(folder / "store", folder / "server.log") as url:
        yield url


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield found
        found.close()


@pytest.fixture
def new_tab(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open independent tabs: each has its own session."""
    contexts: list[BrowserContext] = []

    def open_tab(width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        context.set_default_timeout(PATIENCE)
        return context.new_page()

    yield open_tab
    for context in contexts:
        context.close()


@pytest.fixture
def tab(new_tab: Callable[..., Page]) -> Page:
    """One tab."""
    return new_tab()
