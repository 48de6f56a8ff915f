"""A panel's chart as SVG text for a light page."""

from __future__ import annotations

import re

import vl_convert as vlc

from app.charts.palette import LIGHT
from app.frame import export
from app.frame.analysis import Advance
from app.frame.blocks import Report
from app.frame.panel import Panel

_ID = re.compile(r'\bid="([^"]+)"')


def draw(panel: Panel) -> str:
    """The chart at the width of a page, without a title: the heading above it has it.

    Ids are numbered from 0 in each chart, so that the same chart is the same text: vl-convert counts on.
    """
    spec = export.print_spec(panel.draw(LIGHT), panel.title)
    spec.pop("title")
    svg = vlc.vegalite_to_svg(spec)
    for number, name in enumerate(dict.fromkeys(_ID.findall(svg))):
        svg = re.sub(rf'(\bid="|url\(#|href="#){re.escape(name)}(?=["\)])', rf"\g<1>_{number}", svg)
    return svg


def draw_all(report: Report, advance: Advance) -> dict[str, str]:
    """The SVG of every panel by its key.

    Args:
        advance: called with (panels drawn, of how many, what is being drawn).
    """
    panels = list(report.panels())
    found = {}
    for number, (key, panel) in enumerate(panels):
        advance(number, len(panels), panel.title)
        found[key] = draw(panel)
    return found


def inline(svg: str, key: str, label: str) -> str:
    """The SVG as part of an HTML document: ids of its own, one label for those who don't see it.

    The marks' own labels are left out: read aloud they are hundreds of numbers, which the table has too.

    Args:
        label: escaped text.
    """
    own = _ID.sub(rf'id="{key}-\1"', svg)
    own = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", own)
    own = re.sub(r'\b(xlink:)?href="#([^"]+)"', rf'href="#{key}-\2"', own)
    own = re.sub(r' (?:aria-[a-z]+|role|xmlns(?::xlink)?)="[^"]*"', "", own)
    return own.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
