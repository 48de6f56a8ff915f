"""Live patches on the page: selection to condition and back, words, tables and the profile over blocks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from drawn_panels import drawn
from live_results import live_result

from app.frame import words
from app.frame.selection import Facts, Selection, changed, defaults, update
from app.patching import literal
from app.patching import replacement as patch_view
from app.patching import view as patch_page
from app.patching import words as patch_words
from store.runs import RunLog

FACTS = Facts(
    models=("base", "tuned", "full"),
    n_layers={"base": 5, "tuned": 5, "full": 5},
    head_dim={"base": 6, "tuned": 6, "full": 6},
    sites=("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out"),
    positions=("last_content", "decision", "mean"),
    languages=("en", "zh"),
    categories=("add",),
    splits=("train", "validation"),
)


CHANGES: list[dict[str, Any]] = [
    {},
    {"layer": 3, "site": "head_z", "position": "decision", "kind": "literal", "alpha": 0.35},
    {"target": "a", "report": "train", "language": "zh", "read_at": "decision", "amplitude": "deviation"},
    {"alphas": "curve", "kind": "mean"},
    {"a": "full", "b": "base", "target": "b"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_stored_run_leads_back_to_the_same_condition(changes: dict[str, Any]) -> None:
    selection = update(defaults(FACTS), FACTS, **changes)
    condition = patch_view.condition_of(selection)
    elsewhere = defaults(FACTS)
    back = update(elsewhere, FACTS, **patch_view.selection_of(condition.to_json(), elsewhere))
    assert patch_view.condition_of(back) == condition


def test_the_direction_says_which_model_runs() -> None:
    forward = patch_view.condition_of(defaults(FACTS))
    assert (forward.target, forward.source) == ("tuned", "base")
    backward = patch_view.condition_of(update(defaults(FACTS), FACTS, target="a"))
    assert (backward.target, backward.source) == ("base", "tuned")


def test_reported_prompts_are_the_validation_split_unless_chosen() -> None:
    assert patch_view.condition_of(defaults(FACTS)).split == "validation"


def test_the_title_says_what_moved_and_by_how_much() -> None:
    condition = patch_view.condition_of(defaults(FACTS))
    title = patch_view.result_title(live_result(condition), 1.0)
    start = "base's moment-matched activation at resid_post of block 2 moves tuned's next token by 0."
    assert title.startswith(start)
    assert title.endswith("the most likely token changes in 25 % of 12 prompts")


def test_a_patch_within_rounding_changes_nothing() -> None:
    condition = patch_view.condition_of(defaults(FACTS))
    title = patch_view.result_title(live_result(condition, kl=1e-8), 1.0)
    assert "changes nothing in tuned: KL is 0 within rounding" in title


def test_a_coarse_limit_of_a_half_precision_model_is_told() -> None:
    result = live_result(patch_view.condition_of(defaults(FACTS)), kl=0.01)
    result.summary["self_check"]["limit"] = 0.02
    title = patch_view.result_title(result, 1.0)
    assert "is not told from rounding in tuned: 0.0" in title
    assert title.endswith("limit 0.02")
    assert "changes nothing" not in title


def test_captions_name_what_alpha_scales_and_which_prompts_are_meant() -> None:
    chosen = update(defaults(FACTS), FACTS, amplitude="deviation", alphas="curve", language="zh", alpha=0.35)
    condition = patch_view.condition_of(chosen)
    result = live_result(condition)
    caption = patch_view.histogram_panel(result, 0.35, "").caption
    # 0.35 was not run: the nearest amplitude is shown, and said
    assert "α = 0.4 times the replacement's deviation from tuned's mean over the train split" in caption
    assert "read there" in caption
    assert "split: validation, language zh" in caption
    assert ", α = 0.4, moves" in patch_view.result_title(result, 0.35)
    ends = {"kl": [0.1, 0.2], "low": [0.0, 0.1], "high": [0.2, 0.3]}
    runs = pl.DataFrame({"layer": [0, 1], **ends, "noise": [0.0, 0.0]})
    panel = patch_view.layer_panel(runs, condition, 0.35, "")
    assert panel is not None
    assert "α = 0.4 times" in panel.caption
    whole = patch_view.condition_of(update(chosen, FACTS, amplitude="vector", read_at="decision"))
    caption = patch_view.histogram_panel(live_result(whole), 1.0, "").caption
    assert "α = 1 times the whole replacement vector" in caption
    assert "read at the decision token" in caption


def test_the_own_mean_is_called_so() -> None:
    condition = patch_view.condition_of(update(defaults(FACTS), FACTS, kind="mean"))
    assert patch_view.result_title(live_result(condition), 1.0).startswith("Its own mean at resid_post")


def test_the_histogram_counts_every_prompt_even_zeros() -> None:
    bins = patch_view.kl_histogram(np.array([0.0, -1e-12, 1e-9, 1e-3, 0.5]))
    assert bins["count"].sum() == 5
    assert (bins["low"] > 0).all()
    assert patch_view.kl_histogram(np.zeros(4))["count"].sum() == 4


def test_an_alpha_curve_is_its_own_panel() -> None:
    one = patch_view.condition_of(defaults(FACTS))
    assert patch_view.alpha_panel(live_result(one), 1.0, "") is None
    many = patch_view.condition_of(update(defaults(FACTS), FACTS, alphas="curve"))
    panel = patch_view.alpha_panel(live_result(many), 1.0, "")
    assert panel is not None
    assert panel.title.startswith("From α = 0 to 2 the effect goes from ")
    drawn(panel)


def test_the_profile_takes_runs_that_differ_by_the_layer_alone() -> None:
    start = defaults(FACTS)
    stored = []
    for layer in range(4):
        condition = patch_view.condition_of(start, layer)
        stored.append((condition.to_json(), live_result(condition, kl=0.1 * layer).summary))
    other = patch_view.condition_of(changed(start, kind="literal"), 4)
    stored.append((other.to_json(), live_result(other, kl=9.0).summary))
    wanted = patch_view.condition_of(start)
    profile = patch_view.profile(stored, wanted, 1.0)
    assert profile["layer"].to_list() == [0, 1, 2, 3]
    panel = patch_view.layer_panel(profile, wanted, 1.0, "")
    assert panel is not None
    assert panel.title.startswith("The patch matters most at block 3")
    assert panel.title.endswith("it changes nothing at block 0")
    drawn(panel)


def test_titles_do_not_rank_what_intervals_do_not_separate() -> None:
    wanted = patch_view.condition_of(defaults(FACTS))
    rows = {"kl": [0.0, 0.4, 0.92, 0.93], "low": [0.0, 0.3, 0.6, 0.6], "high": [0.0, 0.5, 1.3, 1.3]}
    profile = pl.DataFrame({"layer": [3, 4, 5, 6], **rows}).with_columns(noise=0.0)
    panel = patch_view.layer_panel(profile, wanted, 1.0, "")
    assert panel is not None
    assert panel.title.startswith("The patch matters most at blocks 5-6: 0.93 nats")
    assert "at block 6, the others level within the intervals" in panel.title
    apart = profile.with_columns(high=pl.Series([0.0, 0.5, 0.95, 1.3]), low=pl.Series([0.0, 0.3, 0.6, 0.96]))
    panel = patch_view.layer_panel(apart, wanted, 1.0, "")
    assert panel is not None
    assert panel.title.startswith("The patch matters most at block 6: 0.93 nats")
    curve = [
        {"alpha": a, "kl": k, "low": k - w, "high": k + w, "median": k, "n": 8, "n_groups": 8}
        for a, k, w in ((0.0, 12.0, 1.0), (1.0, 0.9, 0.4), (2.0, 0.7, 0.4))
    ]
    many = patch_view.condition_of(update(defaults(FACTS), FACTS, alphas="curve"))
    made = live_result(many)
    made = dataclasses.replace(made, summary=made.summary | {"curve": curve})
    alphas = patch_view.alpha_panel(made, 1.0, "")
    assert alphas is not None
    assert alphas.title == (
        "From α = 0 to 2 the effect goes from 12 nats (11 to 13) to 0.7 nats (0.3 to 1.1)"
    )
    rows = pl.DataFrame(curve).with_columns(kl=pl.Series([12.0, 0.5, 0.7]))
    assert patch_words.alpha_title(rows).endswith(" nats (0.3 to 1.1); between 0.5 and 0.5 on the way")


def test_no_block_is_named_where_all_are_level() -> None:
    level = pl.DataFrame({"layer": [3, 4], "kl": [0.4, 0.5], "low": [0.2, 0.2], "high": [0.6, 0.7]})
    wanted = patch_view.condition_of(defaults(FACTS))
    panel = patch_view.layer_panel(level.with_columns(noise=0.0), wanted, 1.0, "")
    assert panel is not None
    assert panel.title == (
        "No block is told apart by what the patch does; 0.5 nats (0.2 to 0.7) at block 4, the largest"
    )


def test_the_literal_effect_stands_beside_the_moment_matched_one(tmp_path: Path) -> None:
    wanted = patch_view.condition_of(defaults(FACTS))
    twin = patch_view.condition_of(update(defaults(FACTS), FACTS, kind="literal"))
    other = patch_view.condition_of(update(defaults(FACTS), FACTS, kind="literal", layer=3))
    opened: Any = SimpleNamespace(path=str(tmp_path), store=SimpleNamespace(fingerprint="f"))
    matched, found = live_result(wanted), live_result(twin, kl=0.162)
    log = RunLog(tmp_path)
    for condition in (other, twin):
        assert literal.beside(opened, matched.condition, 1.0) == ""
        log.append(condition.to_json(), found.summary, found.table, content_hash=condition.content_hash("f"))
    row = patch_view.point(found, 1.0)
    said = f"; the literal activation by {words.nats_span(row)}"
    assert literal.beside(opened, matched.condition, 1.0) == said
    assert literal.beside(opened, found.condition, 1.0) == "", "it is the literal one itself"
    title = patch_view.histogram_panel(matched, 1.0, "", said).title
    assert f"){said}; the most likely token changes" in title


def test_a_profile_of_zeros_is_said_to_be_nothing() -> None:
    zeros = pl.DataFrame(
        {"layer": [0, 1], "kl": [0.0, 1e-8], "low": [0.0, 0.0], "high": [0.0, 1e-8]}
    ).with_columns(noise=0.0)
    panel = patch_view.layer_panel(zeros, patch_view.condition_of(defaults(FACTS)), 1.0, "")
    assert panel is not None
    assert panel.title == "The patch changes nothing at any of blocks 0-1: KL is 0 within rounding"


def test_the_token_table_shows_white_space_and_the_most_moved_prompt_first() -> None:
    condition = patch_view.condition_of(defaults(FACTS))
    table = patch_view.token_table(live_result(condition).table, 1.0)
    assert table["kl"].is_sorted(descending=True)
    assert table["before"][0] == "␣yes 75%  ⏎ 20%"


def test_averages_cannot_be_patched() -> None:
    facts = dataclasses.replace(FACTS, positions=("pooled", "decision", "subject"), averages=("pooled",))
    assert facts.tokens == ("decision", "subject")


def test_a_page_before_its_run_says_what_run_will_do() -> None:
    title, text = patch_view.not_run(
        patch_view.condition_of(Selection(a="base", b="tuned")), {"device": "cpu"}
    )
    assert title == "Not run yet"
    assert "all prompts" in text
    assert "cpu" in text


def test_the_rank_slider_has_the_width_and_the_rank_of_a_link() -> None:
    start = defaults(FACTS)
    assert patch_page.ranks_with(128, start)[-3:] == (96, 128, 0)
    assert patch_page.ranks_with(16, changed(start, rank=15)) == (*range(1, 9), 12, 15, 16, 0)
