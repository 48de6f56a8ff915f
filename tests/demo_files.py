"""Where the demo's files are, and how tests read them. Also makes the `demo` package importable."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

NUMBER = re.compile(r"\d+")


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of one prompt file."""
    return [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]


def user_text(row: dict[str, Any]) -> str:
    """The user's own words of a row."""
    return row["text"] if "text" in row else row["messages"][-1]["content"]


def conversation(row: dict[str, Any]) -> list[dict[str, str]]:
    """Chat messages of a row."""
    return row.get("messages") or [{"role": "user", "content": row["text"]}]


def numbers(text: str) -> list[int]:
    """All integers of a text, in order."""
    return [int(found) for found in NUMBER.findall(text)]


def json_of(name: str) -> Any:
    """A JSON file of the demo folder."""
    return json.loads((DEMO / name).read_text(encoding="utf-8"))
