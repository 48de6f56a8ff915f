"""Messages quote what was given, and are safe to print."""

from __future__ import annotations

from engine.errors import LONGEST_PART, PatchbayError


def test_a_message_has_its_four_parts_in_order() -> None:
    error = PatchbayError("It broke.", expected="this", given=3, next_step="mend it.")
    assert str(error) == "It broke. Expected: this. Given: 3. Next: mend it."
    assert error.given == 3


def test_what_a_terminal_would_obey_or_refuse_is_written_out() -> None:
    text = str(PatchbayError("\x1b[2J\ud800 \u009b 中文 é", given="a\nb\0"))
    assert text == "\\x1b[2J\\ud800 \\x9b 中文 é Given: a\nb\\x00."
    text.encode()


def test_a_message_is_not_a_whole_file() -> None:
    assert len(str(PatchbayError("x", given="y" * 10**6))) < LONGEST_PART + 100
