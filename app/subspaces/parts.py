"""What panels can't show of scored subspaces: the conclusion, sortable tables, definitions and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import polars as pl
import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls, export
from app.frame import parts as components
from app.frame.opened import Opened
from app.frame.panel import Panel, parted
from app.frame.words import sentence
from app.subspaces import panels
from app.subspaces import tables as q
from app.subspaces import words as say
from app.subspaces.panels import Shown
from engine.subspaces.numbers import Scores

FORMATS: dict[str, tuple[str, Callable[[pl.DataFrame], bytes]]] = {
    "csv": ("CSV", export.csv_bytes),
    "tsv": ("TSV", partial(export.csv_bytes, separator="\t")),
    "parquet": ("Parquet", export.parquet_bytes),
}


def conclusion(opened: Opened, shown: Shown) -> None:
    """What the numbers say, and what would make a careful reader hesitate."""
    with st.container(border=True, key="panel-subspace-conclusion"):
        first, _, rest = shown.found.text.partition("\n")
        heading, more = parted(first.replace("`", ""))
        screen.markdown(f"#### {plain(heading)}")
        if more:
            screen.markdown(sentence(plain(more)))
        screen.markdown(rest.replace("\nFragile:\n", "\n**Fragile**\n"))
        with screen.popover("How to read it", icon=":material/help:", type="tertiary"):
            screen.caption(panels.method(shown) + ".")
            screen.caption(components.provenance(opened, panels.models_of(opened, shown)))


def table_panel(opened: Opened, panel: Panel, shown_as: pl.DataFrame, formats: Mapping[str, str]) -> None:
    """A panel as a table that can be sorted; a selected row becomes the candidate."""
    with st.container(border=True, key=f"panel-{panel.name}"):
        screen.markdown(f"#### {plain(panel.heading)}")
        key = f"rows-{panel.name}-{controls.current().candidate}"
        screen.dataframe(
            shown_as,
            hide_index=True,
            width="stretch",
            height=420,
            on_select=_row_picked(key, shown_as["candidate"].to_list()),
            selection_mode="single-row",
            key=key,
            column_config={
                "candidate": st.column_config.TextColumn(pinned=True),
                **{name: st.column_config.NumberColumn(format=form) for name, form in formats.items()},
            },
        )
        components.reading(opened, panel)


def _row_picked(key: str, names: list[str]) -> Callable[[], None]:
    def callback() -> None:
        rows = st.session_state[key]["selection"]["rows"]
        if rows:
            controls.change(candidate=names[rows[0]])

    return callback


def ranking(opened: Opened, shown: Shown) -> None:
    """The sortable table of all candidates."""
    panel = panels.ranking_panel(opened, shown)
    table, formats = q.ranking_shown(panel.table, shown.k, len(shown.scores.averaged))
    table_panel(opened, panel, table, formats)


def specificity(opened: Opened, shown: Shown) -> None:
    """R_act before and after the clean directions are taken out."""
    panel = panels.specificity_panel(opened, shown)
    table, formats = q.specificity_shown(panel.table, shown.clean)
    table_panel(opened, panel, table, formats)


def without_scores(shown: Shown) -> None:
    """What was left out, and why."""
    table = q.left_out(shown.scores)
    if table.is_empty():
        return
    with st.container(border=True, key="panel-subspace-left-out"):
        screen.markdown(f"#### {plain(say.left_out_title(table))}")
        lines = (
            f"- **{plain(name)}**{'' if block is None else f', block {block}'}: {plain(reason)}"
            for name, block, reason in table.iter_rows()
        )
        screen.markdown("\n".join(lines))


def definitions(shown: Shown) -> None:
    """What each candidate is, as its registry entry says."""
    table = q.definitions(shown.scores)
    with screen.expander(f"Definitions of the {table.height} candidates"):
        order = ["candidate", "axis kind", "definition", "needs", "source", "family"]
        config = {"definition": st.column_config.TextColumn(width="large")}
        screen.dataframe(table, hide_index=True, width="stretch", column_order=order, column_config=config)


def files(opened: Opened, shown: Shown) -> None:
    """Every table in three formats, definitions and conclusion as Markdown; made when asked for.

    Files say by themselves which weight change they are of, and how it is scored.
    """
    of = f"{shown.delta}-k{shown.k}"
    with screen.expander("All files", icon=":material/download:"):
        for name, make in q.FILES.items():
            screen.markdown(f"**{name.capitalize()}**")
            with st.container(horizontal=True, gap="small"):
                for suffix, (title, write) in FORMATS.items():
                    _file(name, title, suffix, of, partial(_written, make, write, shown))
        screen.markdown("**Words**")
        with st.container(horizontal=True, gap="small"):
            _file("definitions", "Definitions", "md", "", partial(_definitions, shown))
            _file("conclusion", "Conclusion", "md", of, partial(_conclusion, opened, shown))


def _written(
    make: Callable[[Scores], pl.DataFrame], write: Callable[[pl.DataFrame], bytes], shown: Shown
) -> bytes:
    scores = shown.scores
    setting = {"delta": shown.delta, "k": shown.k, "broad": scores.broad, "clean": shown.clean}
    table = make(scores)
    return write(table.select(*(pl.lit(value).alias(name) for name, value in setting.items()), pl.all()))


def _conclusion(opened: Opened, shown: Shown) -> bytes:
    where = components.provenance(opened, panels.models_of(opened, shown))
    return f"{shown.found.text}\n{panels.method(shown)}.\n\n{where}\n".encode()


def _definitions(shown: Shown) -> bytes:
    return shown.scores.definitions().encode()


def _file(name: str, title: str, suffix: str, of: str, make: Callable[[], bytes]) -> None:
    stem = name.replace(" ", "-")
    screen.download_button(
        title,
        make,
        file_name="-".join(part for part in ("patchbay-subspaces", of, stem) if part) + f".{suffix}",
        key=f"file-subspaces-{stem}-{suffix}",
        on_click="ignore",
    )
