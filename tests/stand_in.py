"""What stands in for a service on loopback: a server of HTTP, and the environment that names it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Quiet(BaseHTTPRequestHandler):
    """Answers every method by `answer`, which a subclass has, and says nothing."""

    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        """What was sent along."""
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def give(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        """An answer; `headers` tell its length, and HEAD has no more than that."""
        self.send_response_only(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _asked(self) -> None:
        self.answer()  # type: ignore[attr-defined]

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _asked

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""


@contextmanager
def listening(handler: type[Quiet]) -> Iterator[str]:
    """The address of a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def environment(**named: str) -> Iterator[None]:
    """Variables as they are named, and afterwards as they were."""
    before = dict(os.environ)
    os.environ |= named
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
