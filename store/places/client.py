"""A URL as a client of an object store, and what its errors mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from engine.errors import StoreError

URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]{1,254})((?:/[A-Za-z0-9_.=@+-]+)*)/*", re.ASCII)
_BEGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,39}:/+", re.ASCII)
EXTRA = "pip install 'patchbay[s3]'"
RETRY: dict[str, Any] = {
    "max_retries": 100,
    "retry_timeout": timedelta(seconds=40),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=5),
        "base": 4,
    },
}
"""What is tried again: answers of 5xx, and connections that fail or break. The time ends it: a pause is drawn
from between the first one and `base` times the one before, which with a base of 2 would not get longer."""
BRIEFLY: dict[str, Any] = {"max_retries": 2, "retry_timeout": timedelta(seconds=3)}
"""For a hold's signs of life, which come again anyhow."""
CLIENT: dict[str, Any] = {"timeout": timedelta(seconds=300), "connect_timeout": timedelta(seconds=5)}


def check_url(url: str) -> tuple[str, str, str]:
    """Protocol, bucket and prefix of a store's URL; nothing of it is ever carried out.

    Raises:
        StoreError: another protocol, or a name that isn't plain.
    """
    found = URL.fullmatch(url)
    if found is None or any(part in (".", "..") for part in found[3].split("/")):
        raise StoreError(
            f"The store at {shown(url)!r} cannot be opened.",
            expected="a local folder, or s3://BUCKET/NAME (gs://, az://) in plain letters",
            given="another URL (shown without what may be a secret)",
            next_step="Write that URL, or copy the store to a local folder.",
        )
    return found[1], found[2], found[3].strip("/")


def shown(place: str) -> str:
    """What may be shown of a place as it was typed: of a URL protocol and bucket, no key and no signature."""
    found = _BEGIN.match(place)
    if found is None:
        return "…" if "://" in place else place
    rest = place[found.end() :]
    name = re.split(r"[/?#\\\s]", rest, maxsplit=1)[0]
    if "@" in rest[len(name) :]:  # a key with a slash in it, perhaps: what is before that is none of a bucket
        return f"{found[0]}…"
    bucket = re.match(r"[\w.-]{0,255}", name.rpartition("@")[2], re.ASCII)
    assert bucket is not None
    return f"{found[0]}{bucket[0]}" + ("" if rest == bucket[0] else "/…")


def open_client(url: str, *, brief: bool = False) -> Any:
    """The object store under a URL (obstore's), its prefix taken off; a `brief` one soon gives up.

    Keys, region and address of the service come from the environment (AWS_ACCESS_KEY_ID, AWS_REGION,
    AWS_ENDPOINT_URL …), never from the URL.

    Raises:
        StoreError: as `check_url`; obstore isn't installed, or the environment says what it can't use.
    """
    protocol, bucket, prefix = check_url(url)
    _check_process(url)
    try:
        from obstore.exceptions import BaseError
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise StoreError(
            f"The store at {url} cannot be opened.",
            expected="the package obstore",
            given=f"{protocol}:// ({error})",
            next_step=f"Run {EXTRA}, or copy the store to a local folder.",
        ) from error
    kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[protocol]
    plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    try:
        options = {**CLIENT, "allow_http": plain} | ({"timeout": timedelta(seconds=10)} if brief else {})
        retry = {**RETRY, **BRIEFLY} if brief else RETRY
        return kind(bucket, prefix=prefix or None, client_options=options, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        raise StoreError(
            f"The store at {url} cannot be opened.",
            expected="an environment that says how to reach it",
            given=_short(error),
            next_step="Correct the variables of the service (AWS_…, GOOGLE_… or AZURE_…).",
        ) from error


def _check_process(url: str) -> None:
    """StoreError in a process that was forked from one that used the client: it would wait for ever."""
    if _first_process() != os.getpid():
        raise StoreError(
            f"The store at {url} cannot be reached from a forked process.",
            expected="the process that opened the first URL, or one that was started anew",
            given=f"process {os.getpid()}, forked from {_first_process()}",
            next_step="Start processes with 'spawn' instead of 'fork'.",
        )


@cache
def _first_process() -> int:
    return os.getpid()


def version_of(meta: Mapping[str, Any]) -> dict[str, str]:
    """What an object is replaced by on condition that it is still the one that an answer told of.

    S3 and Azure go by the entity tag, Google by the generation, which it calls a version.
    """
    return {key: str(meta[key]) for key in ("e_tag", "version") if meta.get(key)}


class UnreachableError(StoreError):
    """The object store did not answer: nothing is known of what lies there."""


@contextmanager
def object_errors(url: str, doing: str) -> Iterator[None]:
    """Turns the client's errors into a `StoreError` that says what to do.

    Args:
        doing: what was tried, as "read tables/prompts.parquet".
    """
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    _check_process(url)
    try:
        yield
    except (BaseError, OSError, TimeoutError) as error:
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            what, expected = f"The object store refused: could not {doing} at {url}.", "keys that allow it"
            next_step = "Correct the keys in the environment, or choose another place."
        elif isinstance(error, FileNotFoundError):
            what, expected = f"Could not {doing} at {url}: there is no such bucket.", "a bucket that is there"
            next_step = "Make the bucket first, or correct its name."
        else:
            what = f"The object store did not answer as it should: could not {doing} at {url}."
            expected = f"an answer within {RETRY['retry_timeout'].total_seconds():.0f} s"
            next_step = "Look after the connection and the service, then run the same command again: what "
            next_step += "was committed is kept."
        raise UnreachableError(what, expected=expected, given=_short(error), next_step=next_step) from error


def _short(error: BaseException) -> str:
    text = re.sub(r"\?\S+", "?…", " ".join(str(error).split()))  # a signature may stand in a query
    return text[:300].encode(errors="replace").decode()
