"""Live experiments on two Ray actors against one: the ratio of their times, models loaded and all.

    python benchmarks/ray_sweep.py STORE --condition experiments.json
    python benchmarks/ray_sweep.py STORE --condition experiments.json --address auto --gpus-per-worker 1

Each round runs every experiment, in a copy of the store without runs; which comes first changes from round to
round. What starting actors takes is in both. Below 2 is what actors get that share what they run on.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from app.live.headless import read_experiments, run_all
from app.workers.asked import Workers
from engine.lab.experiment import Experiment


def seconds(store: Path, experiments: Sequence[Experiment], workers: Workers) -> float:
    """Wall time of all experiments on a fresh copy of a store; SystemExit where one failed."""
    with tempfile.TemporaryDirectory(dir=store.parent) as folder:
        copy = Path(folder) / "store"
        shutil.copytree(store, copy, ignore=shutil.ignore_patterns("runs"))
        begun = time.perf_counter()
        failed = run_all(str(copy), experiments, quiet=True, workers=workers)
        taken = time.perf_counter() - begun
    if failed:
        raise SystemExit(f"{failed[0][0].describe()}: {failed[0][1]}")
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the times of each round and the median ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--condition", action="append", required=True, metavar="JSON")
    parser.add_argument("--address")
    parser.add_argument("--gpus-per-worker", type=float)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    experiments = read_experiments(options.condition)
    ratios = []
    for number in range(options.rounds):
        taken = {}
        for count in ((1, 2), (2, 1))[number % 2]:
            workers = Workers("ray", options.address, count, options.gpus_per_worker)
            taken[count] = seconds(options.store, experiments, workers)
        ratios.append(taken[1] / taken[2])
        print(f"{len(experiments)} experiments: one actor {taken[1]:.1f} s, two {taken[2]:.1f} s")
    middle = statistics.median(ratios)
    print(f"one actor takes {middle:.2f} times as long as two (median of {len(ratios)} rounds)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
