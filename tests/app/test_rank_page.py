"""Ranks and steering on the page: experiments from the selection, words, panels and their code, the page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import live_study
import numpy as np
import polars as pl
import pytest
from behaviour_demo import demo_lab
from drawn_panels import drawn
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.frame.opened import Opened, read_facts
from app.frame.selection import Selection, defaults, update
from app.live.jobs import JobResult
from app.live.run import run_live, save
from app.rank import panels as rank_panels
from app.rank import view as rank_view
from app.rank import words as say
from app.rank.fields import RankFields
from app.steering import spans
from app.steering import view as steering_view
from app.steering import words as tell
from engine.errors import PatchError
from engine.lab.experiment import ExperimentResult
from engine.rank.run import run
from engine.rank.spec import RankSweep
from engine.steering.spec import Group
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
WORDS = "Tom / the, apples"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = live_study.make_store(tmp_path_factory.mktemp("rank"))
    store = Store(path)
    return Opened(str(path), store, read_facts(store))


def chosen(opened: Opened, **changes: Any) -> Selection:
    usual = {"a": "base", "b": "tuned", "layer": live_study.CHANGED, "position": "decision"}
    return update(defaults(opened.facts), opened.facts, **(usual | changes))


def stored(opened: Opened, selection: Selection) -> JobResult:
    """The selected part's experiment, run and opened again."""
    view: Any = rank_view if RankFields.of(selection).part == "rank" else steering_view
    run_id, _ = run_live(opened.path, view.experiment_of(selection), "cpu")
    found = RunLog(opened.path).open(run_id)
    return JobResult(found.condition, found.summary, found.tables)


PARTS: list[dict[str, Any]] = [
    {},
    {"b": "other"},
    {"method": "Identity", "site": "mlp_out", "amplitude": "deviation", "raw_alpha": "scaled"},
    {"part": "steering", "words": WORDS},
    {"part": "steering", "words": WORDS, "b": "other", "contrast": "language:zh/en"},
    {"part": "steering", "words": WORDS, "contrast": "leading:1", "steered": "language:en"},
    {"part": "steering", "words": WORDS, "contrast": "leading:1", "steered": "language:en", "span": 3},
]


@pytest.mark.parametrize("changes", PARTS, ids=str)
def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, changes: dict[str, Any]) -> None:
    selection = chosen(opened, **changes)
    result = stored(opened, selection)
    view: Any = rank_view if RankFields.of(selection).part == "rank" else steering_view
    panels = view.run_panels(opened, result, selection)
    assert len(panels) >= 2
    for panel in panels:
        drawn(panel)
        assert panel.draw(DARK) != panel.draw(LIGHT)
        assert panel.title
        assert "None" not in panel.title + panel.caption
        assert "nan" not in (panel.title + panel.caption).lower().replace("finan", "")
        assert "bootstrap" in panel.caption or "spectr" in panel.caption or "wrong pairs" in panel.caption
        names: dict[str, Any] = {}
        exec(panel.code, names)
        assert names["table"].equals(panel.table)


def test_what_taking_directions_away_does_is_told_over_their_number(opened: Opened) -> None:
    changes = {"part": "steering", "words": WORDS, "contrast": "leading:1", "steered": "language:en"}
    several = steering_view.experiments(chosen(opened, **changes, spans="every"))
    assert [one.dims for one in several] == [*range(1, 9)]
    alone, three = (stored(opened, chosen(opened, **changes, span=k)) for k in (1, 3))
    panel = spans.spans_panel(opened, three)
    assert panel is not None
    for k, result in ((1, alone), (3, three)):
        wanted = result.table.filter(pl.col("series") == "ablate", pl.col("split") == "validation").row(
            0, named=True
        )
        mine = panel.table.filter(pl.col("k") == k)
        told = {row["series"]: row["value"] for row in mine.iter_rows(named=True)}
        assert told["shift, k taken away"] == wanted["shift"]
        assert told["side effect, k taken away"] == wanted["kl"]
        assert ("shift, random spans taken away" in told) == (k > 1)
    assert panel.title.startswith("Change of the log odds when leading directions are taken away: at k = 1 ")
    title = tell.ablation_title(
        three.table.filter(pl.col("split") == "validation"), three.condition, three.summary
    )
    assert title.startswith("Taking 3 directions away")
    assert "; random spans of 3 move it by" in title


