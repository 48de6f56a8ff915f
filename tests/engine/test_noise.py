"""Runs keep their target's rounding noise, and no share is told of an effect that is within it."""

from __future__ import annotations

import copy
from typing import Any

import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.kinds import experiment_from_json
from engine.lab import noise
from engine.lab.experiment import ExperimentResult
from engine.models.loading import from_parts

PAIRS = 10
NOISE = {
    "kl": 0.25,
    "kl_worst": 0.4,
    "log_prob": 0.9,
    "relative": 0.1,
    "n_prompts": 6,
    "sites": {"resid": [0.1]},
}
SITE = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": 1, "position": "decision"}
JOBS: dict[str, dict[str, Any]] = {
    "patch": {**SITE, "kind": "literal"},
    "mapped": {**SITE, "alphas": [1.0]},
    "heads": {**SITE, "component": "head_out"},
    "head_map": {"target": "tuned", "source": "base", "component": "head_out"},
    "rank": {**SITE, "alphas": [1.0], "draws": 2},
}


def lab(kl: float | None) -> MemoryLab:
    """Two models that differ a little everywhere, with this noise or without a measured one."""
    base = tiny("qwen3")
    tuned = copy.deepcopy(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in tuned.model.layers.parameters():
            weight.add_(0.02 * torch.randn_like(weight) * weight.std())
    models = {name: from_parts(model, name=name) for name, model in (("base", base), ("tuned", tuned))}
    ids = [random_tokens(1, 5 + i % 4, seed=i)[0].tolist() for i in range(2 * PAIRS)]
    split = ["train"] * PAIRS + ["validation"] * PAIRS
    prompts = pl.DataFrame({"id": [f"p{i}" for i in range(2 * PAIRS)], "split": split})
    at = [len(one) - 1 for one in ids]
    made = MemoryLab(models, {"base": ids, "tuned": ids}, {"base": at, "tuned": at}, prompts)
    made.noise = {} if kl is None else {"tuned": {**NOISE, "kl": kl, "kl_worst": kl}}
    return made


def run(job: str, kl: float | None) -> ExperimentResult:
    return experiment_from_json({"job": job, "n_boot": 200, **JOBS[job]}).run(lab(kl))  # type: ignore[return-value]


@pytest.mark.parametrize("job", list(JOBS))
def test_a_run_keeps_the_noise_of_the_model_whose_outputs_it_compares(job: str) -> None:
    kept = run(job, 1e-9).summary["rounding"]
    assert kept == {"tuned": {**{n: NOISE[n] for n in noise.KEPT}, "kl": 1e-9, "kl_worst": 1e-9}}
    assert run(job, None).summary["rounding"] == {}  # a store of before


def test_no_share_is_told_of_an_effect_within_noise() -> None:
    told = run("mapped", 1e-9).summary["splits"]["validation"]
    size = told["kl"]["raw"]["estimate"]
    assert told["drop"] is not None
    lost = run("mapped", size).summary["splits"]["validation"]
    assert lost["drop"] is None
    assert "within rounding noise" in lost["reason"]
    assert not any(row["beaten"] for row in lost["controls"].values() if row["low"] <= size)

    effect = run("heads", 1e-9).summary["effect"]
    assert effect["shown"]
    assert run("heads", effect["kl"] / 50).summary["effect"]["shown"]
    near = run("heads", effect["kl"] / 5).summary["effect"]  # not 10 times the floor
    assert not near["shown"]
    assert near["floor"] == pytest.approx(noise.MARGIN * effect["kl"] / 5)
    blocks = run("head_map", 10 * effect["kl"]).summary["blocks"]
    assert not any(block["shown"] for block in blocks)

    assert run("rank", 1e-9).summary["projector"][0]["reason"] == ""
    assert "changes nothing" in run("rank", 100.0).summary["projector"][0]["reason"]


def test_amplitudes_within_noise_of_the_best_are_level() -> None:
    experiment = experiment_from_json({"job": "mapped", **SITE, "n_boot": 200, "alphas": [0.9, 1.0, 1.1]})
    assert experiment.run(lab(100.0)).summary["best"]["alpha"] == 1.0
