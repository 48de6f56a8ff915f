"""Files a panel hands out: its table, its chart as PNG, SVG, PDF or Vega-Lite, and a page as a notebook."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, cast

import polars as pl
import vl_convert as vlc

from app.charts.template import Chart, Spec
from app.escape import csv_cell, plain
from app.frame.words import minus

LITE = "vl.json"
"""How the names of Vega-Lite files end."""
_PRINT = {
    "background": "white",
    "font": "sans-serif",
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e6e8ea"},
    "legend": {"labelFontSize": 11},
    "view": {"stroke": None},
    "title": {"fontSize": 13, "anchor": "start", "fontWeight": "bold"},
}


def csv_bytes(table: pl.DataFrame, separator: str = ",") -> bytes:
    """UTF-8 CSV with a header, TSV with a tab between; list and struct columns are written as JSON text.

    Text that a spreadsheet would take for a formula has an apostrophe before it, in headers too.
    """
    flat = [
        pl.Series(name, [json.dumps(v, ensure_ascii=False, default=str) for v in table[name].to_list()])
        for name, dtype in table.schema.items()
        if dtype.is_nested()
    ]
    whole = table.with_columns(flat)
    texts = [name for name, dtype in whole.schema.items() if not (dtype.is_numeric() or dtype.is_temporal())]
    safe = whole.with_columns(_harmless(whole[name]) for name in texts if whole[name].dtype != pl.Boolean)
    return safe.rename(csv_cell).write_csv(separator=separator).encode()


def _harmless(column: pl.Series) -> pl.Series:
    cells = [None if value is None else csv_cell(str(value)) for value in column.to_list()]
    return pl.Series(column.name, cells, dtype=pl.String)


def parquet_bytes(table: pl.DataFrame) -> bytes:
    """The table as one Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


MOST_ROWS = 200
"""Rows of a table that is written to be printed; a longer one is cut, and says so."""


def markdown_bytes(table: pl.DataFrame) -> bytes:
    """The table in GitHub's Markdown; texts can't end a cell or start markup."""
    names, cells, cut = _printed(table, _cell, "−")
    rule = ["---:" if kind.is_numeric() else "---" for kind in table.dtypes]
    lines = [f"| {' | '.join(row)} |" for row in (names, rule, *cells)]
    return "\n".join([*lines, *(["", cut] if cut else []), ""]).encode()


def latex_bytes(table: pl.DataFrame) -> bytes:
    """The table as a LaTeX `tabular` with the rules of booktabs."""
    names, cells, cut = _printed(table, _latex, "$-$")
    columns = "".join("r" if kind.is_numeric() else "l" for kind in table.dtypes)
    # {} first: a row's end looks past the line for [ and *
    rows = [f"{{}}{' & '.join(row)} \\\\" for row in (names, *cells)]
    body = ["\\toprule", rows[0], "\\midrule", *rows[1:], "\\bottomrule"]
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{{columns}}}", *body, "\\end{tabular}"]
    return "\n".join([*lines, *([f"% {cut}"] if cut else []), ""]).encode()


def _printed(
    table: pl.DataFrame, escaped: Callable[[str], str], sign: str
) -> tuple[list[str], list[list[str]], str]:
    """Escaped names and cells of the first `MOST_ROWS` rows, and what is said of the others."""

    def written(value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            return minus(f"{value:.4g}").replace("−", sign)
        return escaped(" ".join(str(value).split()))

    cells = [[written(value) for value in row] for row in table.head(MOST_ROWS).rows()]
    cut = "" if table.height <= MOST_ROWS else f"The first {MOST_ROWS} of {table.height} rows."
    return [escaped(name) for name in table.columns], cells, cut


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\|", plain(text))


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": "$-$",
    "–": "--",
}


def _latex(text: str) -> str:
    return "".join(
        _LATEX.get(character, character) for character in _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
    )


def notebook_bytes(title: str, panels: Sequence[tuple[str, str, str]]) -> bytes:
    """A Jupyter notebook of a page: (finding, caption, code) of each panel, its code in a cell that runs."""

    def cell(number: int, kind: str, source: str, **more: Any) -> dict[str, Any]:
        lines = source.splitlines(keepends=True)
        return {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": lines, **more}

    cells = [cell(0, "markdown", f"# {title}")]
    for number, (finding, caption, code) in enumerate(panels):
        cells.append(cell(2 * number + 1, "markdown", f"## {plain(finding)}\n\n{plain(caption)}"))
        cells.append(cell(2 * number + 2, "code", f"{code}\ntable", outputs=[], execution_count=None))
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": python}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, ensure_ascii=False, indent=1).encode()


def file_name(panel: str, suffix: str) -> str:
    """What a file of a panel is called."""
    return f"patchbay-{panel}.{suffix}"


def print_spec(chart: Chart, title: str) -> Spec:
    """The chart at a fixed width on white, with its finding as the title.

    Characters that no SVG can have are "\N{REPLACEMENT CHARACTER}": vl-convert ends the whole process at one,
    and tokens may hold any.
    """
    heading = {"text": textwrap.wrap(re.sub(r"[*`]", "", title), 86) or [""]}
    whole = {**chart.spec(), "config": _PRINT, "width": 640, "title": heading}
    return cast(Spec, _drawable(whole))


_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def _drawable(node: Any) -> Any:
    """A copy of a specification with texts that can be drawn."""
    if isinstance(node, str):
        return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", node)
    if isinstance(node, dict):
        return {_drawable(key): _drawable(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_drawable(one) for one in node]
    return node


def png_bytes(chart: Chart, title: str, scale: float = 2.0) -> bytes:
    """The chart drawn for a light page, title included, as PNG at `scale` device pixels."""
    return vlc.vegalite_to_png(print_spec(chart, title), scale=scale)


def svg_bytes(chart: Chart, title: str) -> bytes:
    """The chart drawn for a light page, title included, as SVG."""
    return vlc.vegalite_to_svg(print_spec(chart, title)).encode()


def pdf_bytes(chart: Chart, title: str) -> bytes:
    """The chart drawn for a light page, title included, as one page of PDF."""
    return vlc.vegalite_to_pdf(print_spec(chart, title))


def json_bytes(chart: Chart, title: str) -> bytes:
    """The chart drawn for a light page, title and data included, as a Vega-Lite specification."""
    return json.dumps(print_spec(chart, title), ensure_ascii=False, indent=1).encode()


def chart_code(panel: str) -> str:
    """Notebook lines that open the Vega-Lite file of a panel as an Altair chart, `chart`."""
    return (
        "from pathlib import Path\n\nimport altair as alt\n\n"
        f"chart = alt.Chart.from_json(Path({file_name(panel, LITE)!r}).read_text(encoding='utf-8'))"
    )
