"""The noise of CKA curves: storage's at the first block that can differ, the model's own behind it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from planted_store import CHANGED, LAYERS

from app.frame import store_rounding
from app.frame.opened import Opened, read_facts
from app.frame.selection import defaults
from app.similarity import noise as cka_noise
from app.similarity.panels import place
from engine.stats.rounding_error import cka_bound, cka_error, rounding_sd
from store.reader import Store

RELATIVE = 0.02


@pytest.fixture
def opened(planted: Path) -> Opened:
    """A store that says it was made by bfloat16 models with a measured noise."""
    store = Store(planted)
    store.manifest["rounding"] = {
        "base": {"sites": {"resid": [RELATIVE] * (LAYERS + 1)}},
        "tuned": {"sites": {"resid": [RELATIVE / 2] * (LAYERS + 1)}},
    }
    store.manifest["models"] = {name: {"dtype": "bfloat16"} for name in ("base", "tuned")}
    return Opened(f"{planted}?noise", store, read_facts(store))


def test_a_block_with_equal_inputs_has_storage_rounding_alone(opened: Opened) -> None:
    chosen = defaults(opened.facts)
    values = [1.0] * CHANGED + [0.5] * (LAYERS - CHANGED)
    curve = pl.DataFrame({"layer": range(LAYERS), "series": "debiased", "value": values})
    asked = place(chosen) | {"estimator": "debiased"}
    found = cka_noise.with_noise(opened.store, curve, **asked)["noise"].to_list()

    def state(model: str, block: int) -> np.ndarray:
        return opened.store.activations(model, "resid_post", block, chosen.position).astype(np.float64)

    for block in range(LAYERS):
        both = [state(model, block) for model in ("base", "tuned")]
        storage = 2 * sum(cka_error(x, rounding_sd(x, "bfloat16"), True) for x in both)
        computed = max(cka_bound(both[0], RELATIVE), cka_bound(both[1], RELATIVE / 2))
        assert computed > storage
        assert found[block] == pytest.approx(storage if block <= CHANGED else computed, rel=1e-6)
    later = cka_noise.with_noise(opened.store, curve.filter(pl.col("layer") > 0), **asked)
    assert later["noise"][0] > found[1]  # what was before isn't known: it may have differed


def test_the_coarser_dtype_counts_and_what_was_not_measured_is_nothing(opened: Opened) -> None:
    assert store_rounding.dtype_of(opened.store, "base") == "bfloat16"  # kept in float32
    opened.store.manifest["models"]["base"] = {"dtype": "float32"}
    assert store_rounding.dtype_of(opened.store, "base") == "float32"
    assert store_rounding.relative_noise(opened.store, "base", "resid_pre", 0) == RELATIVE
    assert store_rounding.relative_noise(opened.store, "base", "mlp_out", 0) == 0.0
    opened.store.manifest.pop("rounding")
    assert store_rounding.relative_noise(opened.store, "base", "resid_pre", 0) == 0.0


def test_updates_are_sums_of_parts_where_these_are_stored(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rows = opened.store, np.arange(10)
    summed = list(store_rounding.updates(store, "base", "mean", rows))
    monkeypatch.setattr(Store, "components", lambda *_: ["resid"])
    apart = list(store_rounding.updates(store, "base", "mean", rows))
    assert len(summed) == len(apart) == LAYERS
    for (one, small), (two, large) in zip(summed, apart, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)  # float32, of states of size 1 to 10
        assert small < 2**-8 < large  # of bfloat16's rounding: that of the parts, and that of the states


def test_places_of_a_map_have_the_share_of_their_variance_that_is_rounding(opened: Opened) -> None:
    places = pl.DataFrame({"site": ["resid_post", "mlp_out"], "layer": [1, 1]})
    found = cka_noise.with_shares(opened.store, "base", "last_content", places)["noise"].to_list()
    x = opened.store.activations("base", "resid_post", 1, "last_content")
    assert found[0] == pytest.approx(cka_bound(x, RELATIVE), rel=1e-6)
    assert 0 < found[1] < 1e-3  # not measured there: storage's alone
