"""How much one run may be asked for. Results that were stored with more still open: only running asks."""

from __future__ import annotations

from collections.abc import Sized

from engine.errors import PatchError

__all__ = ["MOST", "check"]

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
