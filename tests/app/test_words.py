"""Sentences computed from data: the rule of each, on data where the answer is plain."""

from __future__ import annotations

import polars as pl
import pytest

from app.frame import words
from app.frame.panel import Panel, typeset


def curve(values: list[float], half: float = 0.02) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "layer": list(range(len(values))),
            "value": values,
            "low": [v - half for v in values],
            "high": [min(v + half, 1.0) for v in values],
        }
    )


NULL = pl.DataFrame({"layer": [0, 1, 2, 3], "low": [-0.1] * 4, "high": [0.1] * 4})
NO_NULL = NULL.clear()


def test_the_block_where_models_part_is_named_with_its_value_and_interval() -> None:
    title = words.cka_title(curve([1.0, 1.0, 0.9, 0.6]), NULL, "base", "tuned", "resid_post")
    assert title == (
        "tuned leaves base at block 2 (resid_post): identical before, CKA 0.90 (0.88 to 0.92) there; "
        "lowest at block 3, CKA 0.60 (0.58 to 0.62); above unrelated pairing everywhere"
    )


def test_equal_models_are_called_equal() -> None:
    title = words.cka_title(curve([1.0, 1 - 1e-8, 1.0, 1.0]), NULL, "base", "tuned", "mlp_out")
    assert title == "base and tuned have the same geometry at mlp_out in every block"


def test_a_small_departure_has_the_digits_that_tell_it_from_one() -> None:
    title = words.cka_title(curve([1.0, 1 - 2e-4], half=1e-4), NULL, "base", "tuned", "resid_post")
    assert "identical before, CKA 0.9998 (0.9997 to 0.9999) there" in title


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (0.9995, 0.9993, 0.9996, "CKA 0.9995 (0.9993 to 0.9996)"),
        (0.9799, 0.97, 0.9996, "CKA 0.98 (0.97 to 0.9996)"),  # no end of 1.00 below 1
        (0.985, 0.95, 0.999998, "CKA 0.98 (0.95 to 0.999998)"),
        (1.0, 1.0, 1.0, "CKA 1.00 (1.00 to 1.00)"),
        (0.9, 0.88, 0.92, "CKA 0.90 (0.88 to 0.92)"),
        (0.9995, float("nan"), float("nan"), "CKA 0.9995"),
    ],
)
def test_a_cka_has_the_digits_that_tell_it_from_one(value: float, low: float, high: float, said: str) -> None:
    assert words.cka_value({"value": value, "low": low, "high": high}) == said


def test_blocks_before_the_departure_are_identical_only_if_they_are() -> None:
    unclear = curve([0.97, 0.98, 0.6], half=0.05)
    title = words.cka_title(unclear, NULL, "a", "b", "resid_post")
    assert "b leaves a at block 2 (resid_post): not told apart before, CKA 0.60" in title


def test_a_block_without_a_null_is_not_called_above_it() -> None:
    missing = NULL.with_columns(high=pl.when(pl.col("layer") == 1).then(float("nan")).otherwise(0.1))
    title = words.cka_title(curve([0.9, 0.9, 0.9, 0.9]), missing, "a", "b", "resid_post")
    assert "unrelated" not in title


def test_an_interval_that_reaches_one_is_no_departure() -> None:
    wide = curve([1.0, 0.98, 0.97, 0.98], half=0.05)
    title = words.cka_title(wide, NULL, "a", "b", "resid_post")
    assert title.startswith("a and b cannot be told apart at resid_post: every interval reaches 1")


def test_blocks_inside_the_null_are_named() -> None:
    title = words.cka_title(curve([1.0, 0.5, 0.05, 0.02]), NULL, "a", "b", "resid_post")
    assert title.endswith("; blocks 2-3 cannot be told from unrelated prompts")


def test_models_that_differ_from_the_start_have_no_before() -> None:
    title = words.cka_title(curve([0.7, 0.8, 0.9, 0.9]), NO_NULL, "a", "b", "resid_post")
    assert title == "b differs from a from block 0 on (resid_post): CKA 0.70 (0.68 to 0.72)"


def test_undefined_similarity_is_said() -> None:
    undefined = curve([float("nan")] * 2)
    assert "is undefined" in words.cka_title(undefined, NO_NULL, "a", "b", "head_z")


def grid(values: dict[tuple[int, int], float]) -> pl.DataFrame:
    return pl.DataFrame([{"layer": a, "other": b, "value": v} for (a, b), v in values.items()], orient="row")


