"""The planted store, and the app opened on a store as a browser would."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from opened_pages import open_page
from planted_store import build_store
from streamlit.testing.v1 import AppTest


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store with passing self-checks."""
    return build_store(tmp_path_factory.mktemp("planted") / "store")


@pytest.fixture
def own_store(planted: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without what pages of other tests kept in the store."""
    return Path(shutil.copytree(planted, tmp_path / "store", ignore=shutil.ignore_patterns(".kept")))


@pytest.fixture
def open_app(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Run the app on a store as a browser would: a page, a query string."""

    def run(store: Path | str | None, page: str = "overview", /, **params: str) -> AppTest:
        return open_page(monkeypatch, store, page, **params)

    return run
