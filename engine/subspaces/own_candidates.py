"""A user's own candidate subspaces: one Python file, run only when it is allowed and is the file meant."""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import AnalysisError, StudyError
from engine.subspaces.numbers import Candidate, Registry, registering_in

__all__ = ["Loaded", "OwnFile", "load"]


@dataclass(frozen=True)
class OwnFile:
    """The file of candidates that a study names.

    Attributes:
        path: where it is. digest: SHA-256 of the content that the study was made with, None without a file.
        allowed: whether whoever started the program lets it run (`--allow-code`).
    """

    path: Path
    digest: str | None
    allowed: bool = False


@dataclass(frozen=True)
class Loaded:
    """What a file of candidates gave.

    Attributes:
        registry: the given candidates and the file's own. names: its own that can be used.
        refused: name -> reason, candidates that can't be registered.
        problem: what ended the file early, with its line; "" when it ran to its end.
    """

    registry: Registry
    names: tuple[str, ...]
    refused: Mapping[str, str]
    problem: str


class _Collecting(Registry):
    """Remembers what is refused instead of stopping the file."""

    def __init__(self, entries: Mapping[str, Candidate]) -> None:
        super().__init__(entries)
        self.given, self.refused = set(entries), dict[str, str]()

    def add(self, entry: Candidate) -> None:
        try:
            super().add(entry)
        except AnalysisError as error:
            self.refused[str(entry.name)] = str(error)


def load(own: OwnFile, registry: Mapping[str, Candidate]) -> Loaded:
    """Runs a file of candidates; they are added to a copy of the registry.

    The bytes that are run are those whose hash was compared. One file: it can import what is installed, but
    not files beside it, which no hash vouches for.

    Raises:
        StudyError: running it isn't allowed, it isn't there, or its content is another one than the study's.
    """
    if not own.allowed:
        raise StudyError(
            f"The study's own candidates in {own.path.name} are code, which isn't run by itself.",
            expected="the option --allow-code",
            given="none",
            next_step=f"read {own.path}; if you trust it, start again with --allow-code.",
        )
    try:
        content = own.path.read_bytes()
    except OSError as error:
        raise StudyError(
            "The study's own candidates can't be read.",
            expected=f"the file {own.path}",
            given=error.strerror or error,
            next_step="put the file there again.",
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != own.digest:
        raise StudyError(
            f"The study's own candidates in {own.path} are not those that the study was made with.",
            expected=f"content with SHA-256 {own.digest}",
            given=digest,
            next_step="put the former file back, or run precompute.py into a new folder.",
        )
    found = _Collecting(registry)
    problem = _execute(content, own.path, digest, found)
    names = tuple(name for name in found if name not in found.given)
    return Loaded(Registry(found), names, found.refused, problem)


def _execute(content: bytes, path: Path, digest: str, registry: Registry) -> str:
    """Runs the file as a module of its own; what ended it early."""
    module = types.ModuleType(f"own_candidates_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        with registering_in(registry), np.errstate():
            exec(compile(content, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        return f"{path.name}, line {error.lineno}: {type(error).__name__}: {error.msg}"
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        place = f"{path.name}, line {lines[-1]}" if lines else path.name
        return f"{place}: {type(error).__name__}: {error}"
    return ""
