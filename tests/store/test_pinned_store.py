"""A store from before stores knew object stores opens as it did, and the same is written today."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from synthetic_store import expected, write_all

from store.manifest import verify
from store.maps import MapLog
from store.reader import Store
from store.runs import RunLog

PINNED = Path(__file__).resolve().parents[1] / "pinned" / "store.zip"
RUN = "b92662542a2e087d"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    with zipfile.ZipFile(PINNED) as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def test_it_opens(old: Path, tmp_path: Path) -> None:
    assert verify(old) == []
    plan = write_all(tmp_path / "new")
    store = Store(old)
    for model in plan.models:
        for component in plan.components:
            found = store.activations(model, component, 1, "mean", stored=True)
            np.testing.assert_array_equal(found, expected(plan, model, "mean", component, 1))
    assert RunLog(old).ids() == [RUN]
    assert RunLog(old).open(RUN).table["kl"].to_list() == [0.25, None]
    np.testing.assert_array_equal(MapLog(old).open("one").arrays["x"], np.arange(3.0))


def test_the_same_is_written_today(old: Path, tmp_path: Path) -> None:
    write_all(tmp_path / "new")
    written = [path for path in sorted(old.rglob("*")) if path.is_file()]
    own = [path for path in written if path.relative_to(old).parts[0] not in ("runs", "maps")]
    assert len(own) == 121
    for path in own:
        assert (tmp_path / "new" / path.relative_to(old)).read_bytes() == path.read_bytes(), path.name


def test_it_is_gone_on_with(old: Path) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    write_all(old)
    kept = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    lock = kept.pop(old / ".writer.lock")
    assert (kept, lock) == (before, b"")
