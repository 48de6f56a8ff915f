"""Runs a patch condition on a lab: checks, vectors of both models, the sweep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from engine.errors import PatchError
from engine.lab.experiment import Lab, check_site, chosen_rows, train_rows, width_text
from engine.lab.noise import measured
from engine.models.sites import Site
from engine.patching.run import ConditionResult, run_condition
from engine.patching.spec import Condition
from engine.patching.tables import prompt_table


def run(condition: Condition, lab: Lab) -> ConditionResult:
    """Runs a condition on the prompts of a lab.

    Raises:
        PatchError, SiteError, ModelError: the condition, a model or the self-patch check fails.
        JobError: cancelled between batches.
    """
    rows = chosen_rows(lab.prompts, condition.split, condition.where)
    for name in condition.models():
        check_site(lab, name, condition.component, condition.layer, condition.heads)
    _check_widths(lab, condition)
    site = Site(condition.component, condition.layer, condition.heads)
    train = train_rows(lab.prompts) if condition.needs_train else rows[:0]
    moments = train if condition.kind == "raw" else rows[:0]
    source = source_train = None
    if condition.needs_source:
        union = np.union1d(rows, moments)
        found = lab.activations(condition.source, site, condition.position, union)
        source, source_train = found[np.searchsorted(union, rows)], found[np.searchsorted(union, moments)]
    target_train = lab.activations(condition.target, site, condition.position, train) if train.size else None
    engine = lab.engine(condition.target, rows, condition.position, condition.read_at)
    names = dict(zip(("target", "source"), condition.models(), strict=False))
    lab.report(message=f"Patching {rows.size} prompts at {len(condition.alphas)} amplitudes.")
    result = run_condition(
        condition,
        engine,
        prompt_table(lab, rows, condition.position, names),
        source=source,
        source_train=source_train,
        target_train=target_train,
        source_origin=lab.origin(condition.source, site, condition.position)
        if condition.needs_source
        else "",
        notes=lab.notes,
        on_progress=lambda done, total: lab.report(done=done, total=total),
        on_partial=lambda kl: lab.report(partial=partial_curve(condition, kl)),
        should_stop=lab.should_stop,
    )
    return replace(result, rounding=measured(lab, [condition.target]))


def partial_curve(condition: Condition, kl: np.ndarray) -> dict[str, Any]:
    """Mean KL per amplitude over the prompts done so far.

    Args:
        kl: (alpha, prompt), NaN where not done.

    Returns:
        {"curve": [{"alpha", "kl", "n"}, ...] for amplitudes with a prompt done, "kl": the mean at the
        amplitude nearest to 1}.
    """
    done = np.isfinite(kl).sum(axis=1)
    sums = np.nansum(kl, axis=1)
    rows = [
        {"alpha": alpha, "kl": float(total / n), "n": int(n)}
        for alpha, total, n in zip(condition.alphas, sums, done, strict=True)
        if n
    ]
    if not rows:
        return {"curve": []}
    return {"curve": rows, "kl": min(rows, key=lambda row: abs(row["alpha"] - 1.0))["kl"]}


def _check_widths(lab: Lab, condition: Condition) -> None:
    """Raw and literal patches put the source's vector in as it is: its width must be the target's."""
    target, source = (
        width_text(lab, name, condition.component, condition.heads)
        for name in (condition.target, condition.source)
    )
    if not condition.needs_source or target == source:
        return
    raise PatchError(
        f"{condition.source} and {condition.target} have different widths at {condition.site_text()}: "
        f"a {condition.kind} patch needs the same one.",
        expected=f"{target} ({condition.target})",
        given=f"{source} ({condition.source})",
        next_step="models of different widths can only be patched through a transport map.",
    )
