"""Names that people give: of studies, models and contrasts. A name is never a path, and reads as it is.

Names become names of folders and tables, so they have no separators, control characters or leading dot, are
in Unicode's composed form (NFC), of bounded length, and differ in more than case, which file systems may not
tell.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["check_apart", "check_hub_id", "check_key", "check_title", "folded"]

LONGEST = 100
"""Characters of a name; four bytes each still fit into a folder's name of 255 bytes with `runs/` suffixes."""
KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")

RESERVED = frozenset(
    ("con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10)))
)
"""Names that Windows keeps for devices, whatever follows their first dot."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def check_key(name: str, what: str) -> str:
    """The name of a model or a contrast, which other keys refer to; ValueError says what is wrong."""
    if not KEY.fullmatch(name):
        raise ValueError(
            f"the {what} name {name[:LONGEST]!r} may use letters, digits, '_', '-' and '.' only, "
            "the last two not at its ends"
        )
    if name.lower().split(".")[0] in RESERVED:
        raise ValueError(f"the {what} name {name!r} is one that Windows keeps for a device")
    return _bounded(name, what)


def check_hub_id(name: str) -> str:
    """An id on the Hugging Face Hub; ValueError for what could be a path or an address."""
    if not HUB_ID.fullmatch(name) or ".." in name or "--" in name or len(name) > LONGEST:
        raise ValueError("an id on the Hub, 'name' or 'owner/name'; local files are named with 'path'")
    return name


def check_title(name: str, what: str) -> str:
    """A name for people, in any script; ValueError says what is wrong."""
    if not name.strip():
        raise ValueError(f"the {what} name is empty")
    for mark in name:
        if mark in "/\\" or unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise ValueError(f"the {what} name has {mark!a}: no '/', '\\' and control characters in a name")
    if name[0] == "." or name != name.strip():
        raise ValueError(f"the {what} name may not begin with '.', nor begin or end with a space")
    if unicodedata.normalize("NFC", name) != name:
        raise ValueError(f"the {what} name is not in Unicode's composed form (NFC); type it again")
    return _bounded(name, what)


def check_apart(names: Iterable[str], what: str) -> None:
    """ValueError when two names are one to a file system that doesn't tell case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise ValueError(f"the {what} names {other!r} and {name!r} differ in case only")


def folded(name: str) -> str:
    """A name as a file system that doesn't tell case takes it."""
    return unicodedata.normalize("NFC", name.casefold())


def _bounded(name: str, what: str) -> str:
    if len(name) > LONGEST or len(name.encode()) > 200:
        raise ValueError(f"the {what} name has {len(name)} characters; at most {LONGEST}, and 200 bytes")
    return name
