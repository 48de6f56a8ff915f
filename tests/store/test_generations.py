"""A store at a gs:// URL: what is put on a condition is put on the generation's, which it goes by there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gcs_server
import polars as pl
import pytest
import s3_server
from synthetic_store import FINGERPRINT, STUDY, planes, small_plan, write_all

from engine.errors import StoreError
from store.manifest import verify
from store.places import lease
from store.reader import Store
from store.runs import RunLog
from store.writer import StoreWriter

pytest.importorskip("obstore", reason="needs obstore (pip install '.[s3]')")
TABLE = pl.DataFrame({"id": ["p0"], "kl": [0.25]})


@pytest.fixture(scope="module")
def service() -> Iterator[gcs_server.Service]:
    with gcs_server.serving() as service:
        yield service


@pytest.fixture
def url(service: gcs_server.Service, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "BEAT", 0.2)
    monkeypatch.setattr(lease, "PATIENCE", 2.0)
    service.objects.clear()
    return "gs://bucket/some/store"


def objects(service: gcs_server.Service) -> dict[str, bytes]:
    start = "bucket/some/store/"
    return {name.removeprefix(start): data for name, (_, data) in service.objects.items()}


def test_the_bytes_are_the_local_ones(service: gcs_server.Service, url: str, tmp_path: Path) -> None:
    write_all(tmp_path / "store")
    write_all(url)
    assert objects(service) == s3_server.files(tmp_path / "store")
    assert verify(url) == []
    assert Store(url).prompts.equals(Store(tmp_path / "store").prompts)
    run_id = RunLog(url).append({"layer": 1}, {}, TABLE)
    assert RunLog(url).open(run_id).table.equals(TABLE)


def test_one_writer_holds_it_and_a_manifest_that_changed_is_not_replaced(
    service: gcs_server.Service, url: str
) -> None:
    with StoreWriter.create_or_resume(url, small_plan(), STUDY, FINGERPRINT) as first:
        generation = service.objects["bucket/some/store/.writer.lock"][0]
        with pytest.raises(StoreError, match="Another writer is at work"):
            StoreWriter.create_or_resume(url, small_plan(), STUDY, FINGERPRINT)
        assert service.objects["bucket/some/store/.writer.lock"][0] > generation, "no sign of life was put"
        assert first.commit("base", 0, planes(first.plan, "base", 0))
        name = "bucket/some/store/manifest.json"
        first.set_state("failed")
        source = first._source
        service.put(name, b"another's", None)
        with pytest.raises(StoreError, match="replaced by somebody else meanwhile"):
            source.replace("manifest.json", b"mine")
        assert service.objects[name][1] == b"another's"
    assert "bucket/some/store/.writer.lock" not in service.objects
