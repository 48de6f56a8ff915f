"""Settings of patches."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice, text
from app.frame.selection import Fields


@dataclass(frozen=True)
class PatchFields(Fields):
    """`patch`: which half of the page; `kind`, `heads`: what one replacement puts in; `alphas`: one or all;
    `grid`: all amplitudes, as "0.3,0.5"; `spread`: amplitudes of one site or of every one that was run;
    `vocabulary`: whether KL is given a second time on shared tokens; `fitted_at`: the sample that maps are
    fitted on; empty: the patched token. `sites` is no longer asked for; links
    may have it."""

    patch: str = choice("table", "one")
    kind: str = choice("raw", "literal", "self", "mean")
    alphas: str = choice("one", "curve")
    sites: str = choice("one", "every")
    heads: str = text()
    grid: str = text()
    spread: str = choice("one", "all")
    vocabulary: str = choice("whole", "shared")
    fitted_at: str = text()
