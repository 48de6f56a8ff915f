"""A step in a process of its own: its time, its memory at most, and what it left in the store.

Nothing large is imported here: a process's peak memory starts from that of the one that starts it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RSS_BYTES = 1 if sys.platform == "darwin" else 1024
"""What ru_maxrss counts in."""


@dataclass(frozen=True)
class Step:
    """One step as it was measured.

    Attributes:
        wall, cpu: seconds. peak: resident bytes at most, mapped weights included.
        written: bytes by which the store grew. code: exit status. said: the end of what it printed.
        found: the JSON of its last line, None without one. note: for the table.
    """

    name: str
    wall: float
    cpu: float
    peak: int
    written: int
    code: int
    said: str
    found: Any = None
    note: str = ""

    def row(self) -> str:
        """A line of the table."""
        written = f"{self.written / 1e6:,.2f}" if self.written else ""
        result = "ok" if self.code == 0 else f"**failed ({self.code})**"
        return (
            f"| {self.name} | {result} | {self.wall:,.1f} | {self.cpu:,.1f} | {self.peak / 1e9:.2f} "
            f"| {written} | {self.note} |"
        )


HEAD = "| step | result | wall, s | CPU, s | peak memory, GB | store, MB | |\n|---|---|---|---|---|---|---|"


def run(name: str, arguments: Sequence[str], store: Path) -> Step:
    """Runs Python with these arguments from the project's folder and measures the process."""
    paths = [str(ROOT), str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    before, start = size_of(store), time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=out, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        printed, logged = _text(out), _text(log)
    return Step(
        name=name,
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak=usage.ru_maxrss * RSS_BYTES,
        written=size_of(store) - before,
        code=process.returncode,
        said="\n".join([*logged.splitlines()[-12:], *printed.splitlines()[-12:]]),
        found=_json(printed),
    )


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, hard links once; 0 where there is none."""
    found = [file.stat() for file in folder.rglob("*") if file.is_file()]
    return sum({(facts.st_dev, facts.st_ino): facts.st_size for facts in found}.values())


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read().decode(errors="replace"))


def _json(printed: str) -> Any:
    for line in reversed(printed.splitlines()):
        if line.startswith(("{", "[")):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None
