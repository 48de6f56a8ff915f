"""A stand-in for the Hugging Face Hub on loopback: dataset repositories, commits, trees and files."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_test"


@dataclass
class Hub:
    """What the server holds: files by repository, and by (repository, commit) what they were.

    Attributes:
        stop: requests for files that are still answered; then each is refused, until it is None.
    """

    endpoint: str
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    stop: int | None = None

    def commit(self, name: str) -> str:
        """The hash of a repository as it is now."""
        parts = [f"{path}\0".encode() + data for path, data in sorted(self.repositories[name].items())]
        digest = hashlib.sha1(b"\0".join(parts)).hexdigest()
        self.commits[name, digest] = dict(self.repositories[name])
        return digest

    def environment(self, token: str | None = TOKEN) -> dict[str, str]:
        """Variables that point the Hub's client here; `token` None is nobody."""
        said = {"HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        said |= {"HF_HOME": tempfile.mkdtemp(), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {**os.environ, **said, **({"HF_TOKEN": token} if token else {})}


@contextmanager
def serving() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def do_GET(self) -> None:
        self._read(send=True)

    def do_HEAD(self) -> None:
        self._read(send=False)

    def _read(self, send: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        if parts[0] == "api" and len(parts) >= 4:
            self._about("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "datasets" and "resolve" in parts:
            at = parts.index("resolve")
            self._file("/".join(parts[1:at]), parts[at + 1], "/".join(parts[at + 2 :]), send)
        else:
            self._answer(404)

    def _about(self, name: str, what: list[str]) -> None:
        if self._hidden(name):
            self._missing("RepoNotFound")
        elif what[:1] == ["tree"]:
            found = self._files(name, what[1])
            rows = [
                {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                for p, d in found.items()
            ]
            self._json(rows)
        elif what[:1] == ["revision"] and what[1] not in ("main", self.hub.commit(name)):
            self._missing("RevisionNotFound")
        else:
            siblings = [{"rfilename": path} for path in self.hub.repositories[name]]
            self._json({"id": name, "sha": self.hub.commit(name), "siblings": siblings})

    def _files(self, name: str, revision: str) -> dict[str, bytes]:
        return self.hub.commits.get((name, revision), self.hub.repositories[name])

    def _file(self, name: str, revision: str, path: str, send: bool) -> None:
        if send and self.hub.stop is not None:
            self.hub.stop -= 1
            if self.hub.stop < 0:
                self._answer(403)
                return
        data = None if self._hidden(name) else self._files(name, revision).get(path)
        if data is None:
            self._missing("EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.hub.commit(name)}
        self._answer(200, data, headers, send)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401)
        elif parts[1:] == ["validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            known = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {".gitattributes": b""})
            if (asked.get("private") or asked.get("visibility") == "private") and not known:
                self.hub.private.add(name)
            self._json({"url": f"{self.hub.endpoint}/datasets/{name}"}, 409 if known else 200)
        elif parts[-2] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif parts[-2] == "commit":
            self._commit("/".join(parts[2:4]), [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404)

    def _commit(self, name: str, operations: list[Mapping[str, Mapping[str, str]]]) -> None:
        files = self.hub.repositories[name]
        for one in operations:
            value = one["value"]
            if one["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif one["key"] == "deletedFile":
                del files[value["path"]]
        made = self.hub.commit(name)
        url = f"{self.hub.endpoint}/datasets/{name}/commit/{made}"
        self._json({"success": True, "commitOid": made, "commitUrl": url})

    def _hidden(self, name: str) -> bool:
        allowed = self.headers.get("authorization") == f"Bearer {TOKEN}"
        return name not in self.hub.repositories or (name in self.hub.private and not allowed)

    def _missing(self, code: str) -> None:
        self._answer(404, headers={"X-Error-Code": code})

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(
        self, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None, send: bool = True
    ) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if send:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        del format, args
