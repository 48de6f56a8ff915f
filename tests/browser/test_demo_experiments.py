"""`studies/demo.experiments.json` asks what the live pages ask when the demo is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.ard import view as ard_view
from app.behaviour import view as behaviour_view
from app.frame import selection
from app.frame.opened import Opened, read_facts
from app.heads import view as heads_view
from app.live.headless import read_experiments
from app.patching import table as patch_table
from app.rank import view as rank_view
from app.steering import view as steering_view
from app.tokenwise import view as tokenwise_view
from app.weight_steering import view as weight_steering_view
from app.z_patching import view as z_patching_view
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
        tokenwise_view.asked(opened, chosen),
    ]
    assert read_experiments([str(FILE)]) == wanted
