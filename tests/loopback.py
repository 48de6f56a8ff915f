"""A dashboard started by some command: it must listen on this machine alone and tell nobody of it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def assert_on_loopback(command: Sequence[str], port: int, folder: Path, scratch: Path) -> None:
    """Starts a command in a folder, waits for the dashboard at the port, and looks at where it listens.

    Args:
        scratch: an empty folder, the server's home.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("STREAMLIT_", "PYTHONPATH"))}
    log = scratch / "log"
    with log.open("wb") as out:
        environment["HOME"] = str(scratch)
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)
    process = psutil.Process(server.pid)
    try:
        until = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
        family = [process, *process.children(recursive=True)]
        open_ = [c for one in family for c in one.net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in open_} == {"127.0.0.1"}
        assert "Network URL" not in log.read_text()
        assert "usage statistics" not in log.read_text()
    finally:
        for one in [*process.children(recursive=True), process]:
            one.terminate()
        server.wait(30)
