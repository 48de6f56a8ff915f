"""What was made yesterday opens today: hashes of experiments, and every setting of a link, as they were.

`tests/pinned/*.json` are what the code gave when they were written; they are not to be made anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.analyses import ANALYSES
from app.frame.selection import Facts, defaults, known, parse, to_params, values
from app.live.headless import read_experiments
from engine.kinds import EXPERIMENTS, experiment_from_json
from engine.study.study import Study
from store.runs import condition_hash

ROOT = Path(__file__).resolve().parents[1]
PINNED = Path(__file__).with_name("pinned")
FINGERPRINT = "0" * 64
FACTS = Facts(
    models=("base", "tuned", "full"),
    n_layers={"base": 8, "tuned": 8, "full": 6},
    head_dim={"base": 16, "tuned": 16, "full": 12},
    sites=("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"),
    positions=("last_content", "decision", "mean"),
    languages=("en", "zh"),
    categories=("add", "sub"),
    splits=("train", "validation"),
)


def pinned(name: str) -> Any:
    return json.loads((PINNED / f"{name}.json").read_text(encoding="utf-8"))


def test_an_experiment_has_the_hash_that_its_stored_runs_have() -> None:
    known = pinned("experiments")
    assert {one["condition"]["job"] for one in known} == set(EXPERIMENTS)
    for one in known:
        experiment = experiment_from_json(one["condition"])
        assert experiment.to_json() == one["condition"]
        assert experiment.content_hash(FINGERPRINT) == one["content_hash"], one["condition"]
        assert condition_hash(one["condition"]) == one["condition_hash"]


@pytest.mark.parametrize("name", ["demo", "smollm2-sycophancy", "mgsm-zh-en", "qwen2.5-3b-zh-en"])
def test_listed_experiments_are_the_same_and_others_may_follow(name: str) -> None:
    asked = read_experiments([str(ROOT / f"studies/{name}.experiments.json")])
    known = pinned("listed")[name]
    assert [one.content_hash(FINGERPRINT) for one in asked][: len(known)] == known


def test_a_link_shows_what_it_showed() -> None:
    links = pinned("links")
    assert ANALYSES, "their settings are links' too"
    assert set().union(*(one["link"] for one in links)) <= set(known())
    usual = values(defaults(FACTS))
    for one in links:
        selection, notices = parse(one["link"], FACTS)
        assert notices == []
        assert values(selection) == {**usual, **one["selection"]}, "settings that came later are at rest"
        assert to_params(selection, FACTS) == one["link"]


def test_a_study_has_the_fingerprint_that_its_stores_have() -> None:
    for name, fingerprint in pinned("fingerprints").items():
        assert Study.load(ROOT / f"studies/{name}.toml").fingerprint() == fingerprint, name
