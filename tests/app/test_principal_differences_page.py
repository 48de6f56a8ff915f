"""Principal differences: planted directions come out, equal and unstructured differences say so, the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from opened_study import chosen, opened_at
from streamlit.testing.v1 import AppTest

import patchbay as pb
from app.charts.palette import DARK, LIGHT
from app.frame.opened import Opened
from app.frame.panel import HEADING, Panel, parted
from app.frame.selection import changed, parse, to_params
from app.principal_differences import panels, slices, tables, words
from engine.errors import AnalysisError

PROMPTS, WIDTH = 80, 32


def arrays() -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Two blocks: equal, then two directions of the amounts 4 and 2 beside noise; and the directions."""
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(PROMPTS, WIDTH)).astype(np.float32) for _ in range(3)]
    axes = np.linalg.qr(rng.normal(size=(WIDTH, 2)))[0].T
    apart = rng.normal(size=(PROMPTS, 2)) * np.array([4.0, 2.0]) @ axes
    apart += 0.2 * rng.normal(size=(PROMPTS, WIDTH))
    tuned = [*states[:2], states[2] + apart.astype(np.float32)]
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{block}.hook_resid_post" for block in range(2))]
    return {
        "base": dict(zip(names, states, strict=True)),
        "tuned": dict(zip(names, tuned, strict=True)),
    }, axes


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    rows = [
        {"id": f"p{at}", "text": f"prompt {at}", "split": "train" if at % 4 else "validation"}
        for at in range(PROMPTS)
    ]
    path = tmp_path_factory.mktemp("principal") / "store"
    pb.from_arrays(path, arrays()[0], rows)
    return opened_at(path)


def made(opened: Opened, **changes: object) -> list[Panel]:
    selection = chosen(opened, **changes)
    return [panel for make in panels.makers(opened, selection) if (panel := make()) is not None]


def test_planted_directions_are_counted_found_and_held_out(opened: Opened) -> None:
    selection = chosen(opened, layer=1)
    at = panels.at_place(opened, selection)
    assert (at["state"], at["count"], at["units"]) == ("read", 2, 60)
    asked = panels.place(opened, selection)
    found = tables.found(opened.store, **asked)
    inside = np.linalg.svd(found.directions[:2] @ arrays()[1].T)[1]
    assert inside.min() > 0.99
    table = tables.components(opened.store, **asked, every=1)
    assert table["beyond"].to_list()[:3] == [True, True, False]
    assert table["validation"][:2].sum() > 0.8
    assert table["again_low"][:2].min() > 0.95  # type: ignore[operator]
    apart = [
        opened.store.activations(m, "resid_post", 1, selection.position).astype(float)
        for m in ("base", "tuned")
    ]
    rows = tables.prompts(opened.store, **asked, component=1, ends=3)
    scores = (apart[1] - apart[0] - found.mean) @ found.directions[0]
    assert rows["prompt"].to_list() == [*np.argsort(-scores)[:3], *np.argsort(-scores)[-3:]]
    number, cosine = tables.steered(opened.store, **asked, component=2)
    assert number == 2
    assert cosine > 0.9


def test_titles_say_what_the_numbers_hold(opened: Opened) -> None:
    titles = [panel.title for panel in made(opened, layer=1)]
    assert titles[0].startswith("2 components of tuned − base exceed unstructured differences at block 1")
    assert titles[1].startswith("tuned − base has components at block 1")
    equal = made(opened, layer=0)
    assert equal[0].title.endswith("base and tuned are equal")
    assert len(equal) == 2, "no component to look at"


def test_every_panel_can_be_drawn_and_its_heading_fits(opened: Opened) -> None:
    for panel in [*made(opened, layer=1, about="zero", component=2), *made(opened, layer=0)]:
        assert len(parted(panel.title)[0]) <= HEADING
        for palette in (LIGHT, DARK):
            assert panel.draw(palette).spec()


def test_unstructured_differences_have_no_component(planted: Path) -> None:
    found = opened_at(planted)
    titles = [panel.title for panel in made(found, layer=2)]
    assert titles[0].startswith("No component of tuned − base exceeds unstructured differences at block 2")
    assert titles[1] == "No component of tuned − base exceeds unstructured differences at any block"
    assert "is not told from unstructured" not in titles[2]
    same = [panel.title for panel in made(found, b="base", layer=2)]
    assert same[1] == "base and base are equal at every block and position"


