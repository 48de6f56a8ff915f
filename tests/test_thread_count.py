"""A store's bytes don't depend on how many threads made it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_study import save_model, write_study

ROOT = Path(__file__).resolve().parents[1]
MADE_BY_TIME = ("manifest.json", ".writer.lock")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models wide enough that matrix libraries share their products among threads."""
    folder = tmp_path_factory.mktemp("threads")
    for seed, name in enumerate(("base", "tuned")):
        save_model(
            folder / name,
            seed=seed,
            hidden_size=256,
            intermediate_size=384,
            head_dim=64,
            num_attention_heads=8,
        )
    return write_study(folder, pairs=16, positions=["decision"])


def made(study: Path, threads: int, place: Path) -> dict[str, bytes]:
    """Every file of a store that a process with that many threads made, without what tells the time."""
    given = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
    }
    given["MKL_DYNAMIC"] = "FALSE"
    subprocess.run(
        [sys.executable, "precompute.py", str(study), "--store", str(place)],
        check=True,
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
    )
    files = (path for path in place.rglob("*") if path.is_file() and path.name not in MADE_BY_TIME)
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}


def test_one_thread_and_two_make_the_same_bytes(study: Path, tmp_path: Path) -> None:
    one, two = (made(study, threads, tmp_path / str(threads)) for threads in (1, 2))
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    assert any(name.startswith("weights/tuned/delta") for name in one)
    assert any(name.startswith("grams/") for name in one)
