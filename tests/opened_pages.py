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
    *,
    timeout: float = 60,
    **params: str,
) -> AppTest:
    """Runs a page with a query string; `timeout` in seconds."""
    monkeypatch.setattr("sys.argv", ["main.py"] + ([] if store is None else ["--store", str(store)]))
    app = AppTest.from_file(str(MAIN), default_timeout=timeout)
    for key, value in params.items():
        app.query_params[key] = value
    app.run()
    if page != "overview":
        app.switch_page(f"../pages/{page}.py")
        for key, value in params.items():
            app.query_params[key] = value
        app.run()
    return app
