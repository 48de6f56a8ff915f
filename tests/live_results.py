"""Results of live patches as the worker stores them, made up without a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from planted_store import prompts_table

from app.live.jobs import JobResult
from engine.patching.spec import Condition


def live_result(condition: Condition, kl: float = 0.5, seed: int = 0) -> JobResult:
    """A result as the worker stores it, with a mean KL of about `kl`."""
    rng = np.random.default_rng(seed)
    prompts = prompts_table().head(12)
    parts = []
    curve = []
    for alpha in condition.alphas:
        values = kl * alpha * rng.uniform(0.5, 1.5, size=prompts.height)
        tokens = [[" yes", "\n"]] * prompts.height
        columns: list[pl.Series] = [
            pl.Series("alpha", [alpha] * prompts.height),
            pl.Series("kl", values),
            pl.Series("top_before", tokens),
            pl.Series("p_before", [[0.75, 0.2]] * prompts.height),
            pl.Series("top_after", tokens[::-1]),
            pl.Series("p_after", [[0.5, 0.4]] * prompts.height),
            pl.Series("top1_changed", [True] * 3 + [False] * (prompts.height - 3)),
        ]
        parts.append(prompts.with_columns(columns))
        mean = float(values.mean())
        curve.append({"alpha": alpha, "kl": mean, "low": 0.9 * mean, "high": 1.1 * mean, "n": prompts.height})
    summary: dict[str, Any] = {
        "curve": curve,
        "interval": {"level": 0.95, "method": "percentile bootstrap over groups", "unit": "pair"},
        "self_check": {"value": 2e-8, "limit": 1e-6, "passed": True},
        "notes": [],
    }
    return JobResult(condition.to_json(), summary, {"table": pl.concat(parts)})
