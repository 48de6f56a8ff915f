"""Files a panel hands out: its table as CSV or Parquet, its chart as PNG or SVG."""

from __future__ import annotations

import io
import json
import re
import textwrap

import polars as pl
import vl_convert as vlc

from app.charts.spec import Spec

_PRINT = {
    "background": "white",
    "font": "sans-serif",
    "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e6e8ea"},
    "legend": {"labelFontSize": 11},
    "view": {"stroke": None},
    "title": {"fontSize": 13, "anchor": "start", "fontWeight": "bold"},
}


def csv_bytes(table: pl.DataFrame, separator: str = ",") -> bytes:
    """UTF-8 CSV with a header, TSV with a tab between; list and struct columns are written as JSON text."""
    flat = [
        pl.Series(name, [json.dumps(v, ensure_ascii=False) for v in table[name].to_list()])
        for name, dtype in table.schema.items()
        if dtype.is_nested()
    ]
    return table.with_columns(flat).write_csv(separator=separator).encode()


def parquet_bytes(table: pl.DataFrame) -> bytes:
    """The table as one Parquet file."""
    buffer = io.BytesIO()
    table.write_parquet(buffer)
    return buffer.getvalue()


def print_spec(spec: Spec, title: str) -> Spec:
    """The chart at a fixed width on white, with its finding as the title."""
    heading = {"text": textwrap.wrap(re.sub(r"[*`]", "", title), 86) or [""]}
    return {**spec, "config": _PRINT, "width": 640, "title": heading}


def png_bytes(spec: Spec, title: str, scale: float = 2.0) -> bytes:
    """The chart drawn for a light page, title included, as PNG at `scale` device pixels."""
    return vlc.vegalite_to_png(print_spec(spec, title), scale=scale)


def svg_bytes(spec: Spec, title: str) -> bytes:
    """The chart drawn for a light page, title included, as SVG."""
    return vlc.vegalite_to_svg(print_spec(spec, title)).encode()
