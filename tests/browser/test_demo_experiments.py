"""`studies/demo.experiments.json` asks what the live pages ask when the demo is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from app import (
    ard_view,
    behaviour_view,
    heads_view,
    patch_table,
    rank_view,
    selection,
    steering_view,
    weight_steering_view,
    z_patching_view,
)
from app.headless import read_experiments
from app.resources import Opened, read_facts
from store.reader import Store

FILE = Path(__file__).resolve().parents[2] / "studies/demo.experiments.json"


@pytest.fixture(scope="module")
def opened(demo_store: Path) -> Opened:
    store = Store(demo_store)
    return Opened(str(demo_store), store, read_facts(store))


def test_every_live_pages_first_question_is_in_the_file(opened: Opened) -> None:
    chosen = selection.defaults(opened.facts)
    wanted = [
        *patch_table.experiments(opened, chosen),
        heads_view.experiment_of(chosen),
        heads_view.map_of(chosen),
        rank_view.experiment_of(chosen),
        steering_view.experiment_of(chosen),
        *behaviour_view.wanted(chosen, [], behaviour_view.lead_of(opened)),
        weight_steering_view.experiment_of(chosen, weight_steering_view.lead(opened)),
        z_patching_view.experiment_of(opened, chosen),
        *ard_view.grid(opened, chosen),
    ]
    assert read_experiments([str(FILE)]) == wanted
