"""Two runs of one experiment are compared by their KLs, or by every number where there are none."""

from __future__ import annotations

import polars as pl

from engine.lab.repeat import compared, largest_difference


def test_runs_without_kls_are_compared_by_all_their_numbers() -> None:
    """Answers and scores that changed must not pass for "every KL came out the same"."""
    first = {"table": pl.DataFrame({"id": ["a", "b"], "agreement": [1.0, None], "ended": [True, True]})}
    again = {"table": first["table"].with_columns(agreement=pl.lit(1.25).replace(2, None))}
    moved = {"table": first["table"].with_columns(agreement=pl.Series([1.25, None]))}
    cut = {"table": first["table"].with_columns(ended=pl.Series([True, False]))}
    assert compared(first) == "number"
    assert largest_difference(first, first) == 0.0
    assert largest_difference(first, moved) == 0.25
    assert largest_difference(first, cut) == 1.0
    assert largest_difference(first, again) is None  # a value where there was none
    kls = {"table": pl.DataFrame({"kl_raw": [0.5], "p": [0.1]})}
    assert compared(kls) == "KL"
    assert largest_difference(kls, {"table": kls["table"].with_columns(p=pl.lit(0.2))}) == 0.0
