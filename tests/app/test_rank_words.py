"""What a rank sweep says where its effect is on train alone, or no drop is told apart from none."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from app.rank.words import map_title, path_title, projector_title


def table(kind: str, value: float | None, low: float | None, high: float | None) -> pl.DataFrame:
    row = {
        "kind": kind,
        "split": "validation",
        "k": 4,
        "alpha": 1.0,
        "value": value,
        "low": low,
        "high": high,
    }
    other = {"random": "projector", "projector": "random"}.get(kind, kind)
    return pl.DataFrame(
        [row, row | {"kind": other, "k": 4 if other != kind else 5}], infer_schema_length=None
    )


TRUNCATED: dict[str, Any] = {
    "truncated": {"reason": "", "best": {"k": 4, "alpha": 1.0}, "smallest": {"k": 4, "alpha": 1.0}},
    "reference": "raw",
    "full_rank": 8,
    "rounding": {},
}
PROJECTOR = {"projector": [{"alpha": 1.0, "reason": "", "smallest": 4, "most": 4}], "basis_size": 8}


@pytest.mark.parametrize("title", [map_title, path_title])
def test_a_drop_whose_interval_holds_0_is_none(title: Any) -> None:
    assert "told apart" in title(table("truncated", -46.0, -122.0, 51.0), TRUNCATED)
    assert "told apart" not in title(table("truncated", 46.0, 22.0, 71.0), TRUNCATED)


def test_directions_of_an_effect_on_train_alone_carry_nothing() -> None:
    empty = projector_title(table("projector", None, None, None), PROJECTOR, 1.0)
    assert "carry" not in empty
    assert "changes nothing beyond rounding" in empty
    assert "carry the effect" in projector_title(table("projector", 96.0, 90.0, 101.0), PROJECTOR, 1.0)
