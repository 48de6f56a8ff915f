from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.passes.batching import SHORTEST, batches, capture_order, padded_tokens, units

lengths = st.lists(st.integers(1, 300), min_size=1, max_size=80)


@given(lengths, st.integers(1, 2000))
def test_batches_cover_every_prompt_once_within_the_budget(sizes: list[int], budget: int) -> None:
    plan = batches(sizes, budget)
    assert [i for batch in plan for i in batch] == list(range(len(sizes)))
    assert all(len(b) * max(sizes[i] for i in b) <= budget or len(b) == 1 for b in plan)


@given(lengths, st.integers(1, 2000))
def test_batches_are_not_split_without_need(sizes: list[int], budget: int) -> None:
    plan = batches(sizes, budget)
    for left, right in pairwise(plan):
        joined = [sizes[i] for i in (*left, right[0])]
        assert max(joined) * len(joined) > budget or min(joined) < SHORTEST * max(joined)


@given(lengths, st.integers(1, 2000))
def test_padding_is_bounded(sizes: list[int], budget: int) -> None:
    assert SHORTEST * padded_tokens(sizes, batches(sizes, budget)) <= sum(sizes)


@given(lengths)
def test_longest_first_wastes_little(sizes: list[int]) -> None:
    ordered = [sizes[i] for i in capture_order([sizes])]
    assert ordered == sorted(sizes, reverse=True)
    assert padded_tokens(ordered, [[i] for i in range(len(ordered))]) == sum(sizes)


def test_the_longer_of_two_tokenizers_decides() -> None:
    assert capture_order([[5, 1, 3], [1, 9, 3]]).tolist() == [1, 0, 2]
    assert capture_order([[4, 4, 4]]).tolist() == [0, 1, 2]


def test_units_are_consecutive() -> None:
    assert units(130, 64) == [range(64), range(64, 128), range(128, 130)]
    assert units(0, 64) == []
