"""Runs every head of every block alone: one sweep per block, one capture for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from engine.heads import numbers as analysis
from engine.heads.map_spec import HeadMap
from engine.heads.numbers import Heads
from engine.heads.run import HeadPrompts, effect_row
from engine.heads.swap import HeadSwap, head_swap
from engine.lab.experiment import ExperimentResult, Lab
from engine.lab.noise import kl_floor, measured
from engine.models.sites import Site
from engine.patching.run import self_check
from engine.stats.means import bootstrap_means


def run(wanted: HeadMap, lab: Lab) -> ExperimentResult:
    """Runs the map on the train and validation prompts of a lab.

    A block is covered by its own KL of all heads; where that is nothing, its coverages are null and say why.

    Raises:
        PatchError, SiteError, ModelError: the models' heads don't fit, or the self-patch check fails.
        JobError: cancelled between batches.
    """
    prompts = HeadPrompts.of(lab, wanted)
    n_layers = min(int(lab.sizes(name)["n_layers"]) for name in wanted.models())
    cells: list[dict[str, Any]] = []
    blocks: list[dict[str, Any]] = []
    rounding = measured(lab, [wanted.target])
    noise, floor = kl_floor(rounding), 0.0
    notes: dict[str, None] = {}
    for layer in range(n_layers):
        lab.report(message=f"Block {layer} of {n_layers}: every head alone.")
        swap = head_swap(lab, wanted.at(layer), prompts.rows)
        kl = _singles(wanted, lab, swap, layer, n_layers)
        effect = prompts.effect(wanted, kl[0], max(swap.self_kl, noise))
        train = float(kl[0, prompts.train].mean())
        blocks.append({"layer": layer, **effect_row(effect), "kl_train": train})
        cells += _cells(wanted, prompts, layer, kl, effect.shown)
        floor = max(floor, swap.self_kl)
        notes |= dict.fromkeys(swap.notes())
        shown = ("layer", "head", "kl", "coverage")
        lab.report(partial={"cells": [{name: row[name] for name in shown} for row in cells]})
    check = self_check(np.array([floor]), swap.engine, f"{wanted.component} of every block")
    summary = {
        "blocks": blocks,
        "top": _top(cells),
        "n_heads": swap.n_heads,
        "n_train": int(prompts.train.sum()),
        "n_validation": int((~prompts.train).sum()),
        "interval": {"level": wanted.level, "unit": prompts.unit},
        "self_check": check.to_json(),
        "rounding": rounding,
        "source_origin": lab.origin(wanted.source, Site("head_z", 0), wanted.position),
        "notes": [*lab.notes, *notes],
    }
    return ExperimentResult(summary, {"table": _cell_table(cells), "blocks": pl.DataFrame(blocks)})


def _singles(wanted: HeadMap, lab: Lab, swap: HeadSwap, layer: int, n_layers: int) -> np.ndarray:
    """KL of all heads (first) and of each alone, on all prompts: (1 + heads, n)."""

    def progress(done: int, total: int) -> None:
        lab.report(done=layer * total + done, total=n_layers * total)

    return swap.kl(
        [swap.everything, *(Heads([head]) for head in range(swap.n_heads))],
        reverse_kl=wanted.reverse_kl,
        on_progress=progress,
        should_stop=lab.should_stop,
    )


def _cells(
    wanted: HeadMap, prompts: HeadPrompts, layer: int, kl: np.ndarray, shown: bool
) -> list[dict[str, Any]]:
    """One row per head of a block: KL alone with its place in the block's ranking on train, and coverage."""
    whole, alone = kl[0], kl[1:]
    train, reported = prompts.train, ~prompts.train
    settings = prompts.settings(wanted)
    order = analysis.ranking(alone[:, train])
    nats = bootstrap_means(alone[:, reported], **settings)
    covered = analysis.coverages(alone[:, reported], whole[reported], **settings) if shown else None
    rows: list[dict[str, Any]] = []
    for head in range(len(alone)):
        found, share = nats.at(head), None if covered is None else covered.at(head)
        row: dict[str, Any] = {"layer": layer, "head": head, "kl": found.estimate}
        row |= {"kl_low": found.low, "kl_high": found.high, "kl_train": float(alone[head, train].mean())}
        row |= {"rank": order.index(head) + 1, "coverage": None, "low": None, "high": None}
        if share is not None:
            row |= {"coverage": share.estimate, "low": share.low, "high": share.high}
        rows.append(row)
    return rows


def _cell_table(cells: list[dict[str, Any]]) -> pl.DataFrame:
    """The rows of all blocks; columns without any coverage are numbers all the same."""
    return pl.DataFrame(cells, schema_overrides=dict.fromkeys(("coverage", "low", "high"), pl.Float64))


def _top(cells: list[dict[str, Any]], most: int = 5) -> list[dict[str, int]]:
    """The heads with the largest KL on train, of blocks whose whole effect can be covered."""
    covered = [row for row in cells if row["coverage"] is not None]
    best = sorted(covered, key=lambda row: -row["kl_train"])[:most]
    return [{"layer": row["layer"], "head": row["head"]} for row in best]
