"""Python code that comes with a model runs where the process allows it and the study pins it.

A study, a store or a link is data, whoever wrote it. So the permission is a fact of the process, given on its
command line (`--allow-code`), and no file can give it. What may run then is code whose hash the study names.
"""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path

from engine.errors import StudyError
from engine.study.study import ModelSpec

__all__ = ["allow_code", "check_remote_code", "code_allowed", "code_hash"]

_allowed = threading.Event()


def allow_code(allowed: bool) -> None:
    """Lets models' own code run in this process, or no longer; for command lines alone."""
    (_allowed.set if allowed else _allowed.clear)()


def code_allowed() -> bool:
    """Whether whoever started this process lets models' own code run."""
    return _allowed.is_set()


def code_hash(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of all Python files in a model folder."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        whole.update(path.relative_to(folder).as_posix().encode() + b"\0")
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def check_remote_code(spec: ModelSpec) -> None:
    """Refuses a model whose study says `trust_remote_code = true`, unless that is allowed and pinned.

    Raises:
        StudyError: code isn't allowed in this process, or isn't the code that the study pins: by
            `code_sha256` for a folder, by a full commit hash as `revision` for the Hub.
    """
    if not spec.trust_remote_code:
        return
    name = str(spec.hub or spec.path)
    if not code_allowed():
        raise StudyError(
            f"The study lets Python code that comes with {name} run, which isn't done by itself.",
            expected="the option --allow-code",
            given="trust_remote_code = true in a file alone",
            next_step="read that code; if you trust it, start again with --allow-code.",
        )
    if spec.path is None:
        if not re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""):
            raise StudyError(
                f"The code of {name} isn't pinned.",
                expected="revision = a full commit hash, of 40 hexadecimal digits",
                given=repr(spec.revision),
                next_step="read the code at a commit and name that commit as the model's revision.",
            )
        return
    found = code_hash(spec.path)
    if found != spec.code_sha256:
        raise StudyError(
            f"The Python files in {name} are not those that the study pins.",
            expected=f'code_sha256 = "{spec.code_sha256}"'
            if spec.code_sha256
            else "code_sha256 in the study",
            given=found,
            next_step=f'read them; if you trust them, set code_sha256 = "{found}" for this model.',
        )
