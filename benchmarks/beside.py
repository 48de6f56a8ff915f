"""The plain way of a task beside Patchbay's: CPU time, its table, and the command line of what makes one."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Row:
    """One line: CPU seconds of the plain way (NaN where there is none) and of ours, and what was plain."""

    task: str
    plain: float
    fast: float
    how: str


def cpu(task: Callable[[], object], rounds: int = 3) -> float:
    """Least process CPU time of several runs, after one to warm up caches and buffers."""
    task()
    best = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        task()
        best = min(best, time.process_time() - start)
    return best


def options(about: str | None, quick: str) -> argparse.Namespace:
    """`--quick`, which means what `quick` says, and files for the results."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--markdown", type=Path, default=None)
    return parser.parse_args()


def report(chosen: argparse.Namespace, about: str, workload: dict[str, int], rows: Sequence[Row]) -> None:
    """Prints the table, and writes it to the files that were asked for."""
    lines = [about, "", "| task | plain, ms | here, ms | ratio | the plain way |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if np.isnan(row.plain) else f"{row.plain / row.fast:.0f}"
        plain = "" if np.isnan(row.plain) else f"{row.plain * 1e3:.3g}"
        lines.append(f"| {row.task} | {plain} | {row.fast * 1e3:.3g} | {ratio} | {row.how} |")
    print("\n".join(lines))
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(lines) + "\n")
    if chosen.json:
        seconds = [asdict(row) | {"plain": None if np.isnan(row.plain) else row.plain} for row in rows]
        chosen.json.write_text(json.dumps({"workload": workload, "rows": seconds}, indent=1))
