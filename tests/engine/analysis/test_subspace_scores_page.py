"""The code on the method page runs as printed and finds what it planted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.subspaces.numbers import REGISTRY

PAGE = Path(__file__).parents[3] / "docs" / "methods" / "subspace_scores.md"


def test_snippet_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    before = set(REGISTRY)
    try:
        exec(compile(block, PAGE.name, "exec"), {})
    finally:
        for name in set(REGISTRY) - before:
            REGISTRY.remove(name)
    printed = capsys.readouterr().out
    assert "mlp_write 4.0 16.0 100.0" in printed
    assert "dW_combined_ceiling 2.0 32.0 100.0" in printed
    assert "`mlp_write` comes out first" in printed


def test_named_candidates_exist() -> None:
    text = PAGE.read_text()
    named = set(re.findall(r"`(\w+_(?:ceiling|clusters|contrast|isolated|TaskDiff))`", text))
    assert named
    assert named <= set(REGISTRY)
