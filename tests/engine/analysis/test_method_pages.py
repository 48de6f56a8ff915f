"""The code on the method pages runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[3] / "docs" / "methods"


@pytest.mark.parametrize("page", ["similarity", "subspace", "residual_updates"])
def test_snippets_run(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), {})
    printed = capsys.readouterr().out
    assert {"similarity": "0 1.0", "subspace": "by chance 0.0625", "residual_updates": "Never Z-dominated"}[
        page
    ] in printed
    if page == "subspace":
        assert "separates at k = 8: True" in printed


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("ard_mmd", "bimodal\nsmallest [0, 1, 2, 3]"),
        ("bridge", "rotation-like.\n0.99 0.99 0.005\nTrue"),
    ],
)
def test_snippets_between_languages_run(page: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.S)
    exec(compile(block, f"{page}.md", "exec"), {})
    assert said in capsys.readouterr().out
