"""The measured rounding noise in the manifest, and stores without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_store import build_store

from engine.errors import StoreError
from store.reader import Store


def test_the_noise_of_a_model_is_read_from_the_manifest(tmp_path: Path) -> None:
    store = Store(build_store(tmp_path / "store"))
    assert store.rounding("base") is None
    store.manifest["rounding"] = {"base": {"kl": 0.001, "sites": {"resid": [0.0, 0.01]}}}
    assert store.rounding("base") == {"kl": 0.001, "sites": {"resid": [0.0, 0.01]}}
    assert store.rounding("tuned") is None
    with pytest.raises(StoreError, match="no such model"):
        store.rounding("other")
    assert store.dtype == "float32"
