"""Workers here or on Ray, whichever was asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from app.workers.asked import Workers
from app.workers.hands import Hands, Here, Worker

__all__ = ["hire"]


def hire(asked: Workers, worker: Worker, store: str | Path, most: int) -> AbstractContextManager[Hands]:
    """Workers as asked for, until the block is left.

    Args:
        store: the place of the store that they write to.
        most: of them.

    Raises:
        JobError: Ray isn't installed, its cluster can't be joined or has no room for them.
        StoreError: nothing can be written to the store.
    """
    if asked.engine == "local":
        return nullcontext(Here(worker))
    from app.workers.ray_actors import on_ray

    return on_ray(asked, worker, store, most)
