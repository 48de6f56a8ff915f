"""`studies/demo.experiments.json` asks what the live pages ask when the demo is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.ard import view as ard_view
from app.behaviour import view as behaviour_view
from app.diff_mining import view as diff_mining_view
from app.difference_lens import view as difference_lens_view
from app.frame import selection
from app.frame.opened import Opened, read_facts
from app.heads import view as heads_view
from app.live.headless import read_experiments
from app.patch_map import view as patch_map_view
from app.patching import table as patch_table
from app.rank import view as rank_view
from app.steering import view as steering_view
from app.tokenwise import view as tokenwise_view
from app.weight_steering import view as weight_steering_view
from app.z_patching import view as z_patching_view
from store.reader import Store

FIRST_PROMPT = "combine-04-en"
"""The demo's first prompt of validation."""
ITS_PAIR, DISPUTED = "combine-04-zh", "agree-12-en"
"""The same problem in Chinese; a wrong sum that is asserted."""
FILE = Path(__file__).resolve().parents[2] / "studies/demo.experiments.json"


@pytest.fixture(scope="module")
def opened(demo_store: Path) -> Opened:
    store = Store(demo_store)
    return Opened(str(demo_store), store, read_facts(store))


def test_every_live_pages_first_question_is_in_the_file(opened: Opened) -> None:
    chosen = selection.defaults(opened.facts)
    listed = read_experiments([str(FILE)])
    # the store under test has fewer prompts than the demo, so another one comes first
    token_by_token = tokenwise_view.asked(opened, chosen).model_copy(update={"prompt": FIRST_PROMPT})
    two_languages = patch_map_view.asked(opened, chosen).model_copy(
        update={"source": chosen.b, "prompt": FIRST_PROMPT, "donor": ITS_PAIR}
    )
    disputed = {"source": chosen.a, "prompt": DISPUTED, "donor": DISPUTED}
    two_models = two_languages.model_copy(update=disputed)
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
        token_by_token,
        two_languages,
        two_models,
        difference_lens_view.asked(opened, chosen),
        difference_lens_view.asked(opened, selection.changed(chosen, read_over="texts")),
        diff_mining_view.asked(opened, chosen),
    ]
    assert listed == wanted
