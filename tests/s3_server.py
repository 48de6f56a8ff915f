"""A real S3 server on loopback (moto's), and a door in front of it that can be shut."""

from __future__ import annotations

import http.client
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from stand_in import Quiet, environment, listening

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

        class Handler(Quiet):
            def answer(self) -> None:
                body = self.body()
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
                kept = {
                    k: v for k, v in headers.items() if k.lower() not in ("connection", "transfer-encoding")
                }
                if self.command != "HEAD":
                    kept = {k: v for k, v in kept.items() if k.lower() != "content-length"}
                    kept["Content-Length"] = str(len(data))
                self.give(status, data, kept)

        self.handler = Handler


@contextmanager
def serving() -> Iterator[Door]:
    """The server behind its door, named in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    door = Door(*server.get_host_and_port())
    try:
        with (
            listening(door.handler) as url,
            environment(**KEYS, AWS_ENDPOINT_URL=url, AWS_ALLOW_HTTP="true"),
        ):
            yield door
    finally:
        server.stop()


def bucket() -> str:
    """A new bucket's name."""
    import urllib.request

    name = f"b-{uuid.uuid4().hex[:12]}"
    asked = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{name}", method="PUT")
    urllib.request.urlopen(asked).close()
    return name


def objects(url: str) -> dict[str, bytes]:
    """Every object below a URL by its path, as the server keeps it: a request for each costs it much more."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    name, _, prefix = url.removeprefix("s3://").partition("/")
    keys = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[name].keys
    below = f"{prefix}/" if prefix else ""
    return {path.removeprefix(below): keys[path].value for path in sorted(keys) if path.startswith(below)}


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
