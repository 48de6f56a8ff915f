"""The app opened on a store as a browser would."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

MAIN = Path(__file__).resolve().parents[1] / "app" / "main.py"


def open_page(
    monkeypatch: pytest.MonkeyPatch,
    store: Path | str | None,
    page: str = "overview",
    /,
    *,
    timeout: float = 60,
    **params: str,
) -> AppTest:
    """Runs a page with a query string; `timeout` in seconds."""
    monkeypatch.setattr("sys.argv", ["main.py"] + ([] if store is None else ["--store", str(store)]))
    app = AppTest.from_file(str(MAIN), default_timeout=timeout)
    path = f"../pages/{page}.py"
    if page != "overview":
        app.switch_page(path)  # a link to a page opens that page alone
    asked = app._page_hash
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    if page != "overview":  # the menu, known by now, has this page at the address that was asked for
        assert app.switch_page(path)._page_hash == asked
    return app