SELECTIONS: list[dict[str, Any]] = [
    {},
    {"tried": "0.3, 0.7,1", "ranks": "1, 2,5"},
    {"target": "a", "method": "RidgeTransport", "lam_mode": "set", "lam": 3.0, "basis": "difference"},
    {"method": "ScaledProcrustes", "rank": 4, "shrink": 0.2, "clusters": 2, "basis": "difference"},
    {
        "language": "zh",
        "category": "add",
        "read_at": "decision",
        "amplitude": "deviation",
        "site": "attn_out",
    },
]
STEERINGS: list[dict[str, Any]] = [
    {},
    {"contrast": "leading:3", "words": "a, b / c"},
    {"contrast": "leading:2", "span": 4},
    {"contrast": "leading:1", "span": 64},
    {"contrast": "unembedding", "steered": "label:wrong", "neutral": "category:add"},
    {"contrast": "language:zh/en", "target": "a", "steered": "language:en"},
]


@pytest.mark.parametrize(
    ("view", "changes"),
    [*((rank_view, c) for c in SELECTIONS), *((steering_view, c) for c in STEERINGS)],
    ids=str,
)
def test_a_stored_run_leads_back_to_the_same_experiment(
    opened: Opened, view: Any, changes: dict[str, Any]
) -> None:
    spec = view.experiment_of(chosen(opened, **changes))
    elsewhere = defaults(opened.facts)
    back = update(elsewhere, opened.facts, **view.selection_of(spec.to_json(), elsewhere))
    assert view.experiment_of(back) == spec
    assert RankFields.of(back).part == ("rank" if view is rank_view else "steering")


def test_maps_without_ranks_swap_leading_differences(opened: Opened) -> None:
    assert rank_view.experiment_of(chosen(opened)).basis == "map"
    assert rank_view.experiment_of(chosen(opened, method="MeanShift")).basis == "difference"
    assert rank_view.bases(chosen(opened, clusters=2)) == ("difference",)


def test_links_that_cannot_be_read_say_so() -> None:
    assert rank_view.ranks_of(" 8,1, 2") == (1, 2, 8)
    assert rank_view.ranks_of("") == ()
    assert len(rank_view.ranks_of(",".join(map(str, range(1, 65))))) == 64
    with pytest.raises(PatchError, match=r"too many ranks k.*at most 64.*Given: 65"):
        rank_view.ranks_of(",".join(map(str, range(1, 66))))
    for nonsense in ("0", "1,,2", "k", "-3"):
        with pytest.raises(PatchError, match="whole numbers from 1"):
            rank_view.ranks_of(nonsense)
    assert steering_view.words_of("Yes, 是 / No") == (("Yes", "是"), ("No",))
    assert steering_view.group_of("label:wrong") == Group(label="wrong")
    with pytest.raises(PatchError, match="words of the shift"):
        steering_view.words_of("Yes")
    with pytest.raises(PatchError, match="group of prompts"):
        steering_view.group_of("length:3")
    with pytest.raises(PatchError, match="direction that can't be read"):
        steering_view.direction_of("sideways")


@pytest.fixture(scope="module")
def demo() -> JobResult:
    """The demo's first planted site, swapped as it is, on prompts of both splits."""
    lab = demo_lab()
    pairs = lab.prompts["pair_id"].unique(maintain_order=True).to_list()
    split = pl.Series(
        "split", ["train" if pairs.index(p) % 3 else "validation" for p in lab.prompts["pair_id"]]
    )
    lab = dataclasses.replace(lab, prompts=lab.prompts.with_columns(split))
    spec = RankSweep(
        target="tuned",
        source="base",
        component="attn_out",
        layer=4,
        position="decision",
        map={"method": "Identity"},  # type: ignore[arg-type]
        basis="difference",
        alphas=(1.0,),
        n_boot=300,
    )
    result = run(spec, lab)
    return JobResult(spec.to_json(), result.summary, result.tables)


