"""Embeddings of models with other vocabularies are compared by token string, against numpy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny

from engine.models.low_rank import LowRank
from engine.weights.deltas import weight_deltas
from engine.weights.kept import put_aside
from engine.weights.names import Names, told_of_rows, unmatched
from engine.weights.shared_rows import shared_rows

BASE = {"a": 0, "b": 1, "c": 2, "d": 3}


@pytest.mark.parametrize(
    ("tuned", "counts", "pairs", "new", "gone"),
    [
        (BASE | {"e": 4}, (4, 8), [(0, 0), (1, 1), (2, 2), (3, 3)], ("e",), ()),
        ({"d": 0, "a": 1, "x": 2}, (4, 4), [(0, 1), (3, 0)], ("x",), ("b", "c")),
        (BASE, (4, 3), [(0, 0), (1, 1), (2, 2)], (), ("d",)),  # a token beyond the last row
        ({"x": 0}, (4, 4), None, (), ()),
        ({"x": 0}, (4, 1), [], ("x",), ("a", "b", "c", "d")),
        (BASE, (4, 4), None, (), ()),
    ],
)
def test_rows_are_paired_by_string(
    tuned: dict[str, int], counts: tuple[int, int], pairs: Any, new: Any, gone: Any
) -> None:
    found = shared_rows(BASE, tuned, counts)
    if pairs is None:
        assert found is None or not len(found.base)
    else:
        assert found is not None
        assert list(zip(found.base.tolist(), found.tuned.tolist(), strict=True)) == pairs
        assert (found.new, found.gone) == (new, gone)


def words(*names: str) -> dict[str, int]:
    return {name: row for row, name in enumerate(names)}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def models(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, int], dict[str, int]]:
    """101 rows for 99 tokens, and a fine-tune with 128 rows: two tokens swapped, one added, one gone."""
    base = tiny("llama", tie_word_embeddings=request.param)
    ours = [f"t{i}" for i in range(99)]
    theirs = [*ours[:5], ours[6], ours[5], *ours[7:98], "new"]
    tuned = copy.deepcopy(base)
    tuned.resize_token_embeddings(128, mean_resizing=False)
    rows = torch.tensor([ours.index(token) for token in theirs[:98]])
    with torch.no_grad():
        for module, other in (
            (tuned.get_input_embeddings(), base.get_input_embeddings()),
            (tuned.get_output_embeddings(), base.get_output_embeddings()),
        ):
            module.weight[:98] = other.weight[rows]
        tuned.model.embed_tokens.weight[10] += 0.25
        tuned.model.embed_tokens.weight[6] -= 0.5  # base's row 5
    return base, tuned.eval(), words(*ours), words(*theirs)


@pytest.mark.parametrize("aside", [False, True], ids=["keep", "norms"])
def test_a_resized_vocabulary_is_compared_on_its_shared_tokens(
    models: tuple[Any, Any, dict[str, int], dict[str, int]], aside: bool, tmp_path: Path
) -> None:
    base, tuned, ours, theirs = models
    kept = put_aside(base, tmp_path / "weights", ours)
    assert unmatched(kept.names, Names(tuned, theirs)) == {}
    found = {d.name: d for d in weight_deltas(kept, tuned, keep=not aside, vocabulary=theirs)}
    assert list(found) == ["model.embed_tokens.weight"]
    delta = found["model.embed_tokens.weight"]
    wanted = np.zeros((101, 32))
    wanted[10], wanted[5] = 0.25, -0.5
    assert delta.rows == 98
    assert delta.shape == (101, 32)
    assert delta.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-5)
    size = np.linalg.norm(base.model.embed_tokens.weight[:98].numpy())
    assert delta.relative == pytest.approx(np.linalg.norm(wanted) / size, rel=1e-5)
    if not aside:
        np.testing.assert_allclose(delta.matrix(), wanted, atol=1e-6)
    told = told_of_rows(kept.names, Names(tuned, theirs))
    assert told is not None
    for part in (
        "98 rows",
        "2 of them under other",
        "1 new token ('new')",
        "1 missing token ('t98')",
        "29 rows",
    ):
        assert part in told


def test_without_vocabularies_other_lengths_stay_a_problem(
    models: tuple[Any, Any, dict[str, int], dict[str, int]],
) -> None:
    base, tuned, ours, _ = models
    assert "shape (128, 32) instead of (101, 32)" in unmatched(base, tuned)["model.embed_tokens.weight"]
    other = Names(tuned, words(*(f"u{i}" for i in range(99))))
    assert "no token string" in unmatched(Names(base, ours), other)["model.embed_tokens.weight"]
    assert told_of_rows(Names(base, ours), other) is None


def test_equal_lengths_with_other_numbers_go_by_string(tmp_path: Path) -> None:
    base, tuned = tiny("llama"), tiny("llama")
    ours = words(*(f"t{i}" for i in range(101)))
    theirs = ours | {"t3": 4, "t4": 3}
    order = torch.arange(101)
    order[3], order[4] = 4, 3
    with torch.no_grad():
        for end in (tuned.get_input_embeddings(), tuned.get_output_embeddings()):
            end.weight.copy_(end.weight[order])
    kept = put_aside(base, tmp_path / "weights", ours)
    assert list(weight_deltas(kept, tuned, vocabulary=theirs)) == []
    assert len(list(weight_deltas(kept, tuned))) == 2


def test_factors_of_an_adapter_on_the_unembedding_keep_their_rank(tmp_path: Path) -> None:
    base, tuned = tiny("llama"), tiny("llama")
    tuned.resize_token_embeddings(103, mean_resizing=False)
    generator = torch.Generator().manual_seed(1)
    factors = LowRank(torch.randn(103, 2, generator=generator), torch.randn(2, 32, generator=generator))
    with torch.no_grad():
        tuned.lm_head.weight += factors.left @ factors.right
    ours = words(*(f"t{i}" for i in range(101)))
    kept = put_aside(base, tmp_path / "weights", ours)
    theirs = ours | {"new": 101, "more": 102}
    given = {"lm_head.weight": factors}
    (delta,) = weight_deltas(kept, tuned, factors=given, vocabulary=theirs)
    assert (delta.name, delta.rank, delta.rows) == ("lm_head.weight", 2, 101)
    assert delta.rounding is not None
    np.testing.assert_allclose(delta.matrix(), (factors.left[:101] @ factors.right).numpy(), atol=1e-4)
