"""`kill -9` at 20 random moments of precompute, resumed each time, ends with the very same bytes."""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from tiny_study import write_study

pytestmark = pytest.mark.fault

KILLS = 20
SUBSPACES = '[subspaces]\npositive = "Agree."\nnegative = "Check."\nfit = 6\nevaluate = 4'


def compute(study: str, store: str) -> None:
    """Runs in a child process."""
    import torch

    gc.freeze()  # what was imported is not looked through again
    torch.set_num_threads(1)
    os.fsync = lambda handle: None  # what was written outlives a killed process; a flush is half of the time
    from app.build.build import build
    from engine.study.study import Study

    build(Study.load(study), Path(store), quiet=True)


def contents(store: Path) -> dict[str, str]:
    """Every file but the manifest and a run's record (which hold times and process facts)."""
    return {
        path.relative_to(store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name not in ("manifest.json", "run.json", ".writer.lock")
    }


def test_twenty_kills_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A child imports its parent's main module again, and page tests leave a page there.
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    study = str(write_study(tmp_path / "study", pairs=10, positions=["decision"], extra=SUBSPACES))
    context = multiprocessing.get_context("forkserver")
    # Modules that a build imports while it runs; a child would else spend half of its time on them.
    context.set_forkserver_preload(["app.build.build", "transformers.models.qwen3.modeling_qwen3"])

    def start(store: Path) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=compute, args=(study, str(store)))
        process.start()
        return process

    ready = context.Process(target=os.getpid)
    ready.start()
    ready.join()  # the server's imports are no part of what is timed
    began = time.monotonic()
    whole = start(tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    length = time.monotonic() - began
    reference = contents(tmp_path / "whole")
    assert len(reference) > 50  # arrays, tables and ledger entries of two models
    assert any(name.startswith("subspaces/label") for name in reference)

    moments = random.Random(7)
    kills = rounds = 0
    while kills < KILLS:
        store = tmp_path / f"killed-{rounds}"
        rounds, fresh, began = rounds + 1, True, time.monotonic()
        assert rounds < 4 * KILLS, "the child always finished before it could be killed"
        while True:
            process = start(store)
            process.join(moments.uniform(0.0, length) if kills < KILLS else None)
            if process.exitcode is None:
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                kills, fresh = kills + 1, False
                continue
            break
        if fresh:  # the machine was busier before
            length = min(length, time.monotonic() - began)
        assert process.exitcode == 0
        assert contents(store) == reference
