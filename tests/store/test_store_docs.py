"""The snippets of docs/store.md run as they stand, and agree with each other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_store import expected, write_all

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "store.md"


@pytest.mark.reference
def test_every_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = write_all(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    results: dict[str, np.ndarray] = {}
    text = DOCUMENT.read_text()
    for title, block in re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE):
        for code in re.findall(r"```python\n(.*?)```", block, re.DOTALL):
            names.pop("hidden", None)
            exec(compile(code, f"docs/store.md: {title}", "exec"), names)
            if "hidden" in names:
                results[title] = names["hidden"]
    assert set(results) == {
        "Reading it with Patchbay",
        "Reading it with zarr",
        "Reading it with tensorstore",
        "Reading it with xarray",
    }
    want = expected(plan, "base", "last_content", "resid", 2).astype(np.uint32) << 16
    for title, hidden in results.items():
        np.testing.assert_array_equal(hidden.view(np.uint32), want, err_msg=title)


def test_the_layout_in_the_document_is_the_layout_on_disk(tmp_path: Path) -> None:
    write_all(tmp_path / "store")
    block = re.search(r"```\n(zarr\.json.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    documented = {line.split()[0].split("/")[0] for line in block[1].splitlines()}
    found = {path.name for path in (tmp_path / "store").iterdir() if not path.name.startswith(".")}
    assert found <= documented
    later = {"runs", "maps", "notes", "subspaces"}  # with the first live result, map or note, and [subspaces]
    assert documented - found == later
