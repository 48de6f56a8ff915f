"""Links are text that anybody may write: they choose what they can and never break a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.analyses import ANALYSES
from app.frame.fields import LONGEST
from app.frame.selection import (
    MOST_NOTICES,
    Facts,
    Selection,
    bounds,
    changed,
    choices,
    free,
    known,
    listed,
    parse,
    to_params,
    values,
    whole,
)
from app.patching.replacement import chosen_heads
from app.steering.view import words_of
from app.subspaces.view import layers_of
from app.weight_steering.view import contrasts_of
from engine.errors import PatchbayError

FACTS = Facts(
    models=("base", "tuned"),
    n_layers={"base": 8, "tuned": 6},
    head_dim={"base": 16, "tuned": 12},
    sites=("resid_pre", "resid_post", "head_z"),
    positions=("last_content", "mean"),
    languages=("en", "zh"),
    categories=("add",),
    splits=("train", "validation"),
)
DIGITS = "9" * 5000
NASTY = (
    *("", " ", DIGITS, f"-{DIGITS}", "1e999", "-1e999", "nan", "inf", "-inf", "0x10", "1_0", "１", "²", "½"),
    *("\0", "\ud800", "\udfff", "a\nb", "\x1b[2J", "../../x", "/etc/passwd", "a" * 100_000, "," * 5000),
    *("0," * 5000, ",".join(map(str, range(3000))), "![](//host/x)", "<img src=x>", "a:b;c", ";" * 900),
    *(
        "target:en;source:en",
        f"ks:{DIGITS}",
        "ks:²",
        f"ks:{'1,' * 400}",
        "layers:²",
        "/",
        "a/",
        "/b",
        "a/b/c",
    ),
)
TEXTS = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(codec=None), max_size=40),
    st.integers().map(str),
    st.floats().map(str),
)


def test_settings_of_analyses_are_among_them() -> None:
    assert ANALYSES
    assert {"z", "deltas", "heads"} <= set(free())


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.one_of(st.sampled_from(tuple(known())), TEXTS), TEXTS, max_size=12))
def test_whatever_a_link_says_is_a_selection_within_bounds(params: dict[str, str]) -> None:
    chosen, notices = parse(params, FACTS)
    found = values(chosen)
    for name, allowed in choices(FACTS).items():
        assert found[name] in allowed
    for name, (low, high) in bounds(FACTS).items():
        assert low <= found[name] <= high
    for name in free():
        assert len(found[name]) <= LONGEST
        found[name].encode()
    assert len(notices) <= MOST_NOTICES + 1
    assert all(len(notice) < 400 and notice.encode() for notice in notices)
    assert parse(to_params(chosen, FACTS), FACTS)[1] == []


def answer(read: Callable[[], Any]) -> Any:
    """What a parser reads, or the words in which it refuses."""
    try:
        return read()
    except PatchbayError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
def test_texts_that_pages_read_themselves_are_refused_in_words(text: str) -> None:
    """The parsers behind free texts; what can't be read is a PatchbayError or left out."""
    for read in (
        lambda: chosen_heads(changed(Selection(site="head_z"), heads=text)),
        lambda: contrasts_of(changed(Selection(a="base", b="tuned"), deltas=text)),
        lambda: words_of(text),
        lambda: layers_of(text, 12),
    ):
        found = answer(read)
        assert "Next: " in found if isinstance(found, str) else found is None or len(found) <= 3000


def test_numbers_and_lists_are_bounded() -> None:
    assert whole("12") == 12
    assert [whole(text) for text in (DIGITS, "-1", "²", "１", "1.0", "")] == [None] * 6
    assert listed("b,a,b,x,c", ("a", "b", "c"), 2) == ["b", "a"]
    assert len(contrasts_of(changed(Selection(b="b"), deltas=",".join(map(str, range(99)))))) == 6


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("patching", {"heads": DIGITS, "site": "head_z", "layer": DIGITS, "alpha": "nan", "patch": "one"}),
        ("heads", {"layer": "1e999", "heads": "²", "run": "../../x"}),
        ("behaviour", {"contrast": "a," * 900, "measure": "![](//host)", "run": "\0"}),
        ("z_patching", {"z": f"ks:{DIGITS};layers:²;problems:{DIGITS};show:²@²", "k": "inf"}),
        ("weight_steering", {"deltas": "a," * 900, "steered": "x" * 5000, "strength": "-inf"}),
        ("rank", {"words": "/", "contrast": "/", "rank": "-1", "part": "steering"}),
        ("subspaces", {"averaged": DIGITS, "delta": "../..", "candidate": "\x7f", "dims": "nan"}),
        ("weights", {"tensor": "../../x", "delta": "\x1b[2J", "head_part": "x"}),
        ("runs", {"run": "../../manifest"}),
    ],
)
def test_no_page_breaks(
    open_app: Callable[..., AppTest], planted: Path, page: str, fields: dict[str, str]
) -> None:
    app = open_app(planted, page, **fields)
    assert not app.exception
    assert not any("Something went wrong" in block.value for block in app.markdown)
