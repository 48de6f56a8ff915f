"""Maps fitted on many words of each prompt, over two tokenizers: what counts as a pair."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.errors import PatchError
from engine.models.sites import Site
from engine.patching.mapped_spec import MappedPatch
from engine.patching.vectors import _pooled
from engine.prompts.draws import MOST, characters_before, draws_of, spelled
from engine.prompts.positions import positions
from engine.transport.named import MapSpec

TEXT = "你好世界"
WHERE = {"target": "pieces", "source": "signs", "component": "resid_post", "layer": 0, "position": "decision"}


def encoded(step: int, lead: str) -> pl.DataFrame:
    """Two prompts of one text read in tokens of `step` characters, behind a template's start of one token."""
    start = len(lead)
    spans = [[0, start], *([i, i + step] for i in range(start, start + 4, step))]
    return pl.DataFrame(
        {
            "id": ["one", "two"],
            "token_ids": [list(range(len(spans)))] * 2,
            "offsets": [spans] * 2,
            "content_start": [start] * 2,
            "content_end": [start + 4] * 2,
            "rendered": [lead + TEXT] * 2,
        }
    )


def lab(steps: dict[str, int]) -> Any:
    """Activations are the token's index and the prompt's number."""
    tables = {model: encoded(step, "<" * step) for model, step in steps.items()}

    def places(model: str, position: str, rows: np.ndarray) -> np.ndarray:
        found = positions(tables[model], position, None).indices
        return np.array([one[0] for one in found])[rows]

    def before(model: str, position: str, rows: np.ndarray) -> np.ndarray:
        return characters_before(tables[model][rows], places(model, position, rows))

    def activations(model: str, site: Site, position: str, rows: np.ndarray) -> np.ndarray:
        return np.stack([places(model, position, rows), rows], axis=1).astype(np.float32)

    return SimpleNamespace(places=places, characters_before=before, activations=activations, notes=[])


def pooled(made: Any, order: list[int], sample: str = "sample(k=4)") -> tuple[np.ndarray, ...]:
    wanted = MappedPatch(**WHERE, map=MapSpec(), fitted_at=sample)  # type: ignore[arg-type]
    rows = np.arange(2)
    return _pooled(made, wanted, Site("resid_post", 0), draws_of(sample), rows, np.array(order), rows)


def test_words_in_one_token_are_one_pair_where_both_models_have_read_as_much() -> None:
    made = lab({"signs": 1, "pieces": 2})
    x, y, groups = pooled(made, [0, 1])
    assert sorted(map(tuple, np.hstack([x, y]).tolist())) == sorted(
        (sign, prompt, piece, prompt) for prompt in (0, 1) for sign, piece in ((2, 1), (4, 2))
    )
    np.testing.assert_array_equal(groups, x[:, 1])
    assert len(made.notes) == 1
    assert made.notes[0].startswith("4 of 8 drawn pairs are left out of the map's fit: ")
    x, y, _ = pooled(made, [1, 0])
    np.testing.assert_array_equal(x[:, 1], 1 - y[:, 1])
    assert len(x) == 4
    assert len(made.notes) == 1, "wrong pairs are none that are left out"


def test_nothing_is_left_out_where_words_end_alike() -> None:
    made = lab({"signs": 1, "pieces": 1})
    x, y, _ = pooled(made, [0, 1])
    np.testing.assert_array_equal(x, y)
    assert (len(x), made.notes) == (8, [])


def test_too_few_common_ends_are_no_fit() -> None:
    with pytest.raises(PatchError, match=r"can't be fitted at sample\(k=1,skip_last=3\).*0 of 2"):
        pooled(lab({"signs": 1, "pieces": 2}), [0, 1], "sample(k=1,skip_last=3)")


def test_white_space_that_a_template_takes_away_is_not_counted() -> None:
    plain, spaced = encoded(1, "<"), encoded(1, "<")
    spaced = spaced.with_columns(rendered=pl.lit("< " + TEXT[:3]))
    last = np.array([4, 4])
    np.testing.assert_array_equal(characters_before(plain, last), [4, 4])
    np.testing.assert_array_equal(characters_before(spaced, last), [3, 3])


def test_a_link_can_not_ask_for_a_million_draws() -> None:
    begun = time.process_time()
    for _ in range(100):
        assert draws_of("sample(k=999999)") == ()
    assert time.process_time() - begun < 0.05
    assert len(draws_of(f"sample(k={MOST})")) == MOST
    with pytest.raises(PatchError, match=f"at most {MOST} tokens"):
        MappedPatch(**WHERE, map=MapSpec(), fitted_at=f"sample(k={MOST + 1})")  # type: ignore[arg-type]


def test_a_sample_is_spelled_in_one_way_and_stored_hashes_stay() -> None:
    assert spelled("sample( skip_last=4, k=16)") == "sample(k=16,skip_last=4)"
    assert spelled("sample(k=16)") == "sample(k=16,skip_last=0)"
    assert [spelled(text) for text in ("", "nonsense", "decision")] == ["", "nonsense", "decision"]
    fields = {"map": MapSpec(), "fitted_at": "sample(skip_last=4,k=16)"}
    old = MappedPatch(**WHERE, **fields)  # type: ignore[arg-type]
    assert old.to_json()["fitted_at"] == "sample(skip_last=4,k=16)"
