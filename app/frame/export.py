"""Files a panel hands out: its table as CSV or Parquet, its chart as PNG, SVG, PDF or Vega-Lite."""

from __future__ import annotations

import io
import json
import re
import textwrap
from typing import Any, cast

import polars as pl
import vl_convert as vlc

from app.charts.template import Chart, Spec
from app.escape import csv_cell

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