def test_the_heatmap_counts_blocks_that_match_themselves() -> None:
    same = grid({(0, 0): 1.0, (0, 1): 0.2, (1, 0): 0.3, (1, 1): 0.9})
    assert words.heatmap_title(same, "a", "b") == "Each block of a is most similar to the same block of b"
    shifted = grid({(0, 0): 0.1, (0, 1): 0.2, (1, 0): 0.3, (1, 1): 0.9})
    assert words.heatmap_title(shifted, "a", "b") == (
        "1 of 2 blocks of a are most similar to the same block of b; the others point up to 1 block away"
    )
    nan = float("nan")
    undefined = grid({(0, 0): nan, (0, 1): nan, (0, 2): nan, (1, 0): nan, (1, 1): 0.3, (1, 2): 0.9})
    assert words.heatmap_title(undefined, "a", "b") == (
        "0 of 1 blocks of a are most similar to the same block of b; the others point up to 1 block away"
    )
    assert "is undefined" in words.heatmap_title(grid({(0, 0): nan}), "a", "b")


def test_languages_are_compared_where_they_differ_most() -> None:
    table = pl.DataFrame(
        {"layer": [0, 1, 0, 1], "series": ["en", "en", "zh", "zh"], "value": [1.0, 0.9, 1.0, 0.6]}
    ).with_columns(low=pl.col("value") - 0.1, high=pl.col("value") + 0.1)
    assert words.language_title(table, "a", "b") == (
        "a and b differ more in zh than in en; at block 1 CKA 0.60 (0.50 to 0.70) "
        "against CKA 0.90 (0.80 to 1.00)"
    )
    wide = table.with_columns(low=pl.col("value") - 0.2, high=pl.col("value") + 0.2)
    assert words.language_title(wide, "a", "b") == (
        "a and b are not shown to differ more in one language: the intervals overlap at every block; "
        "differences up to 0.70 are not ruled out"
    )
    same = table.with_columns(value=pl.lit(1.0))
    assert words.language_title(same, "a", "b") == "a and b have the same geometry in en and zh"
    alike = table.with_columns(value=pl.lit(0.7))
    told = words.language_title(alike, "a", "b")
    assert told.startswith("a and b are not shown to differ more in one language: the curves stay within ")
    assert told.endswith("differences up to 0.50 are not ruled out")
    undefined = pl.when(pl.col("layer") == 0).then(float("nan"))
    first = table.with_columns(undefined.otherwise(pl.col(c)).alias(c) for c in ("value", "low", "high"))
    assert words.language_title(first, "a", "b") == words.language_title(table, "a", "b")
    nothing = table.with_columns(value=pl.lit(float("nan")))
    assert "is undefined" in words.language_title(nothing, "a", "b")


def test_language_differences_are_told_by_their_interval() -> None:
    table = pl.DataFrame(
        {"layer": [0, 1, 2], "value": [0.01, -0.2, 0.1], "low": [-0.1, -0.3, 0.05], "high": [0.1, -0.1, 0.15]}
    )
    assert words.difference_title(table, ["en", "zh"], "base") == (
        "base: R is larger in zh than in en by 0.200 (0.100 to 0.300) at block 1; the languages "
        "differ at blocks 1-2"
    )
    alike = table.with_columns(low=pl.lit(-1.0), high=pl.lit(1.0))
    assert words.difference_title(alike, ["en", "zh"], "base") == (
        "base: no difference in R between en and zh is shown at any block; differences up to 1.00 are "
        "not ruled out"
    )


def parts(attention: float, mlp: float, p: float = 0.01) -> pl.DataFrame:
    rows = [("attention", attention), ("MLP", mlp)]
    return pl.DataFrame(
        [{"layer": 3, "series": s, "value": v, "low": v - 0.05, "high": v + 0.05, "p": p} for s, v in rows]
    )


def test_the_part_that_writes_into_z_is_named() -> None:
    assert "attention's output lies more in Z than the MLP's" in words.split_title(parts(0.5, 0.2), "m", 3)
    assert "the MLP's output lies more in Z than attention's" in words.split_title(parts(0.2, 0.5), "m", 3)
    assert "are not told apart" in words.split_title(parts(0.3, 0.32), "m", 3)
    assert "not shown to be further apart in Z than by chance" in words.split_title(
        parts(0.5, 0.2, 0.4), "m", 3
    )


def test_numbers_never_lie_about_zero() -> None:
    assert words.number(-1e-9) == "−1e-9"
    assert words.number(0.0) == "0"
    assert words.number(0.004) == "4e-3"
    assert words.number(float("nan")) == "undefined"
    assert words.blocks([0, 1, 2, 5]) == "blocks 0-2, 5"
    assert words.blocks([3]) == "block 3"


