"""Which titles claim that something was found, where there is nothing to find.

A model and its identical copy differ in nothing, so no title about the two may say that they do, that a patch
between them has an effect, or that a part of the model carries it. Wording changes, so a title passes when it
says of itself that there is nothing; one that does not passes only as a known description without a claim.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

NOTHING = re.compile(
    r"(?<!\()\b(no|not|none|nothing|nowhere|never|neither|same|rounding|noise|too few|as many|identical)\b",
    re.I,
)
"""How a title says that nothing was found; the answer in "log p(No)" does not."""
CLAIM = re.compile(
    r"\b(leaves?|differs?|higher|lower|larger|smaller|ahead|saves?|lowers|raises|carr(?:y|ies)|localised|moves?|"
    r"gain|stands? out|clearest|enough|comes? out first|more|less|most|above|below)\b",
    re.I,
)
"""Words of findings."""
ABOUT_THE_PAIR = frozenset({"similarity", "mapped", "patching", "rank", "heads", "behaviour", "weights"})
"""Sections of the report that say what differs between two models or passes between them."""
DESCRIPTIONS = frozenset({"behaviour", "behaviour-shared", "rank-spectrum-difference", "rank-spectrum-map"})
"""Panels of theirs whose title is a number of one model, or a spectrum's."""


def is_false(name: str, title: str) -> bool:
    """Whether a panel of the report of two identical models claims a finding about the two.

    Args:
        name: its key in the report, as "similarity-1-cka".
    """
    section, panel = re.fullmatch(r"(.+?)-\d+-(.+)|.*", name).groups(default="")  # type: ignore[union-attr]
    if section not in ABOUT_THE_PAIR or NOTHING.search(title):
        return False
    return panel not in DESCRIPTIONS or CLAIM.search(title) is not None


def false_claims(panels: Iterable[Mapping[str, str]]) -> list[str]:
    """Those that are, as "name: title"."""
    return [
        f"{panel['name']}: {panel['title']}" for panel in panels if is_false(panel["name"], panel["title"])
    ]


def claims(panels: Iterable[Mapping[str, str]]) -> list[str]:
    """Titles with a word of findings and none of nothing, about whatever: to be read by a person."""
    found = [p for p in panels if CLAIM.search(p["title"]) and not NOTHING.search(p["title"])]
    return [f"{p['name']}: {p['title']}" for p in found]
