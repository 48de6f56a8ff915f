"""Whether a worker on another machine sees the folder that a store lies in, and not one of the same name."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import JobError
from store.files import TEMPORARY
from store.runs import RUNS
from store.sources import open_source

__all__ = ["check_mark", "marked"]


@contextmanager
def marked(store: str | Path) -> Iterator[tuple[str | Path, str]]:
    """A store's place, and the name of a file that is there until the block is left; "" at a URL.

    Raises:
        StoreError: nothing can be written there.
    """
    source = open_source(store)
    if source.local is None:
        yield str(store), ""
        return
    # live results may be added while another writer sweeps the store, which leaves their folder alone
    where = f"{RUNS}/" if (source.local / RUNS).is_dir() else ""
    mark = f"{where}{TEMPORARY}seen-{uuid.uuid4().hex}"
    source.write(mark, [b""])
    try:
        yield source.local.absolute(), mark
    finally:
        source.remove(mark)


def check_mark(store: str | Path, mark: str) -> None:
    """JobError where the mark isn't there."""
    if mark and open_source(store).stamp(mark) is None:
        raise JobError(
            f"The worker on {socket.gethostname()} does not see the store's folder.",
            expected=f"{store} on every machine of the cluster, as on this one",
            given="no such folder there, or another one",
            next_step="put the store on a disk that all of them share, under one path; live experiments also "
            "run on a store at a URL.",
        )
