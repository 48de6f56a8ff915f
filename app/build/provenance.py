"""What the manifest says of a store's making: study, models, machine, versions, checks, times."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.study.study import Study

__all__ = ["provenance"]

LIBRARIES = ("torch", "transformers", "tokenizers", "peft", "zarr", "zarrs", "numcodecs", "numpy", "polars")


def provenance(
    study: Study, models: dict[str, Any], checks: list[dict[str, Any]], started: float
) -> dict[str, Any]:
    """The manifest's free part; times and process facts are what a resumed run may differ in."""
    now = time.time()
    return {
        "models": {name: {k: v for k, v in info.items() if k != "rounding"} for name, info in models.items()},
        "rounding": {name: info["rounding"] for name, info in models.items()},
        "self_checks": checks,
        "seeds": {"study": study.seed},
        "created": datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(now - started, 3),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the libraries that numbers may depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """The machine in the terms that change rounding: system, processor, threads, accelerator."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_commit() -> str | None:
    """The commit of the code that ran, with "+" behind it when files were changed since; None outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
        done = subprocess.run(run, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
