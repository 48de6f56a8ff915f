"""Writes `.ci/hashes.txt`: the SHA-256 of each pinned package as this platform's index serves it.

    .venv/bin/python .ci/hashes.py     after a change of constraints.txt

torch is left out: its build (CPU, CUDA) is chosen by whoever installs it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HASHES = ROOT / ".ci" / "hashes.txt"


def pins() -> list[str]:
    """The lines `name==version` of constraints.txt, without torch."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and not line.startswith(("#", "torch=="))]


def main() -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
    ]
    found = subprocess.run(
        [*command, "--report", "-", *pins()], check=True, stdout=subprocess.PIPE, text=True
    )
    digests = {
        f"{entry['metadata']['name'].lower().replace('_', '-')}=={entry['metadata']['version']}": entry[
            "download_info"
        ]["archive_info"]["hashes"]["sha256"]
        for entry in json.loads(found.stdout)["install"]
    }
    lines = ["# Linux x86-64, CPython 3.11; written by .ci/hashes.py, checked by `make audit`."]
    lines += [f"{pin} --hash=sha256:{digests[pin.lower().replace('_', '-')]}" for pin in pins()]
    HASHES.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
