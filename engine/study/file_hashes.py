"""Hashes of files and folders, by content."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

_SUFFIXES = {".safetensors", ".bin", ".pt", ".json", ".model", ".txt", ".jinja", ".py"}
_TRAINING_STATE = {"optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json", "rng_state.pth"}


def file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, remembered while its size and modification time stay."""
    stat = path.stat()
    return _hash(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash(path: str, _size: int, _mtime_ns: int) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def model_files(path: Path) -> dict[str, str]:
    """Content hashes of the files of a model, adapter or tokenizer folder that can change a number.

    Weights, configs, tokenizer and code files by name; readmes, hidden files and training state left out.
    A path to one file gives that file.
    """
    if path.is_file():
        return {path.name: file_hash(path)}
    files = (
        file
        for file in sorted(path.iterdir())
        if file.is_file()
        and file.suffix in _SUFFIXES
        and file.name not in _TRAINING_STATE
        and not file.name.startswith(".")
    )
    return {file.name: file_hash(file) for file in files}


def content_hash(path: Path) -> str:
    """SHA-256 (hex) of a file, or over the names and hashes of a model folder's files."""
    if path.is_file():
        return file_hash(path)
    lines = [f"{name}\0{digest}" for name, digest in model_files(path).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
