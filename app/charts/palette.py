"""Colours with a fixed meaning, from the Okabe-Ito colour-blind-safe set, for light and dark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours by role: the two models, two quantities of the pair, null; `series` is for anything
    without a role of its own (languages from the third on, sub-blocks from the fifth on); `page` is behind
    all."""

    a: str
    b: str
    pair: str
    pair2: str
    null: str
    mark: str
    text: str
    series: tuple[str, ...]
    scheme: tuple[str, ...]
    page: str


LIGHT = Palette(
    a="#0072b2",
    b="#d55e00",
    pair="#6a4c9c",
    pair2="#a07cc0",
    null="#8a8f98",
    mark="#1c2126",
    text="#1c2126",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    scheme=("#fdf7ec", "#f5d9a8", "#e0a35c", "#b5673f", "#74374a", "#2b1437"),
    page="#fcfcfb",
)
DARK = Palette(
    a="#56b4e9",
    b="#e8833a",
    pair="#b79ae0",
    pair2="#8a6fb5",
    null="#9aa2ab",
    mark="#e4e7ea",
    text="#e4e7ea",
    series=("#56b4e9", "#e8833a", "#2fbf94", "#d995bb", "#8fd0f5", "#f0b93a"),
    scheme=("#3b2d57", "#6e3a5c", "#a3553f", "#cf8a4b", "#eec98f", "#fdf3e1"),
    page="#14171a",
)


def palette(dark: bool) -> Palette:
    """The palette for a dark or a light page."""
    return DARK if dark else LIGHT
