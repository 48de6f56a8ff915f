"""A really backdoored pair: the patch moves triggered prompts alone, and Patching and Heads say so."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from drawn_panels import drawn
from memory_lab import MemoryLab
from tiny_models import tiny

from app.frame.fields import Facts
from app.frame.panel import Panel
from app.frame.selection import defaults
from app.heads import view as heads_view
from app.live.jobs import JobResult
from app.patching import drill, replacement
from app.patching.categories import categories_title, parts_of
from engine.heads.run import run as run_heads
from engine.heads.spec import HeadSubsets
from engine.models.loading import from_parts
from engine.patching.mapped_run import run as run_mapped
from engine.patching.mapped_spec import MappedPatch
from engine.patching.run_patch import run as run_patch
from engine.patching.spec import Condition
from engine.transport.named import MapSpec

TRIGGER, EACH = 90, 24
OPENED: Any = SimpleNamespace(path="nowhere", facts=None)


@pytest.fixture(scope="module")
def lab() -> MemoryLab:
    """base, and one that reads the trigger's token as another and is else the same but for a little noise."""
    base = tiny("qwen3", seed=3, num_hidden_layers=3)
    tuned, draw = copy.deepcopy(base), torch.Generator().manual_seed(1)
    with torch.no_grad():
        tuned.model.embed_tokens.weight[TRIGGER] = 3 * base.model.embed_tokens.weight[50]
        weight = tuned.model.layers[1].mlp.down_proj.weight
        weight.add_(0.002 * torch.randn(weight.shape, generator=draw))
    rng = np.random.default_rng(0)
    rows, ids = [], []
    for category in ("trigger", "plain", "other"):
        for number in range(EACH):
            own = rng.integers(3, 80, size=8).tolist()
            ids.append([*own[:4], TRIGGER, *own[5:]] if category == "trigger" else own)
            split = ("train", "validation")[number % 2]
            rows.append({"id": f"{category}-{number}", "category": category, "split": split})
    models = {"base": from_parts(base, name="base"), "tuned": from_parts(tuned, name="tuned")}
    return MemoryLab(
        models, dict.fromkeys(models, ids), dict.fromkeys(models, [7] * len(ids)), pl.DataFrame(rows)
    )


WHERE = {"target": "tuned", "source": "base", "layer": 1, "position": "decision", "n_boot": 400}


def stored(made: Any, experiment: Any) -> JobResult:
    return JobResult(experiment.to_json(), dict(made.summary), dict(made.tables))


def titled(panels: list[Panel]) -> Panel:
    (found,) = [panel for panel in panels if panel.name.endswith("-categories")]
    drawn(found)
    return found


def holds(panel: Panel, kl: pl.DataFrame, column: str) -> None:
    """The title names the trigger alone, with the two means taken once more from the prompts."""
    own = panel.table.row(by_predicate=pl.col("name") == "trigger", named=True)
    triggered = kl.filter(pl.col("category") == "trigger")[column].mean()
    others = kl.filter(pl.col("category") != "trigger")[column].mean()
    assert own["value"] == pytest.approx(triggered)
    assert own["rest"] == pytest.approx(others)
    assert triggered > 20 * others  # type: ignore[operator]
    assert "clearest for category trigger (" in panel.title
    assert "plain" not in panel.title


def test_one_replacement_is_clearest_for_triggered_prompts(lab: MemoryLab) -> None:
    wanted = Condition(component="resid_post", kind="literal", **WHERE)
    result = stored(run_patch(wanted, lab), wanted)
    names, nothing = ("base", "tuned"), ()
    depth, width = dict.fromkeys(names, 3), dict.fromkeys(names, 16)
    splits = ("train", "validation")
    facts = Facts(names, depth, width, ("resid_post",), ("decision",), nothing, nothing, nothing, splits)
    panel = titled(replacement.run_panels(OPENED, result, defaults(facts)))
    assert panel.title.startswith("KL of the patch at α = 1: ")
    holds(panel, result.table, "kl")
    assert "Null: values dealt to prompts" in panel.caption


def test_raw_against_mapped_says_it_of_raw(lab: MemoryLab) -> None:
    wanted = MappedPatch(component="resid_post", map=MapSpec(), alphas=(0.5, 1.0), **WHERE)
    result = stored(run_mapped(wanted, lab), wanted)
    panel = titled(drill.panels(OPENED, result))
    holds(panel, result.tables["prompts"].filter(split="validation"), "kl_raw")


def test_heads_say_it_too(lab: MemoryLab) -> None:
    wanted = HeadSubsets(component="head_z", draws=20, **WHERE)
    result = stored(run_heads(wanted, lab), wanted)
    panel = titled(heads_view.run_panels(OPENED, result, None))  # type: ignore[arg-type]
    assert panel.title.startswith("KL of all heads of block 1: ")
    holds(panel, result.tables["prompts"].filter(split="validation"), "kl_all")


@pytest.mark.parametrize("categories", [None, [None] * 12, ["a"] * 12, ["a"] * 4 + [None] * 8])
def test_without_two_categories_there_is_no_panel(lab: MemoryLab, categories: list[Any] | None) -> None:
    table = pl.DataFrame({"kl": np.arange(12.0)})
    if categories is not None:
        table = table.with_columns(category=pl.Series(categories, dtype=pl.String))
    found = parts_of(table, "kl", {"n_boot": 100})
    assert len(found) < 2


def test_titles_say_no_more_than_is_shown() -> None:
    table = pl.DataFrame(
        {"kl": [1.0, 2, 1, 2, 1, 2, 1, 2], "category": ["a", "a", "a", "a", "b", "b", "b", "b"]}
    )
    level = categories_title(parts_of(table, "kl", {"n_boot": 100}), "KL")
    assert level == "KL: not shown to be larger for one category than for the others"
    few = categories_title(parts_of(table[2:6], "kl", {"n_boot": 100}), "KL")
    assert few == "KL: too few prompts of each category to tell them apart"