def test_rounding_alone_tells_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large a rounding as the differences are: whatever their structure."""
    one = slices.slice_of(
        opened.store,
        **{k: v for k, v in panels.place(opened, chosen(opened, layer=1)).items() if k != "centred"},
    )
    whole = float(np.square(one.train.apart).sum(axis=1).mean())
    assert slices.Slice(one.train, one.validation, whole, 1.0, one.base).state == "rounding"
    at = {"state": "rounding", "layer": 1, "position": "decision", "units": 60, "count": None}
    title = words.components_title(("base", "tuned"), at, pl.DataFrame(), "prompt")
    assert title == "Block 1, the decision token: base and tuned differ by no more than rounding"
    few = at | {"state": "read", "units": 5}
    assert "5 prompts are too few" in words.components_title(("base", "tuned"), few, pl.DataFrame(), "prompt")


def test_prompts_that_begin_alike_are_one_observation(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"a": "base", "b": "tuned", "position": opened.facts.positions[0]}
    monkeypatch.setattr(slices, "_beginnings", lambda *given: [int(row) // 2 for row in given[-1]])
    (rows, unit), _ = slices.members.__wrapped__(opened.store, **asked, which=("all", "all"))  # type: ignore[attr-defined]
    assert len(rows) == len(set(unit)) == len({row // 2 for row in range(PROMPTS) if row % 4})


def test_what_begins_like_a_train_prompt_is_not_held_out(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is one of train's; where too few are left, components are told without their share."""
    left = np.flatnonzero(opened.store.prompts["split"].to_numpy() == "validation")
    asked = {"a": "base", "b": "tuned", "position": opened.facts.positions[0], "which": ("all", "all")}
    for fresh in (12, 0):
        new = set(left[len(left) - fresh :].tolist())
        alike = set(left.tolist()) - new
        monkeypatch.setattr(
            slices, "_beginnings", lambda *given, a=alike: [1 if at in a else at for at in given[-1].tolist()]
        )
        (train, _), (rows, unit) = slices.members.__wrapped__(opened.store, **asked)  # type: ignore[attr-defined]
        assert 1 in train
        assert set(rows.tolist()) == new
        assert len(unit) == len(rows)
    at = {"state": "read", "units": 60, "count": 2, "layer": 1, "position": "decision"}
    table = pl.DataFrame({"validation": [None], "low": [None], "high": [None]})
    title = words.components_title(("base", "tuned"), at, table, "prompt")
    assert title.endswith("; too few prompts are held out to judge it")
    assert len(parted(title)[0]) <= HEADING


def test_places_that_all_begin_alike_are_not_called_rounding() -> None:
    places = pl.DataFrame({"state": ["alike", "equal"]}, schema={"state": pl.String})
    assert "the prompts are the same" in words.map_title(("base", "tuned"), places, "prompt")


def test_a_store_without_splits_says_what_is_missing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices.queries, "values", lambda _store, _column: ())
    asked = {"a": "base", "b": "tuned", "position": opened.facts.positions[0], "which": ("all", "all")}
    with pytest.raises(AnalysisError, match="these have no such splits"):
        slices.members.__wrapped__(opened.store, **asked)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("told", "rows", "title"),
    [
        (True, [], "Component 1 moves no token further than unrelated directions move some"),
        (
            True,
            [(7, " yes", "promoted", 2.0), (8, None, "suppressed", -1.0)],
            "Component 1 promotes “␣yes” and suppresses #8",
        ),
        (
            False,
            [(7, " yes", "promoted", 2.0)],
            "Component 1 is not told from unstructured differences: its tokens say nothing",
        ),
    ],
)
def test_tokens_are_named_by_their_rule(told: bool, rows: list[tuple[Any, ...]], title: str) -> None:
    shape = {"token_id": pl.Int64, "text": pl.String, "side": pl.String, "value": pl.Float64}
    table = pl.DataFrame(rows, schema=shape, orient="row").with_columns(beyond=True)
    assert words.tokens_title(1, told, table) == title


def test_matrices_are_named_by_their_rule() -> None:
    table = pl.DataFrame(
        {
            "layer": [4, 5],
            "part": ["attn.o_proj", "mlp.down_proj"],
            "cosine": [0.9, 0.2],
            "p_holm": [0.001, 0.5],
        }
    )
    assert (
        words.written_title(2, True, table)
        == "Component 2 lies further in what ΔW writes than by chance: attn.o_proj of block 4 (0.90)"
    )
    assert "further than by chance" in words.written_title(2, True, table.tail(1))


def test_the_page(opened: Opened, open_app: Callable[..., AppTest]) -> None:
    page = open_app(opened.path, "principal_differences", layer="1")
    assert not page.exception
    said = " ".join(one.value for one in page.markdown)
    assert "2 components of tuned − base exceed" in said
    assert "Something went wrong" not in said


def test_a_link_reads_back(opened: Opened) -> None:
    selection = changed(chosen(opened), component=3, about="zero", through="b", compared_every=2)
    assert parse(to_params(selection, opened.facts), opened.facts) == (selection, [])
