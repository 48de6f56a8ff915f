"""Streamlit's calls that take words, for text that may hold anything: nothing becomes a link or an image.

All pages say what they say through these; a test refuses Streamlit's own. Words are Markdown of Patchbay's
own and go through `escape.inert`; options are names of models, languages and runs and go through
`escape.plain`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

import polars as pl
import streamlit as st

from app.escape import FORMULAS, inert, plain, shown_cell

F = TypeVar("F", bound=Callable[..., Any])
WORDS = ("label", "body", "text", "help", "caption", "captions", "placeholder", "delta")


def _worded(function: F, *, at: int = 0, options: bool = False) -> F:
    """The same function; its words, the argument at `at` and those of `WORDS`, are made inert.

    Args:
        options: whether its options are shown as Markdown too.
    """

    @functools.wraps(function)
    def shown(*given: Any, **named: Any) -> Any:
        given = tuple(_said(value) if number == at else value for number, value in enumerate(given))
        named = {key: _said(value) if key in WORDS else value for key, value in named.items()}
        if options:
            named["format_func"] = _formatted(named.get("format_func", str))
        return function(*given, **named)

    return cast(F, shown)


def _said(value: Any) -> Any:
    return inert(value) if isinstance(value, str) else value


def _formatted(write: Callable[[Any], Any]) -> Callable[[Any], str]:
    return lambda option: plain(str(write(option)))


markdown = _worded(st.markdown)
caption = _worded(st.caption)
title = _worded(st.title)
info = _worded(st.info)
success = _worded(st.success)
warning = _worded(st.warning)
error = _worded(st.error)
toast = _worded(st.toast)
expander = _worded(st.expander)
popover = _worded(st.popover)
button = _worded(st.button)
download_button = _worded(st.download_button)
text_input = _worded(st.text_input)
text_area = _worded(st.text_area)
number_input = _worded(st.number_input)
form_submit_button = _worded(st.form_submit_button)
file_uploader = _worded(st.file_uploader)
checkbox = _worded(st.checkbox)
slider = _worded(st.slider)
select_slider = _worded(st.select_slider)
selectbox = _worded(st.selectbox)
multiselect = _worded(st.multiselect)
segmented_control = _worded(st.segmented_control, options=True)
progress = _worded(st.progress, at=1)
spinner = _worded(st.spinner)
page_link = _worded(st.page_link, at=1)


def metric(label: str, value: str, **named: Any) -> Any:
    """Streamlit's number under a name; the value is shown as it is."""
    return _worded(st.metric)(label, plain(value), **named)


def dataframe(data: Any, **named: Any) -> Any:
    """Streamlit's table; its menu's CSV file begins no formula either.

    Args:
        data: a polars table, or a pandas Styler of one that `harmless` has made.
    """
    # as Arrow: Streamlit makes a pandas table of a polars one first
    return st.dataframe(harmless(data).to_arrow() if isinstance(data, pl.DataFrame) else data, **named)


def harmless(table: pl.DataFrame) -> pl.DataFrame:
    """A table whose texts, in lists too, are those of `escape.shown_cell`."""
    begins = pl.col(pl.String).str.contains(FORMULAS).any()
    listed = (
        pl.col(pl.List(pl.String)).list.eval(pl.element().str.contains(FORMULAS).any()).list.first().any()
    )
    found = table.select(begins, listed)
    changed = [
        pl.Series(name, [_cell(value) for value in table[name].to_list()], dtype=table.schema[name])
        for name in found.columns
        if found[name][0]
    ]
    return table.with_columns(changed) if changed else table


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return [_cell(item) for item in value]
    return shown_cell(value) if isinstance(value, str) else value


def tabs(names: Iterable[str]) -> Any:
    """Streamlit's tabs, one for each name."""
    return st.tabs([plain(name) for name in names])
