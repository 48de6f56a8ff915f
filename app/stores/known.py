"""The stores that a server was started with, by name: given ones, and those that lie in a folder given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from store.layout import MANIFEST
from store.sources import as_place

__all__ = ["named"]


def named(places: Iterable[str]) -> dict[str, str]:
    """Name -> place of every store, in order; of a folder that is no store, the stores right inside of it.

    A store is called after its folder; of several with one name, later ones have more of their path.
    """
    found: dict[str, str] = {}
    for place in dict.fromkeys(one for given in places for one in _stores(str(as_place(given)))):
        parts = place.rstrip("/").split("/")
        names = ["/".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        found[next(name for name in [*names, place] if name not in found)] = place
    return found


def _stores(place: str) -> Iterator[str]:
    folder = Path(place)
    if "://" in place or not folder.is_dir() or (folder / MANIFEST).is_file():
        yield place
        return
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    yield from map(str, inside or [folder])
