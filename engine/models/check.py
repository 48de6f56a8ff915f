"""Small records of what was checked, kept with the numbers they vouch for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import PatchbayError


@dataclass(frozen=True)
class SelfCheck:
    """One measured check.

    Attributes:
        name: what was checked, stable ("residual identity", "self-patch KL", ...).
        value: the measured deviation, in the unit that `detail` names.
        limit: the largest value that passes.
        passed: whether it passed; a NaN value never does.
        detail: one sentence: the quantity, its unit, and why this limit.
    """

    name: str
    value: float
    limit: float
    passed: bool
    detail: str = ""

    @staticmethod
    def of(name: str, value: float, limit: float, detail: str = "") -> SelfCheck:
        """A check that passes when `value <= limit` (never for NaN)."""
        value, limit = float(value), float(limit)
        return SelfCheck(name, value, limit, not math.isnan(value) and value <= limit, detail)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; a value that is not finite becomes its name ("nan", "inf")."""
        out = asdict(self)
        if not math.isfinite(self.value):
            out["value"] = str(self.value)
        return out

    @staticmethod
    def from_json(data: dict[str, Any]) -> SelfCheck:
        """Reads `to_json` back; raises PatchbayError when a field is missing or unknown."""
        expected = set(SelfCheck.__dataclass_fields__)
        if set(data) != expected:
            raise PatchbayError(
                "A self-check record is malformed.", expected=sorted(expected), given=sorted(data)
            )
        return SelfCheck(
            str(data["name"]),
            float(data["value"]),
            float(data["limit"]),
            bool(data["passed"]),
            str(data["detail"]),
        )
