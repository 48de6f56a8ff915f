"""Where work is done, as a command line says it: here, one thing after the other, or on Ray's actors."""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.errors import JobError

__all__ = ["CHECKOUT", "HERE", "ROOT", "Workers", "add_options"]

ROOT = Path(__file__).resolve().parents[2]
CHECKOUT = [str(ROOT)] if (ROOT / "pyproject.toml").is_file() else []
"""Where another process finds Patchbay when it isn't installed."""


@dataclass(frozen=True)
class Workers:
    """Where work is done.

    Args:
        engine: "local", in this process; "ray", on actors, several at once.
        address: of a running cluster, HOST:PORT, ray://HOST:PORT or auto; None starts one on this machine.
        count: actors; None for one for each accelerator of the cluster, or each of its machines without any.
        gpus: accelerators of each actor, below 1 for a shared one; None for 1 where the cluster has some.
    """

    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    count: int | None = None
    gpus: float | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Workers:
        """What the options of `add_options` ask for.

        Raises:
            JobError: options that contradict each other, or no such numbers.
        """
        count, gpus = options.workers, options.gpus_per_worker
        only_ray = {"--workers": (count or 1) > 1, "--address": options.address, "--gpus-per-worker": gpus}
        given = [name for name, value in only_ray.items() if value]
        if options.engine == "local" and given:
            raise JobError(
                "One process takes no such option.",
                expected="--engine ray",
                given=f"--engine local with {' and '.join(given)}",
                next_step="leave one of them out.",
            )
        if count is not None and count < 1:
            raise JobError(
                "There is no such number of workers.",
                expected="1 or more",
                given=count,
                next_step="give another number of --workers.",
            )
        if gpus is not None and not (0 <= gpus < math.inf and (gpus < 1 or gpus.is_integer())):
            raise JobError(
                "There is no such share of an accelerator.",
                expected="--gpus-per-worker 0, 1, 2, …, or a share below 1, such as 0.5",
                given=gpus,
                next_step="give one of these, or leave --gpus-per-worker out.",
            )
        if options.engine == "ray" or given:
            return cls("ray", options.address or os.environ.get("RAY_ADDRESS") or None, count, gpus)
        return cls()


HERE = Workers()


def add_options(command: argparse.ArgumentParser, work: str) -> None:
    """The options that say where `work` is done."""
    command.add_argument(
        "--engine", choices=("local", "ray"), help=f"{work} in this process, or on Ray's actors (extra: ray)"
    )
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="that many Ray actors; without it one for each GPU of the cluster, or each machine without any",
    )
    command.add_argument(
        "--address",
        help="of a running Ray cluster: HOST:PORT, ray://HOST:PORT or auto (RAY_ADDRESS where it is set); "
        "without one Ray runs on this machine meanwhile",
    )
    command.add_argument(
        "--gpus-per-worker", type=float, metavar="G", help="GPUs of an actor, or its share of one (1 if any)"
    )
