"""A report on disk: a folder that appears whole, or one HTML file; and the journal as one zip."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from app.report.markdown import NAME
from engine.errors import StoreError
from store.files import TEMPORARY, atomic_write, storage_errors

HTML = "report.html"
_OWN = (HTML, NAME, "figures", "data", "not-run-*.json")


def write(out: Path, page: str, journal: Mapping[str, bytes]) -> Path:
    """Writes `out`: one file when its name ends in .html, else a folder with HTML and journal.

    A folder is written beside its place and renamed, so that nobody sees half of one; an earlier report
    there is replaced whole.

    Returns:
        the HTML file.

    Raises:
        StoreError: the folder holds something that is no report; it stays untouched. Or the disk refuses.
    """
    if out.suffix.lower() in (".html", ".htm"):
        atomic_write(out, [page.encode()])
        return out
    _require_own(out)
    hidden = out.with_name(f"{TEMPORARY}{os.getpid()}-{out.name}")
    old = hidden.with_name(f"{hidden.name}-old")
    try:
        for name, data in {HTML: page.encode(), **journal}.items():
            atomic_write(hidden / name, [data], durable=False)
        with storage_errors(out):
            if out.exists():
                os.rename(out, old)
            os.rename(hidden, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    return out / HTML


def _require_own(out: Path) -> None:
    if not out.exists():
        return
    found = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = [name for name in found if not (out.is_dir() and any(fnmatch(name, own) for own in _OWN))]
    if foreign:
        raise StoreError(
            "A report is not written over something else.",
            expected=f"a new or empty folder, or one that holds a report, at {out}",
            given=f"one with {foreign[0]!r}" if out.is_dir() else "a file",
            next_step="name another folder with --out.",
        )


def zipped(journal: Mapping[str, bytes]) -> bytes:
    """The journal's files as one zip; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(journal.items()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
