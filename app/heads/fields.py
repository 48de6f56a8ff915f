"""Settings of substituted heads."""

from __future__ import annotations

from dataclasses import dataclass

from app.frame.fields import choice
from app.frame.selection import Fields


@dataclass(frozen=True)
class HeadFields(Fields):
    """`substitute`: what of a head is put in; `vectors`: literally or moment-matched."""

    substitute: str = choice(
        "head_z",
        "head_out",
        usual=lambda facts: "head_z" if facts.pair[0] == facts.pair[1] else "head_out",
    )
    vectors: str = choice("literal", "raw")
