"""A panel's drawing, checked against the schema of Vega-Lite."""

from __future__ import annotations

from typing import Any

import altair as alt

from app.charts.palette import LIGHT, Palette
from app.frame.panel import Panel


def drawn(panel: Panel, palette: Palette = LIGHT) -> dict[str, Any]:
    """The specification as a page shows it; raises on whatever the schema doesn't know.

    An Altair chart of it, as notebooks get one, has each of its parts checked anew and takes ten times as
    long: test_templates.py makes one of every kind of chart, test_panels.py of panels.
    """
    spec = panel.draw(palette).spec()
    alt.LayerChart.validate(spec)
    return spec
