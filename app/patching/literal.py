"""The literal patch beside a moment-matched one: the source's activation as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.frame import running, words
from app.frame.opened import Opened
from engine.patching.spec import Condition


def beside(opened: Opened, condition: Mapping[str, Any], alpha: float) -> str:
    """ "; the literal activation by 0.16 nats (0.1 to 0.2)" of a stored condition that is moment-matched
    where its literal twin is stored too, at the amplitude nearest to `alpha`; else nothing."""
    if condition["kind"] != "raw":
        return ""
    run_id = running.find(opened, Condition.from_json({**condition, "kind": "literal"}))
    if run_id is None:
        return ""
    curve = running.opened_run(opened, run_id).summary["curve"]
    row = min(curve, key=lambda one: abs(float(one["alpha"]) - alpha))
    return f"; the literal activation by {words.nats_span(row)}"