def test_the_demo_s_planted_rank_is_found(demo: JobResult) -> None:
    found = demo.summary["projector"][0]
    assert found["smallest"] <= 4
    at = say.cell(demo.table, "projector", 4, 1.0)
    # The adapter has rank 4; what is left are float32 roundings of both models.
    assert at["value"] == pytest.approx(100, abs=0.01)
    chance = say.cell(demo.table, "random", 4, 1.0)
    assert chance["high"] < 10
    sigma = demo.tables["spectrum"]["value"].to_numpy()
    assert sigma[4] < 1e-3 * sigma[3]
    title = say.projector_title(demo.table, demo.summary, 1.0)
    size = demo.summary["basis_size"]
    assert title.startswith(f"{found['smallest']} directions of {size} carry the effect")
    title = say.spectrum_title(demo.tables["spectrum"], demo.summary["spectra"]["difference"], "it", "chance")
    assert "is behind direction 4" in title


def sweep(best: dict[str, Any], smallest: dict[str, Any]) -> tuple[pl.DataFrame, dict[str, Any]]:
    """A table in which rank 1 at α = 2 is the best on validation and rank 3 at α = 1 was chosen on train."""
    values = {(1, 1.0): 40.0, (1, 2.0): 90.0, (3, 1.0): 60.0, (3, 2.0): 30.0}
    rows = [
        {"kind": "truncated", "split": split, "k": k, "alpha": alpha, "value": value}
        for split in ("train", "validation")
        for (k, alpha), value in values.items()
    ]
    table = pl.DataFrame(rows).with_columns(low=pl.col("value") - 5, high=pl.col("value") + 5)
    found = {"best": best, "smallest": smallest, "reason": ""}
    return table, {"truncated": found, "reference": "raw", "full_rank": 8}


def test_titles_tell_what_train_chose_and_validation_measured() -> None:
    table, summary = sweep({"k": 3, "alpha": 1.0}, {"k": 1, "alpha": 1.0})
    title = say.map_title(table, summary)
    assert title.startswith("Rank 3 at α = 1, the best on train, disturbs 60 % (55 to 65)")
    assert "level" not in title
    assert say.path_title(table, summary).startswith("Rank 1 of 8 is enough: drop 40 % (35 to 45) at α = 1")
    table, summary = sweep({"k": 3, "alpha": 1.0}, {"k": 3, "alpha": 1.0})
    assert say.path_title(table, summary).startswith(
        "No smaller rank is shown to come up to rank 3 of 8: drop"
    )
    table, summary = sweep({"k": 3, "alpha": 1.0}, {"k": 1, "alpha": 1.0})
    wide = pl.when(pl.col("k") == 1).then(pl.col("value") - 45).otherwise("low")
    title = say.path_title(table.with_columns(low=wide), summary)
    assert title == "No smaller rank is shown to come up to rank 3 of 8: drop 60 % (55 to 65) at α = 1"
    below = [(-pl.col(c)).alias(d) for c, d in (("value", "value"), ("low", "high"), ("high", "low"))]
    title = say.path_title(table.with_columns(below), summary)
    assert (
        title == "No rank lowers KL below the moment-matched patch: the best on train, 3, −60 % (−65 to −55)"
    )
    summary["truncated"] |= {"reason": "the raw patch changes nothing", "smallest": None}
    for title in (say.map_title(table, summary), say.path_title(table, summary)):
        assert title == "There is no share to tell: the raw patch changes nothing"


def equal(difference: tuple[float, float], most: float) -> dict[str, Any]:
    def row(shift: float, low: float, high: float) -> dict[str, float]:
        return {"shift": shift, "low": low, "high": high}

    best = {"direction": row(1.0, 0.8, 1.2), "random": row(0.2, 0.1, 0.3), "draws": 5, "most": most}
    return {"equal": {"level": 0.01, "best": {**best, "difference": row(0.8, *difference), "least": -0.2}}}


def test_steering_is_ranked_only_where_it_is_told_apart() -> None:
    assert "further than all 5 random directions" in tell.equal_title(equal((0.6, 1.0), 0.4))
    assert "is not told from random directions" in tell.equal_title(equal((0.6, 1.0), 1.5))
    assert "is not told from random directions" in tell.equal_title(equal((-0.1, 1.0), 0.4))
    within = tell.equal_title(equal((-1.0, -0.1), 2.0))
    assert within.endswith(
        "v is not told from random directions; +1.00 nats (0.80 to 1.20), theirs −0.20 to +2.00"
    )
    below = equal((-1.0, -0.1), 2.0)
    below["equal"]["best"]["least"] = 1.1
    assert "moves the words less than all 5 random directions" in tell.equal_title(below)
    further = equal((0.6, 1.0), 0.4)
    further["equal"]["best"]["limit"] = 1.5  # of five draws the largest is no limit for a sixth
    assert "is not told from random directions" in tell.equal_title(further)
    nothing = equal((0.6, 1.0), 0.4)
    nothing["equal"]["best"]["difference"] = None
    assert "No random direction reaches" in tell.equal_title(nothing)


