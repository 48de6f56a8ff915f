from __future__ import annotations

import json
import math

import pytest

from engine.errors import PatchbayError
from engine.models.check import SelfCheck


@pytest.mark.parametrize(
    ("value", "passed"), [(0.0, True), (1e-5, True), (1.1e-5, False), (math.nan, False), (math.inf, False)]
)
def test_a_check_passes_up_to_its_limit_and_never_for_nan(value: float, passed: bool) -> None:
    assert SelfCheck.of("residual identity", value, 1e-5, "why").passed is passed


@pytest.mark.parametrize("value", [0.25, math.inf])
def test_checks_survive_json(value: float) -> None:
    check = SelfCheck.of("self-patch KL", value, 1e-6, "nats")
    text = json.dumps(check.to_json(), allow_nan=False)
    assert SelfCheck.from_json(json.loads(text)) == check


def test_a_nan_survives_json_as_a_failure() -> None:
    again = SelfCheck.from_json(json.loads(json.dumps(SelfCheck.of("x", math.nan, 1.0).to_json())))
    assert math.isnan(again.value)
    assert not again.passed


def test_a_malformed_record_is_refused() -> None:
    with pytest.raises(PatchbayError, match=r"malformed.*Given: \['name'\]"):
        SelfCheck.from_json({"name": "x"})
