"""Turns `metrics.json` into the tables of the demo's README."""

from __future__ import annotations

from typing import Any

MODELS = ("base", "tuned_adapter", "tuned_adapter_seed2", "full_finetune")


def percent(share: float) -> str:
    """0.9833 → '98.3 %'."""
    return f"{100 * share:.1f} %"


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


def tables(metrics: dict[str, Any]) -> tuple[str, str]:
    """Two Markdown tables: the base by category and language, and all models side by side."""
    base = metrics["base"]["held_out"]
    by_category = _table(
        ["category", "English", "Chinese"],
        [[name, percent(cell["en"]), percent(cell["zh"])] for name, cell in base["accuracy"].items()],
    )
    body = []
    for name in MODELS:
        one = metrics[name]
        fidelity, asked = one["held_out"]["fidelity"], one["other_language_requested"]
        body.append(
            [
                name,
                percent(one["problems_accuracy"]),
                percent(one["agrees"]["right"]),
                percent(one["agrees"]["wrong"]),
                percent(min(fidelity.values())),
                percent(min(asked["fidelity"].values())),
            ]
        )
    side_by_side = _table(
        [
            "model",
            "problems right",
            "agrees with right sums",
            "agrees with wrong sums",
            "language kept",
            "other language when asked",
        ],
        body,
    )
    return by_category, side_by_side
