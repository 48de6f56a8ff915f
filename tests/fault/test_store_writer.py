"""Writers that are killed, run out of disk, meet a read-only folder, or work at the same time."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_store import FINGERPRINT, STUDY, contents, planes, small_plan, write_all

from engine.errors import StoreError
from store import files
from store.manifest import verify
from store.reader import Store
from store.writer import StoreWriter

pytestmark = pytest.mark.fault

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from synthetic_store import small_plan, write_all
{before}
write_all(Path(sys.argv[1]), small_plan(n_prompts=21, unit_prompts=3))
"""

DIES = """
import os, signal
from store import files
calls, real = 0, (os.replace, os.write, os.fsync)
def counted(number):
    def call(*arguments):
        global calls
        calls += 1
        if calls == {moment}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real[number](*arguments)
    return call
os.replace, os.write, os.fsync = counted(0), counted(1), counted(2)
"""


def run_child(path: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).resolve().parents[1])
    script = CHILD.format(tests=tests, before=before)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, str(path)],
        env=environment,
        cwd=Path(tests).parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    path = tmp_path_factory.mktemp("whole") / "store"
    write_all(path, small_plan(n_prompts=21, unit_prompts=3))
    return contents(path, manifest=True)


@pytest.mark.parametrize("moment", [1, 2, 9, 400, 1001, 1535])
def test_killed_anywhere_and_resumed_is_byte_identical(
    tmp_path: Path, uninterrupted: dict[str, bytes], moment: int
) -> None:
    """Moments are counted in disk operations (write, rename), of which an uninterrupted run has 1536."""
    path = tmp_path / "store"
    died = run_child(path, DIES.format(moment=moment))
    assert died.returncode == -signal.SIGKILL, died.stderr
    if (path / "manifest.json").exists():
        assert not Store(path).complete
        listed = [p for p in verify(path) if "no ledger entry" not in p.what and "killed run" not in p.what]
        assert not [p for p in listed if p.chunk != "ledger/layout.json"], "what is in the ledger is whole"
    write_all(path, small_plan(n_prompts=21, unit_prompts=3))
    assert contents(path, manifest=True) == uninterrupted
    assert verify(path) == []


