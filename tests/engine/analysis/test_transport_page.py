"""The code on the page about transport maps runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "methods" / "transport.md"


def test_snippet_finds_the_planted_rank(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    scope: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, PAGE.name, "exec"), scope)
    printed = capsys.readouterr().out
    scores = {int(k): float(v) for k, v in re.findall(r"^(\d+) (-?[\d.]+)$", printed, re.M)}
    assert scores[1] < scores[2] < scores[3]
    assert "The map predicts new prompts" in printed
    assert printed.strip().endswith("True")