def test_a_shift_is_told_beside_random_directions() -> None:
    row = {"series": "direction", "alpha": 0.4, "shift": 1.0, "shift_low": 0.8, "shift_high": 1.2}
    table = pl.DataFrame([row | {"kl": 0.01, "kl_low": 0.0, "kl_high": 0.02}])
    condition = {"wanted": ["yes"], "against": ["no"], "budget": 0.1}

    def title(summary: dict[str, Any]) -> str:
        return tell.shift_title(table, condition, {"chosen": 0.4} | summary)

    raises = "Adding v at α = 0.4 raises log p(yes) − log p(no) by +1.00 nats (0.80 to 1.20)"
    assert title(equal((0.6, 1.0), 0.4)) == (
        f"{raises}; further than all 5 random directions of the same side effect"
    )
    assert title(equal((0.6, 1.0), 1.5)) == (
        f"{raises}; not told from 5 random directions of the same side effect: −0.20 to +1.50"
    )
    below = equal((-1.0, -0.1), 2.0)
    below["equal"]["best"]["least"] = 1.1
    assert title(below).endswith("less far than all 5 random directions of the same side effect")
    nothing = equal((0.6, 1.0), 0.4)
    nothing["equal"]["best"]["difference"] = None
    assert title(nothing) == f"{raises}; no random direction reaches its side effect"
    assert title({"equal": {"level": None, "best": None}}) == raises


@pytest.mark.parametrize("part", ["rank", "steering"])
def test_a_stored_result_opens_without_a_model(
    opened: Opened, own_store: Path, open_app: Open, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    result = stored(opened, chosen(opened, part=part, words=WORDS))
    store, view = Store(own_store), rank_view if part == "rank" else steering_view
    facts = read_facts(store)
    selection = update(defaults(facts), facts, part=part, words=WORDS)
    save(str(own_store), store.fingerprint, view.experiment_of(selection), as_result(result))
    monkeypatch.setattr("engine.models.loading.load", lambda *_: pytest.fail("no model is needed"))
    app = open_app(own_store, "rank", part=part, words=WORDS)
    said = text(app)
    assert any("Run before" in caption.value for caption in app.caption)
    for panel in view.run_panels(opened, result, selection):
        assert panel.title[:12] in said


@pytest.mark.parametrize("part", ["rank", "steering"])
def test_the_page_offers_a_run_and_explains_it(planted: Path, open_app: Open, part: str) -> None:
    app = open_app(planted, "rank", part=part)
    assert "has not been" in text(app)
    assert "Run" in [b.label for b in app.button]


def test_words_that_cannot_be_read_are_explained_on_the_page(planted: Path, open_app: Open) -> None:
    app = open_app(planted, "rank", part="steering", words="Yes")
    assert "The words of the shift can't be read" in text(app)


def text(app: AppTest) -> str:
    """Everything a reader can read."""
    assert not app.exception
    said = "\n".join([*(m.value for m in app.markdown), *(c.value for c in app.caption)])
    assert "Something went wrong" not in said
    return said


def as_result(result: JobResult) -> ExperimentResult:
    return ExperimentResult(result.summary, result.tables)


def test_other_groups_and_directions_are_offered_by_what_the_prompts_have(opened: Opened) -> None:
    offered = steering_view.groups(opened)
    assert offered[""] == "all prompts"
    assert {"language:en", "language:zh", "category:add"} <= set(offered)
    directions = steering_view.directions(opened, chosen(opened))
    assert directions["language:zh/en"] == "language zh − en"
    assert directions[""] == "mean of base − tuned"


def test_chart_values_are_the_table_s(demo: JobResult) -> None:
    opened = Opened("runs/none", None, None)  # type: ignore[arg-type]
    panel = rank_panels.projector_panel(opened, demo, 1.0)
    drawn = [
        row["value"]
        for part in panel.draw(LIGHT).spec()["layer"]
        if part["mark"]["type"] == "line"
        for row in part["data"]["values"]
    ]
    np.testing.assert_allclose(sorted(drawn), sorted(panel.table["value"].to_list()))
