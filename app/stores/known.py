"""The stores that a server was started with, by name: given ones, and those that lie in a folder given."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from engine.errors import StoreError
from store.layout import MANIFEST
from store.places.client import check_url, shown
from store.sources import as_place

__all__ = ["named"]


def named(places: Iterable[str]) -> dict[str, str]:
    """Name -> place of every store, in order; of a folder that is no store, the stores right inside of it.

    A store is called after its folder; of several with one name, later ones have more of their path.
    """
    found: dict[str, str] = {}
    seen = set()
    for place in (one for given in places for one in _stores(str(as_place(given)))):
        whole = _parts(place)
        if whole not in seen:
            seen.add(whole)
            names = ("/".join(whole[-length:]) for length in range(1, len(whole) + 1))
            again = (f"{whole[-1]} ({number})" for number in itertools.count(2))
            found[next(name for name in itertools.chain(names, again) if name not in found)] = place
    return found


def _parts(place: str) -> tuple[str, ...]:
    """What a place is called by, the last part first of all; nothing of a URL that may be a secret."""
    if "://" not in place:
        return Path(place).resolve().parts
    try:
        _, bucket, prefix = check_url(place)
    except StoreError:
        return (shown(place),)
    return (bucket, *filter(None, prefix.split("/")))


def _stores(place: str) -> Iterator[str]:
    folder = Path(place)
    if "://" in place or not folder.is_dir() or (folder / MANIFEST).is_file():
        yield place
        return
    inside = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    yield from map(str, inside or [folder])
