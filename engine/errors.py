"""Errors that Patchbay raises on purpose.

Every message answers four questions: what happened, what was expected, what was given, and what
to do next. Pages show `str(error)` as it is; tracebacks go to the log.
"""

from __future__ import annotations

import unicodedata

LONGEST_PART = 4000
"""Characters of one part of a message; what was given can be a whole file."""


def printable(text: str) -> str:
    """Text that any terminal and log can show: control and half characters as escapes, not without end."""
    shown = text if len(text) <= LONGEST_PART else text[:LONGEST_PART] + "…"
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs") else ascii(c)[1:-1] for c in shown
    )


class PatchbayError(Exception):
    """Base of all errors raised on purpose.

    Args:
        what: what happened, one sentence.
        expected: what would have been accepted.
        given: what was found instead.
        next_step: what the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        given: object = None,
        next_step: str | None = None,
    ) -> None:
        self.what, self.expected, self.given, self.next_step = what, expected, given, next_step
        parts = [what]
        if expected is not None:
            parts.append(f"Expected: {expected}.")
        if given is not None:
            parts.append(f"Given: {given}.")
        if next_step is not None:
            parts.append(f"Next: {next_step}")
        super().__init__(" ".join(map(printable, parts)))


class AccessError(PatchbayError):
    """Somebody may not do this here."""


class StudyError(PatchbayError):
    """The study file is missing, malformed or asks for something impossible."""


class PromptsError(PatchbayError):
    """A prompts table, a chat template or a token position cannot be used."""


class ModelError(PatchbayError):
    """A model, adapter or weight diff cannot be loaded or fails an identity check."""


class SiteError(PatchbayError):
    """A site (component, layer, head) does not exist in this model."""


class CaptureError(PatchbayError):
    """Forward passes could not be captured."""


class PatchError(PatchbayError):
    """An intervention is impossible or its self-check failed."""


class AnalysisError(PatchbayError):
    """Arrays handed to an analysis do not fit its definition."""


class StoreError(PatchbayError):
    """A store is missing, damaged, unfinished or belongs to another study."""


class JobError(PatchbayError):
    """A live job failed, was cancelled or lost its worker."""
