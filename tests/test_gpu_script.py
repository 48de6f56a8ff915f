"""The accelerator's script runs whole on a CPU, and refuses wrong numbers and missing halvings."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("gpu")
    sys.path.remove(str(FOLDER))


def test_every_part_on_a_cpu(gpu: Any, tmp_path: Path) -> None:
    file = tmp_path / "gpu.md"
    assert gpu.main(["--device", "cpu", "--dtypes", "float32,bfloat16", "--markdown", str(file)]) == 0
    text = file.read_text()
    assert "says nothing about speed" in text
    rows = [line.split(" | ")[:2] for line in text.splitlines()[4:]]
    kinds = [(what.removeprefix("| ").split(",")[0], dtype) for what, dtype in rows]
    for dtype in ("float32", "bfloat16"):
        for what in ("peak: matrix product", "correct: captured rows", "correct: KL of patches"):
            assert (what, dtype) in kinds
        for what in ("capture", "sweep", "generation"):
            assert (what, dtype) in kinds
    assert ("memory: capture", "bfloat16") in kinds


def test_a_device_that_computes_wrongly_is_refused(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = gpu.captured, []

    def wrong(*args: Any) -> Any:
        calls.append(args)
        found = real(*args)
        return found if len(calls) != 3 else {key: rows * 1.0001 for key, rows in found.items()}

    monkeypatch.setattr(gpu, "captured", wrong)  # reference, CPU, device
    table = gpu.Table(gpu.torch.device("cpu"))
    gpu.correct(table, gpu.SMALL, ["float32"])
    assert table.failed
    assert "**wrong**" in table.rows[0]
    assert "**wrong**" not in table.rows[1], "the KLs were right"


def test_a_halving_that_does_not_happen_is_refused(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "short_of_memory", lambda *_: contextlib.nullcontext())
    table = gpu.Table(gpu.torch.device("cpu"))
    gpu.memory(table, gpu.SMALL, "float32")
    assert "0 halvings" in table.rows[0]
    assert table.failed


def test_a_part_that_breaks_leaves_the_others(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: Any) -> None:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(gpu, "throughput", broken)
    broken.__name__ = "throughput"
    assert gpu.main(["--device", "cpu", "--dtypes", "float32"]) == 1
