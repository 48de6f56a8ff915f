"""Where files that a study names may lie: inside declared folders, after symbolic links are followed.

A study or a store is data, whoever wrote it, and may not point at any file of this machine. The folders are
the study's own (or that in which the store lies), the git checkout around it, the working folder and
Patchbay's own; never the home folder or one above it. Whoever starts a program adds others, by `--root` or
`PATCHBAY_ROOTS`; no file can.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from engine.errors import StudyError

__all__ = ["allow_roots", "also_allow", "confine", "confine_all", "declared_roots", "roots_for"]

VARIABLE = "PATCHBAY_ROOTS"
MOST_ENTRIES = 10_000
"""Files and folders below a model folder; one with more is something else."""

_declared: list[Path] = []


def allow_roots(folders: Iterable[str | Path]) -> None:
    """Sets the further folders that studies may name files in; for command lines alone.

    Raises:
        StudyError: one of them isn't a folder.
    """
    found = []
    for folder in folders:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise StudyError(
                "A root isn't there.",
                expected="--root followed by a folder",
                given=str(folder),
                next_step="correct the path, or leave it out.",
            )
        found.append(path.resolve())
    _declared[:] = found


def also_allow(folders: Iterable[Path]) -> None:
    """Adds roots: those of a study that whoever started the program named, for work on its store."""
    _declared.extend(folder for folder in folders if folder not in _declared)


def declared_roots() -> tuple[Path, ...]:
    """Folders given on the command line, and those of the environment variable, in this order."""
    named = filter(None, os.environ.get(VARIABLE, "").split(os.pathsep))
    return (*_declared, *(Path(name).expanduser().resolve() for name in named))


def roots_for(place: Path | None) -> tuple[Path, ...]:
    """Folders in which a study's files may lie.

    Args:
        place: the folder in which the study file or the store lies; None for a store at a URL.
    """
    found = []
    if place is not None:
        place = place.resolve()
        found += [place, *_checkout(place)]
    found += [Path.cwd(), Path(__file__).resolve().parents[2]]
    home = Path.home().resolve()
    return tuple(dict.fromkeys([*(f for f in found if not home.is_relative_to(f)), *declared_roots()]))


def confine_all(paths: Mapping[str, Path], place: Path | None) -> None:
    """StudyError for the first of a study's paths (by dotted key) that lies outside, or is no plain file.

    A folder is looked through: links in it may not lead outside, and it may hold files and folders only.
    """
    roots = roots_for(place)
    for key, path in paths.items():
        confine(path, key, roots)
        if path.is_dir():
            for inner in _below(path, key):
                confine(inner, key, roots)


def confine(path: Path, key: str, roots: tuple[Path, ...]) -> None:
    """StudyError when a path leads outside the roots, or to a pipe, a device or a socket."""
    try:
        real = path.resolve()
        kind = real.stat().st_mode if real.exists() else None
    except (OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"The study's {key} can't be followed.",
            expected="a path to a file or a folder",
            given=f"{str(path)[:200]!r} ({error})"[:400],
            next_step=f"correct {key}.",
        ) from None
    if not any(real.is_relative_to(root) for root in roots):
        links = "" if real == path else f", which is {real}"
        raise StudyError(
            f"The study's {key} lies outside the folders that its files may be in.",
            expected="a place inside " + ", ".join(map(str, roots)),
            given=f"{path}{links}",
            next_step=f"if you trust this study with that folder, start again with --root {real.parent}",
        )
    if kind is not None and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise StudyError(
            f"The study's {key} is no plain file.",
            expected="a file or a folder",
            given=f"{path}, a pipe, a device or a socket",
            next_step=f"put a file there, or correct {key}.",
        )


def _checkout(place: Path) -> list[Path]:
    """The innermost git checkout around a folder, as a list of one or none."""
    return [folder for folder in (place, *place.parents) if (folder / ".git").exists()][:1]


def _below(folder: Path, key: str) -> Iterator[Path]:
    """Everything below a folder that is a link or no plain file; links to folders are not entered."""
    count = 0
    for at, folders, files in os.walk(folder):
        count += len(folders) + len(files)
        if count > MOST_ENTRIES:
            raise StudyError(
                f"The study's {key} is no model folder.",
                expected=f"at most {MOST_ENTRIES:,} files",
                given=f"more in {folder}",
                next_step=f"correct {key}: name the folder of one model.",
            )
        for name in (*folders, *files):
            path = Path(at, name)
            if not stat.S_ISREG(mode := path.lstat().st_mode) and not stat.S_ISDIR(mode):
                yield path