def test_killed_twice_at_random_times(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    path = tmp_path / "store"
    rng = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    for _ in range(2):
        moment = int(rng.integers(1, 1537))
        run_child(path, DIES.format(moment=moment))
    write_all(path, small_plan(n_prompts=21, unit_prompts=3))
    assert contents(path, manifest=True) == uninterrupted


def test_resume_removes_what_was_never_committed(tmp_path: Path) -> None:
    plan = write_all(tmp_path / "s", finish=False)
    before = contents(tmp_path / "s")
    strays = (
        "activations/base/mean/sites/c.0.0.7.0",
        "grams/base/last_content/other/c.0.0.0",
        "weights/base/torn/zarr.json",
        "tables/torn.parquet",
        "ledger/.tmp-1-2-3-base-00000.json",
        ".tmp-1-2-3-manifest.json",
    )
    for name in strays:
        (tmp_path / "s" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "s" / name).write_bytes(b"torn")
    assert len(verify(tmp_path / "s")) == len(strays)
    StoreWriter.create_or_resume(tmp_path / "s", plan, STUDY, FINGERPRINT).close()
    assert contents(tmp_path / "s") == before


def test_order_of_units_does_not_matter(tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    plan = small_plan(n_prompts=21, unit_prompts=3)
    with StoreWriter.create_or_resume(tmp_path / "s", plan, STUDY, FINGERPRINT, durable=False) as writer:
        for model in reversed(list(plan.models)):
            for unit in reversed(writer.pending(model)):
                writer.commit(model, unit, planes(plan, model, unit))
    write_all(tmp_path / "s", plan)
    assert contents(tmp_path / "s", manifest=True) == uninterrupted


def test_two_threads_and_two_writers(tmp_path: Path) -> None:
    """Units split between two writers that are open at once, each with two threads."""
    plan = small_plan(n_prompts=40, unit_prompts=4)
    write_all(tmp_path / "alone", plan)
    errors: list[BaseException] = []

    def work(writer: StoreWriter, units: range) -> None:
        try:
            for model in plan.models:
                for unit in units:
                    writer.commit(model, unit, planes(plan, model, unit))
        except BaseException as error:
            errors.append(error)

    first = StoreWriter.create_or_resume(tmp_path / "s", plan, STUDY, FINGERPRINT, durable=False)
    stray = tmp_path / "s/activations/base/mean/sites/c.0.0.9.0"
    stray.write_bytes(b"being written by the first")
    second = StoreWriter.create_or_resume(tmp_path / "s", plan, STUDY, FINGERPRINT, durable=False)
    assert stray.exists(), "a writer that joins another must not remove what that one is writing"
    jobs = [
        (first, range(0, 10, 3)),
        (first, range(1, 10, 3)),
        (second, range(2, 10, 3)),
        (second, range(0, 10, 3)),
    ]
    threads = [threading.Thread(target=work, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    first.close()
    second.close()
    write_all(tmp_path / "s", plan)
    assert contents(tmp_path / "s", manifest=True) == contents(tmp_path / "alone", manifest=True)


def test_two_processes_start_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    tests = str(Path(__file__).resolve().parents[1])
    script = CHILD.format(tests=tests, before="").replace("unit_prompts=3)", "unit_prompts=3), finish=False")
    children = [
        subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=Path(tests).parent) for _ in range(2)
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    plan = small_plan(n_prompts=21, unit_prompts=3)
    write_all(path, plan)
    assert verify(path) == []
    write_all(tmp_path / "alone", plan)
    assert contents(path) == contents(tmp_path / "alone")


def full_disk(monkeypatch: pytest.MonkeyPatch, after: int, code: int = errno.ENOSPC) -> None:
    """Writing fails after `after` calls, in the middle of a file."""
    real, left = os.write, [after]

    def write(handle: int, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            real(handle, bytes(data)[:3])
            raise OSError(code, os.strerror(code))
        return real(handle, data)

    monkeypatch.setattr(files.os, "write", write)


@pytest.mark.parametrize("after", [0, 1, 3, 8])
def test_full_disk_at_the_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    full_disk(monkeypatch, after)
    with pytest.raises(StoreError, match=r"disk is full: could not write .*No space left.*Free some space"):
        StoreWriter.create_or_resume(tmp_path / "s", small_plan(), STUDY, FINGERPRINT)
    assert not (tmp_path / "s").exists()


def count_writes(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Calls of os.write that one unit takes."""
    plan, real, calls = small_plan(), os.write, [0]

    def write(handle: int, data: Any) -> int:
        calls[0] += 1
        return real(handle, data)

    with (
        StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer,
        monkeypatch.context() as patch,
    ):
        patch.setattr(files.os, "write", write)
        writer.commit("base", 1, planes(plan, "base", 1))
    return calls[0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_full_disk_in_a_unit_takes_the_unit_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Fails after this share of the unit's writes; the last one is the ledger's."""
    plan, path = small_plan(), tmp_path / "s"
    after = int(share * (count_writes(tmp_path / "other", monkeypatch) - 1))
    with StoreWriter.create_or_resume(path, plan, STUDY, FINGERPRINT, durable=False) as writer:
        writer.commit("base", 0, planes(plan, "base", 0))
        before = contents(path, manifest=True)
        with monkeypatch.context() as patch:
            full_disk(patch, after)
            with pytest.raises(StoreError, match=r"disk is full"):
                writer.commit("base", 1, planes(plan, "base", 1))
        assert contents(path, manifest=True) == before
        assert writer.pending("base") == [1, 2]
        with monkeypatch.context() as patch:
            full_disk(patch, min(after, 3))
            with pytest.raises(StoreError, match=r"disk is full"):
                writer.write_array("weights/base/w", np.ones((3, 2)), ("a", "b"))
        assert not writer.has_array("weights/base/w")
        assert not list((path / "weights").rglob("c.*"))
    write_all(path, plan)
    write_all(tmp_path / "alone", plan)
    assert contents(path) == contents(tmp_path / "alone")


def test_a_real_size_limit_of_the_system(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes the kernel itself refuse a write, as a quota does."""
    before = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))"
    )
    child = run_child(tmp_path / "s", before)
    assert child.returncode == 1
    assert "StoreError: The disk is full: could not write" in child.stderr
    assert not list((tmp_path / "s").rglob(".tmp-*"))


def test_too_small_a_disk_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("store.folder.shutil.disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match=r"too small for this study\. Expected: about .* GB free"):
        StoreWriter.create_or_resume(tmp_path / "s", small_plan(), STUDY, FINGERPRINT)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    write_all(tmp_path / "s", finish=False)
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    for name in ("s", "new"):
        with pytest.raises(StoreError, match=r"folder is read-only: could not write .*--store"):
            StoreWriter.create_or_resume(tmp_path / name, small_plan(), STUDY, FINGERPRINT)
    assert not (tmp_path / "new").exists()
    assert Store(tmp_path / "s").activations("base", "resid", 0).shape == (21, 10), "reading needs no writing"
