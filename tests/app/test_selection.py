"""The selection in the URL: round trip, bounds, and what happens to nonsense."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.analyses import ANALYSES
from app.frame.fields import rules
from app.frame.selection import (
    Facts,
    Selection,
    bounds,
    changed,
    choices,
    defaults,
    free,
    known,
    parse,
    to_params,
    update,
    values,
)
from app.tour.demo import TourFields

FACTS = Facts(
    models=("base", "tuned", "full"),
    n_layers={"base": 8, "tuned": 8, "full": 6},
    head_dim={"base": 16, "tuned": 16, "full": 12},
    sites=("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"),
    positions=("last_content", "decision", "mean"),
    languages=("en", "zh"),
    categories=("add", "sub"),
    splits=("train", "validation"),
)


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    drawn: dict[str, object] = {name: draw(st.sampled_from(v)) for name, v in choices(FACTS).items()}
    usual = values(defaults(FACTS))
    for name, (low, high) in bounds(FACTS).items():
        whole = isinstance(usual[name], int)
        drawn[name] = (
            draw(st.integers(int(low), int(high)))
            if whole
            else draw(st.integers(round(20 * low), round(20 * high))) / 20  # the slider's steps
        )
    drawn |= {name: draw(st.sampled_from(("", "a1b2c3"))) for name in free()}
    return changed(Selection(), **drawn)


@given(selections())
def test_a_link_gives_back_the_selection(selection: Selection) -> None:
    assert parse(to_params(selection, FACTS), FACTS) == (selection, [])


def test_every_field_is_reachable_from_the_url() -> None:
    kinds = [*choices(FACTS), *bounds(FACTS), *free()]
    assert len(kinds) == len(set(kinds))
    assert set(kinds) == set(known())
    groups = (Selection, TourFields, *(one.fields for one in ANALYSES if one.fields is not None))
    declared = [name for group in groups for name in rules(group)]
    assert sorted(declared) == sorted(known()), "a name is used twice, or of no analysis and no tour"


def test_defaults_need_no_parameters() -> None:
    assert to_params(defaults(FACTS), FACTS) == {}
    assert defaults(FACTS).a == "base"
    assert defaults(FACTS).b == "tuned"


def test_layers_are_bounded_by_the_shallowest_model() -> None:
    assert bounds(FACTS)["layer"] == (0.0, 5.0)
    assert bounds(FACTS)["k"] == (1.0, 12.0)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"layer": "99"}, "is outside 0 to 5"),
        ({"layer": "two"}, "is not a number"),
        ({"layer": "2.5"}, "is not a whole number"),
        ({"alpha": "nan"}, "is not a finite number"),
        ({"alpha": "inf"}, "is not a finite number"),
        ({"alpha": "-1"}, "is outside 0 to 2"),
        ({"site": "attention"}, "is not in this store (resid_pre, resid_post"),
        ({"b": "other"}, "is not in this store (base, tuned, full)"),
        ({"colour": "red"}, "a setting 'colour' that does not exist"),
        ({"layer": "9" * 400}, "…"),
    ],
)
def test_nonsense_falls_back_and_says_so(params: dict[str, str], words: str) -> None:
    selection, notices = parse(params, FACTS)
    assert selection == defaults(FACTS)
    assert len(notices) == 1
    assert words in notices[0]
    assert len(notices[0]) < 200


def test_a_bad_parameter_leaves_the_good_ones() -> None:
    selection, notices = parse({"layer": "4", "site": "nowhere", "split": "train"}, FACTS)
    assert (selection.layer, selection.split, selection.site) == (4, "train", "resid_post")
    assert len(notices) == 1


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=6))
def test_any_query_string_gives_a_usable_selection(params: dict[str, str]) -> None:
    selection, _ = parse(params, FACTS)
    assert parse(to_params(selection, FACTS), FACTS)[0] == selection


def test_update_ignores_what_does_not_fit() -> None:
    start = defaults(FACTS)
    assert update(start, FACTS, layer=3).layer == 3
    assert update(start, FACTS, layer=77) == dataclasses.replace(start, layer=start.layer)
    assert update(start, FACTS, alpha=0.35).alpha == 0.35


def test_a_store_with_one_model_compares_it_with_itself() -> None:
    alone = dataclasses.replace(FACTS, models=("base",), n_layers={"base": 8}, head_dim={"base": 16})
    assert (defaults(alone).a, defaults(alone).b) == ("base", "base")
