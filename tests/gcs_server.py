"""A stand-in for Google Cloud Storage on loopback: its XML interface, as far as a store uses it.

An object has a generation, by which alone it is put on a condition (`x-goog-if-generation-match`; 0 where
there is none); an entity tag that is sent as a condition is not looked at.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from stand_in import Quiet, environment, listening

MATCH, GENERATION = "x-goog-if-generation-match", "x-goog-generation"


class Service:
    """Objects by "bucket/key", with their generations."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.lock, self._next = threading.Lock(), itertools.count(1000)

    def put(self, name: str, data: bytes, wanted: str | None) -> int | None:
        """The new generation, None where the condition isn't met."""
        with self.lock:
            if wanted is not None and int(wanted) != self.objects.get(name, (0, b""))[0]:
                return None
            self.objects[name] = generation, _ = next(self._next), data
            return generation

    def below(self, bucket: str, prefix: str, delimiter: str) -> str:
        """A listing as XML."""
        with self.lock:
            found = sorted(
                (name.removeprefix(f"{bucket}/"), data)
                for name, (_, data) in self.objects.items()
                if name.startswith(f"{bucket}/{prefix}")
            )
        folders, lines = set(), []
        for key, data in found:
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.split(delimiter)[0] + delimiter)
                continue
            lines.append(
                f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-30T20:00:00.000Z</LastModified>"
                f"<ETag>{tag(data)}</ETag><Size>{len(data)}</Size></Contents>"
            )
        lines += (f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        return f"<ListBucketResult>{''.join(lines)}</ListBucketResult>"


def tag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


@contextmanager
def serving() -> Iterator[Service]:
    """The service, named in the environment."""
    service = Service()

    class Handler(Quiet):
        def answer(self) -> None:
            body = self.body()
            url = urlsplit(self.path)
            name = unquote(url.path).strip("/")
            if self.command == "PUT":
                made = service.put(name, body, self.headers.get(MATCH))
                self._give(412 if made is None else 200, b"", {GENERATION: str(made), "ETag": tag(body)})
                return
            if "/" not in name:
                asked = {key: values[0] for key, values in parse_qs(url.query).items()}
                listing = service.below(name, asked.get("prefix", ""), asked.get("delimiter", ""))
                self._give(200, listing.encode(), {})
                return
            with service.lock:
                found = service.objects.get(name)
                if self.command == "DELETE":
                    service.objects.pop(name, None)
            if found is None:
                self._give(404, b"", {})
                return
            headers = {
                GENERATION: str(found[0]),
                "ETag": tag(found[1]),
                "Last-Modified": formatdate(usegmt=True),
            }
            if part := self.headers.get("Range"):
                first, last = map(int, part.removeprefix("bytes=").split("-"))
                piece = found[1][first : last + 1]
                headers["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(found[1])}"
                self._give(206, piece, headers)
            else:
                self._give(204 if self.command == "DELETE" else 200, found[1], headers)

        def _give(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            data = b"" if status == 204 else data
            self.give(status, data, {**headers, "Content-Length": str(len(data))})

    with listening(Handler) as url:
        key = {"gcs_base_url": url, "disable_oauth": True}
        key |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        with environment(GOOGLE_SERVICE_ACCOUNT_KEY=json.dumps(key), AWS_ALLOW_HTTP="true"):
            yield service