def test_a_verdict_becomes_a_statement_about_the_model() -> None:
    assert words.verdict_title("base", "Never Z-dominated: R stays.") == "base is never Z-dominated: R stays"
    assert words.verdict_title("base", "Z-dominated (R > 1) at 1→2.") == "base is Z-dominated (R > 1) at 1→2"
    assert words.verdict_title("base", "Something else.") == "base: Something else"


@pytest.mark.parametrize(
    ("value", "low", "high", "said"),
    [
        (99.8, 99.7, 99.9, "99.8 % (99.7 to 99.9)"),
        (99.99, 99.98, 100.0, "99.99 % (99.98 to 100.00)"),
        (0.03, 0.02, 0.05, "0.03 % (0.02 to 0.05)"),
        (-0.04, -0.3, 0.2, "−0.04 % (−0.30 to 0.20)"),
        (87.4, 73.1, 96.1, "87 % (73 to 96)"),
        (100, 99.9999, 100, "100 % (± less than 0.01)"),
        (0.0034, 0.0032, 0.0036, "0.0034 % (± less than 0.01)"),
        (0, 0, 0, "0 % (± less than 0.01)"),
    ],
)
def test_percentages_have_the_digits_that_tell_their_ends_apart(
    value: float, low: float, high: float, said: str
) -> None:
    assert words.percent(value, low, high) == said


def test_panels_are_typeset() -> None:
    asked = "0.08 (-0.20 to 0.37), 95% at blocks 4-5, 1e-5, base-2, x (2026-11-21)"
    panel = Panel("name", asked, pl.DataFrame(), lambda _: {}, "code -1", asked, ())
    said = "0.08 (−0.20 to 0.37), 95 % at blocks 4-5, 1e-5, base-2, x (2026-11-21)"
    assert (panel.title, panel.caption, panel.code) == (said, said, "code -1")
    assert typeset(said) == said


def test_what_is_quoted_is_left_alone() -> None:
    """A token's name is no number of the sentence that names it."""
    said = "a promotes “-1”, “5%”, “−1”, “1 tokens” and suppresses “”-2” at 5%, -1; 1 tokens move “open -3"
    right = "a promotes “-1”, “5%”, “−1”, “1 tokens” and suppresses “”−2” at 5 %, −1; 1 token move “open −3"
    assert typeset(said) == right
    assert typeset(right) == right


def test_kls_keep_three_digits_at_any_size() -> None:
    assert words.nats_span({"kl": 10.94, "low": 9.894, "high": 11.99}) == "10.9 nats (9.89 to 12)"
    assert words.nats_span({"kl": 7.4e-7, "low": -1e-12, "high": 2e-6}) == "7e-7 nats (0 to 2e-6)"


def test_lengths_name_the_longest_only_where_intervals_tell() -> None:
    table = pl.DataFrame(
        {
            "update": ["−1→0", "0→1", "1→2"],
            "series": "whole",
            "value": [1.0, 2.0, 4.0],
            "low": [0.9, 1.8, 3.0],
            "high": [1.1, 2.2, 5.0],
        }
    )
    title = words.lengths_title(table, "base")
    assert title == "base: updates are 1.00 to 4.00 long on average, the longest at 1→2"
    wide = table.with_columns(low=pl.col("value") - 3)
    assert words.lengths_title(wide, "base").endswith("; the intervals don't tell which is longest")
    spoken = pl.DataFrame({"series": ["en", "en", "zh"], "value": [0.1, 0.3, 0.2]})
    assert words.languages_title(spoken, "base", 0.15) == (
        "base: R is 0.10 to 0.30 in en and 0.20 to 0.20 in zh; chance is 0.15"
    )


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("1 directions carry the effect", "1 direction carries the effect"),
        ("Top results of 1 runs", "Top results of 1 run"),
        ("1 prompts are left; 11 prompts are not", "1 prompt is left; 11 prompts are not"),
        (
            "2.1 directions, 0,1 heads, 1/1 blocks, 2×1 heads",
            "2.1 directions, 0,1 heads, 1/1 blocks, 2×1 heads",
        ),
        ("1 of 1 heads, 1 heading, top 1 headlines", "1 of 1 head, 1 heading, top 1 headlines"),
    ],
)
def test_one_of_a_kind_is_singular(said: str, right: str) -> None:
    assert typeset(said) == right
