"""What the page says of one prompt: figures of it, no conclusions about others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from app.frame.words import nats

__all__ = ["kl_title", "lens_title", "replies_title", "states_title", "token"]

LONGEST = 16


def token(text: str) -> str:
    """A token in quotes, its spaces and breaks to be seen, cut where it is long."""
    seen = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    seen = "".join(c if c.isprintable() else f"⟨{ord(c):X}⟩" for c in seen)
    return f"“{seen[: LONGEST - 1]}…”" if len(seen) > LONGEST else f"“{seen}”"


def kl_title(target: str, source: str, row: Mapping[str, Any], floor: float) -> str:
    """Behind which token of the prompt the models part most, and into what.

    Rule: the token with the largest KL, where that exceeds rounding noise.
    """
    if row["kl"] <= max(floor, 1e-9):
        return f"Behind no token of this prompt does {target} part from {source} by more than rounding noise"
    one, other = token(row["next_target"]), token(row["next_source"])
    same = row["next_id_target"] == row["next_id_source"]
    here, there = (f"{100 * row[side]:.0f} %" for side in ("p_target", "p_source"))
    instead = f"{one} in place of {other}" if not same else f"{one} at {here} in place of {there}"
    where = f"token {row['token']}, {token(row['text'])}"
    return f"{target} parts most from {source} behind {where}: KL {nats(row['kl'])} nats, {instead}"


def lens_title(model: str, said: Sequence[int], end: str) -> str:
    """From which state on a model says what it says in the end, behind the last token.

    Args:
        said: the likeliest token's id at each state, in order. end: the last one's text.
    """
    settled = len(said) - 1
    while settled > 0 and said[settled - 1] == said[-1]:
        settled -= 1
    last = f"{model} says {token(end)} behind the last token"
    return f"{last} from state {settled} of {len(said) - 1} on" if settled else f"{last} at every state"


def replies_title(table: pl.DataFrame) -> str:
    """Whether the models go on alike; `table` has the columns model and text, of one model or of two."""
    rows = table.to_dicts()
    if len(rows) == 1:
        return f"{rows[0]['model']} goes on"
    one, other = rows
    how = "with the same words" if one["text"] == other["text"] else "differently"
    return f"{one['model']} and {other['model']} go on {how}"


def states_title(target: str, source: str, apart: Sequence[float], least: Sequence[float]) -> str:
    """At which state the streams part, and how far they are apart at the most.

    Args:
        apart: the largest ‖h_target − h_source‖ ÷ ‖h_source‖ of a token at each state. least: rounding noise
            there.
    """
    beyond = [state for state, value in enumerate(apart) if value > least[state]]
    if not beyond:
        return f"The streams of {target} and {source} are equal but for rounding at every token"
    most = max(range(len(apart)), key=apart.__getitem__)
    percent = 100 * apart[most]
    far = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
    return (
        f"{target}'s stream leaves {source}'s at state {beyond[0]}; farthest at state {most}: "
        f"{far} % of its length"
    )
