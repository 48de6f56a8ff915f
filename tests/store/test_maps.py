"""Saved maps: bit-identical, found damaged when they are, one file that any safetensors library reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from synthetic_store import write_all

from engine.errors import StoreError
from engine.transport import (
    ClusteredTransport,
    LogitSubspaceRidge,
    RidgeTransport,
    ScaledProcrustes,
    TransportMap,
    export_map,
    import_map,
)
from store import files
from store.manifest import verify
from store.maps import METADATA_KEY, MapLog, from_bytes

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(50, 6)), RNG.normal(size=(8, 6))
Y = X @ RNG.normal(size=(6, 6)) + 2.0
MAPS: list[TransportMap] = [
    ScaledProcrustes(n_components=4),
    RidgeTransport(),
    LogitSubspaceRidge(RNG.normal(size=(20, 6)), 3),
    ClusteredTransport(ScaledProcrustes(), n_clusters=3, min_size=18),
]
PROVENANCE = {"site": "resid_post", "layer": 3, "scores": {"r2_validation": 0.25}, "words": "größer"}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    write_all(tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("estimator", MAPS, ids=lambda m: type(m).__name__)
def test_a_saved_map_predicts_bit_for_bit(store: Path, estimator: TransportMap) -> None:
    fitted = estimator.fit(X, Y)
    MapLog(store).save("one", *export_map(fitted), PROVENANCE)
    kept = MapLog(store).open("one")
    assert kept.provenance == PROVENANCE
    back = import_map(kept.description, kept.arrays)
    np.testing.assert_array_equal(back.predict(NEW), fitted.predict(NEW))
    travelled = from_bytes(MapLog(store).data("one"))
    np.testing.assert_array_equal(
        import_map(travelled.description, travelled.arrays).predict(NEW), fitted.predict(NEW)
    )
    assert not verify(store)


def test_the_file_is_plain_safetensors_with_its_provenance(store: Path) -> None:
    fitted = RidgeTransport().fit(X, Y)
    MapLog(store).save("ridge", *export_map(fitted), PROVENANCE)
    with safe_open(store / "maps" / "ridge.safetensors", framework="numpy") as file:
        record = json.loads(file.metadata()[METADATA_KEY])
        np.testing.assert_array_equal(file.get_tensor("sigma_"), fitted.sigma_)
    assert record["map"]["map"] == "RidgeTransport"
    assert record["provenance"]["layer"] == 3


def test_maps_are_listed_newest_first_and_deleted(store: Path) -> None:
    log = MapLog(store)
    assert log.list() == ([], {})
    for name in ("b", "a"):
        log.save(name, {}, {"x": np.ones(3)}, {"n": name})
    maps, problems = log.list()
    assert [(m.name, m.provenance["n"], m.arrays) for m in maps] == [("a", "a", {}), ("b", "b", {})]
    assert not problems
    log.delete("a")
    log.delete("a")
    assert log.names() == ["b"]


def test_a_name_is_not_taken_twice_unless_asked(store: Path) -> None:
    log = MapLog(store)
    log.save("one", {"v": 1}, {}, {})
    with pytest.raises(StoreError, match=r"a map named 'one' already.*Next: Choose another name"):
        log.save("one", {"v": 2}, {}, {})
    assert log.open("one").description == {"v": 1}
    log.save("one", {"v": 2}, {}, {}, overwrite=True)
    assert log.open("one").description == {"v": 2}


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "x" * 81, "_x", "ä"])
def test_names_that_cannot_be_files_are_refused(store: Path, name: str) -> None:
    with pytest.raises(StoreError, match=r"cannot be the name of a map.*up to 80 letters"):
        MapLog(store).save(name, {}, {}, {})
    assert not MapLog(store).names()


def test_every_changed_byte_is_found(store: Path) -> None:
    MapLog(store).save("one", {"a": [1, 2.5]}, {"x": np.arange(4.0), "y": np.ones(2, np.float32)}, PROVENANCE)
    path = store / "maps" / "one.safetensors"
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    loose = set(range(len(data[:header].rstrip(b" ")), header))  # padding of the header, blanks by the format
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 0x04
        if place in loose:
            continue
        with pytest.raises(StoreError, match=r"damaged|other bytes|another format"):
            from_bytes(bytes(broken))
    for size in (0, 5, header - 1, header, len(data) - 1):
        with pytest.raises(StoreError, match="damaged"):
            from_bytes(data[:size])
    path.write_bytes(data[:-1])
    assert [p.array for p in verify(store)] == ["maps/one"]
    with pytest.raises(StoreError, match=r"Map 'one'.*damaged"):
        MapLog(store).open("one")
    path.write_bytes(b"")
    assert set(MapLog(store).list()[1]) == {"one"}


def test_another_safetensors_file_is_refused() -> None:
    with pytest.raises(StoreError, match=r"not a saved map.*Next: Take another copy"):
        from_bytes(save({"x": np.ones(3)}))
    with pytest.raises(StoreError, match="not a saved map"):
        from_bytes(b"PK\x03\x04 a zip file, not a map")


def test_a_torn_write_leaves_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_all", full)
    with pytest.raises(StoreError, match="disk is full"):
        MapLog(store).save("one", {}, {"x": np.ones(3)}, {})
    assert not list((store / "maps").iterdir())


def test_what_pages_keep_is_apart_from_the_saved_maps(store: Path) -> None:
    MapLog(store, kept=True).save("side-1", {}, {"x": np.ones(3)}, {})
    assert MapLog(store).names() == []
    assert MapLog(store, kept=True).names() == ["side-1"]
    assert not verify(store)
