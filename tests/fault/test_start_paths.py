"""However the dashboard is started, it listens on this machine alone and tells nobody of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from loopback import assert_on_loopback, free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.fault
@pytest.mark.parametrize("folder", ["project", "elsewhere"])
def test_it_listens_on_loopback(folder: str, tmp_path: Path) -> None:
    port = str(free_port())
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app/main.py"), "--server.port", port]
    assert_on_loopback(command, int(port), ROOT if folder == "project" else tmp_path, tmp_path)
