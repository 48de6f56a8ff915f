"""A real S3 server on loopback (moto's), and a door in front of it that can be shut."""

from __future__ import annotations

import http.client
import logging
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

REASON = "needs obstore and moto's server (pip install '.[s3,dev]')"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
Answer = Callable[[str, str], int | None]


class Door:
    """A proxy that passes requests on, or answers some itself.

    Attributes:
        answer: (method, path) -> a status to answer with at once, 0 to cut the connection, None to pass on.
        asked: (method, path) of every request.
    """

    def __init__(self, host: str, port: int) -> None:
        self.answer: Answer = lambda method, path: None
        self.asked: list[tuple[str, str]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.asked.append((self.command, self.path))
                status = door.answer(self.command, self.path)
                if status == 0:
                    self.close_connection = True
                    return
                if status is not None:
                    self._give(status, {}, b"")
                    return
                inner = http.client.HTTPConnection(host, port)
                inner.request(self.command, self.path, body, dict(self.headers))
                found = inner.getresponse()
                data = found.read()
                self._give(found.status, dict(found.headers), data)
                inner.close()

            def _give(self, status: int, headers: dict[str, str], data: bytes) -> None:
                self.send_response_only(status)
                kept = {
                    k: v for k, v in headers.items() if k.lower() not in ("connection", "transfer-encoding")
                }
                if self.command != "HEAD":
                    kept = {k: v for k, v in kept.items() if k.lower() != "content-length"}
                    kept["Content-Length"] = str(len(data))
                for key, value in kept.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass

            def log_message(self, *_: Any) -> None:
                """Nothing is said."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@contextmanager
def serving() -> Iterator[Door]:
    """The server behind its door, named in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    door = Door(*server.get_host_and_port())
    before = dict(os.environ)
    os.environ |= {**KEYS, "AWS_ENDPOINT_URL": door.url, "AWS_ALLOW_HTTP": "true"}
    try:
        yield door
    finally:
        os.environ.clear()
        os.environ.update(before)
        door.close()
        server.stop()


def bucket() -> str:
    """A new bucket's name."""
    import urllib.request

    name = f"b-{uuid.uuid4().hex[:12]}"
    asked = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{name}", method="PUT")
    urllib.request.urlopen(asked).close()
    return name


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL by its path, as a client of its own reads it."""
    from obstore.store import S3Store

    name, _, prefix = url.removeprefix("s3://").partition("/")
    store = S3Store(name, prefix=prefix or None)
    found = [str(meta["path"]) for batch in store.list(chunk_size=1000) for meta in batch]
    return {path: bytes(store.get(path).bytes()) for path in found}


def put(url: str, files: dict[str, bytes]) -> None:
    """Puts objects below a URL, past everything that Patchbay knows."""
    from obstore.store import S3Store

    name, _, prefix = url.removeprefix("s3://").partition("/")
    store = S3Store(name, prefix=prefix or None)
    for path, data in files.items():
        store.put(path, data, use_multipart=False)


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a local store by its path, but for the lock."""
    every = (path for path in folder.rglob("*") if path.is_file() and path.name != ".writer.lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in every}


def skip_without() -> None:
    """Skips a module where the packages aren't there."""
    for name in ("obstore", "moto", "flask", "flask_cors"):
        pytest.importorskip(name, reason=REASON)
