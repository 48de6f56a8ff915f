"""Amplitudes and ranks of one run. Results that were stored with more than `MOST` open: only running asks."""

from __future__ import annotations

import math
from collections.abc import Sized
from typing import Annotated

from pydantic import AfterValidator

from engine.errors import PatchError

__all__ = ["MOST", "Amplitudes", "check"]

MOST = 64
"""Amplitudes, and ranks, of one run."""


def check(alphas: Sized, ks: Sized = ()) -> None:
    """Raises PatchError for more than `MOST` amplitudes, or ranks; a sweep runs each at each."""
    for what, values in (("amplitudes α", alphas), ("ranks k", ks)):
        if len(values) > MOST:
            raise PatchError(
                f"One run has too many {what}.",
                expected=f"at most {MOST}",
                given=len(values),
                next_step="leave some out, or ask for them in several runs.",
            )


def _usable(alphas: tuple[float, ...]) -> tuple[float, ...]:
    if not alphas or not all(map(math.isfinite, alphas)):
        raise PatchError(
            "The amplitudes α cannot be used.", expected="at least one, all finite", given=alphas
        )
    return tuple(sorted({alpha + 0.0 for alpha in alphas}))


Amplitudes = Annotated[tuple[float, ...], AfterValidator(_usable)]
"""At least one, all finite; ascending, each once."""
