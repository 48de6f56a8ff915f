"""Subspace scores on the page: tables and words against the numbers, panels and their code, every state."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from drawn_panels import drawn
from planted_store import build_store
from streamlit.testing.v1 import AppTest
from subspace_inputs import Arrays, haar
from subspace_runs import DELTAS, SMALL, SyntheticLab, result, store_run

from app.analyses import kind_of
from app.charts.log_points import log_domain, log_points
from app.charts.palette import DARK, LIGHT
from app.charts.spec import log_ticks
from app.charts.tall import tall_grid
from app.frame import controls, export
from app.frame import parts as components
from app.frame.opened import Opened, read_facts
from app.frame.panel import parted
from app.frame.selection import Selection, defaults, update
from app.live import headless
from app.live.jobs import JobResult
from app.live.subspaces import has_subspaces
from app.subspaces import panels, view
from app.subspaces import parts as subspaces_parts
from app.subspaces import tables as q
from app.subspaces import words as say
from app.subspaces.fields import SubspaceFields
from engine.errors import AnalysisError
from engine.kinds import experiment_from_json
from engine.study.subspaces import SubspacesSpec
from engine.subspaces.numbers import conclude
from engine.subspaces.own_candidates import OwnFile
from engine.subspaces.spec import SubspaceScores
from engine.subspaces.tables import scores_of
from store.reader import Store
from store.runs import RunLog

Open = Callable[..., AppTest]
PLACES: list[dict[str, Any]] = [
    {},
    {"delta": DELTAS[1], "dims": 3, "clean": 2, "candidate": "mlp_write", "measure": "z_act"},
    {"dims": 1, "clean": 0, "averaged": "2", "candidate": "qk_x_chars_clusters", "measure": "cosine"},
    {"dims": 8, "averaged": "0,1,2,3,4", "candidate": "global_read", "measure": "r_specific"},
]


def opening(path: Path) -> Opened:
    found = Store(path)
    return Opened(str(path), found, read_facts(found))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A store with one stored run, at the page's own broad rank."""
    path = build_store(tmp_path_factory.mktemp("scored") / "store", subspaces=True)
    store_run(path, view.experiment_of(opening(path), defaults(opening(path).facts)))
    return opening(path)


@pytest.fixture
def unscored(tmp_path: Path) -> Path:
    return build_store(tmp_path / "store", subspaces=True)


def chosen(opened: Opened, **changes: Any) -> Selection:
    return update(defaults(opened.facts), opened.facts, **changes)


def run_of(opened: Opened) -> JobResult:
    found = view.stored(opened, view.experiment_of(opened, chosen(opened)), "")
    assert found is not None
    return found


def shown(opened: Opened, **changes: Any) -> panels.Shown:
    return view.shown_of(opened, run_of(opened), chosen(opened, **changes))


def planted_run(strength: float = 1.0, seed: int = 3) -> JobResult:
    """A run in which change and label lie where W_down writes most (or, at 0, in random directions)."""
    arrays, rng = Arrays(seed=seed), np.random.default_rng(seed)
    for layer in arrays.changed:
        inside = np.linalg.svd(arrays.held["down_proj"][layer])[0][:, :4]
        basis = inside if strength else haar(rng, arrays.d, 4, 1)[0]
        for name, width in (("o_proj", 24), ("down_proj", arrays.d_ff)):
            arrays.delta[layer][name] = (basis @ rng.normal(size=(4, 3)), rng.normal(size=(3, width)))
    for layer in range(arrays.layers):
        inside = np.linalg.svd(arrays.held["down_proj"][layer])[0][:, :4]
        basis = inside if strength else haar(rng, arrays.d, 4, 1)[0]
        for name in ("label", "label_fit"):
            rows = len(arrays.held[name][layer])
            arrays.held[name][layer] = rng.normal(size=(rows, 4)) @ basis.T + 0.05 * rng.normal(
                size=(rows, arrays.d)
            )
    lab = SyntheticLab(arrays.inputs(), [replace(arrays.target(), name="tuned")])
    wanted = SubspaceScores(ks=(4,), cleans=(2,), broad=12)
    made = wanted.run(lab)  # type: ignore[arg-type]
    return JobResult(wanted.to_json(), made.summary, made.tables)


# Tables, against the stored rows


@pytest.mark.parametrize("changes", PLACES, ids=str)
def test_tables_hold_what_the_run_holds(opened: Opened, changes: dict[str, Any]) -> None:
    """Means over the averaged blocks, taken from the stored table by hand."""
    at = shown(opened, **changes)
    blocks = [1, 2, 3] if at.layers is None else list(at.layers)
    rows = (
        run_of(opened)
        .tables["table"]
        .filter((pl.col("delta") == at.delta) & (pl.col("k") == at.k) & pl.col("layer").is_in(blocks))
    )
    expected = {
        name: {one: group[name].drop_nans().mean() for (one,), group in rows.group_by("candidate")}
        for name in ("r_act", "r_combined", "r_o_proj", "cosine", "rank")
    }
    table = q.ranked(at.scores, at.changes)
    assert set(table["candidate"]) == set(rows["candidate"])
    for row in table.iter_rows(named=True):
        for name, values in expected.items():
            mean = values[row["candidate"]]
            assert row[name] == (None if mean is None else pytest.approx(mean, rel=1e-12)), name
        if row["joint"] is not None:
            assert row["joint"] == pytest.approx(np.sqrt(row["r_act"] * row["r_combined"]))
            assert row["gap"] == pytest.approx(np.log2(row["r_act"] / row["r_combined"]))
    for kinds in q.GROUPS:
        group = table.filter(pl.col("axis_kind").is_in(kinds) & (pl.col("place") > 0))
        assert group["place"].to_list() == list(range(1, group.height + 1))
        assert group["joint"].is_sorted(descending=True)
    order = [q.group_of(kind) for kind in table["axis_kind"]]
    assert order == sorted(order)  # read-side candidates and ceilings apart, after write and mixed


def test_points_are_the_scores_of_their_side(opened: Opened) -> None:
    at = shown(opened)
    table = {row["candidate"]: row for row in q.ranked(at.scores).iter_rows(named=True)}
    for kinds in (q.WRITE, q.READ):
        found = q.points(at.scores, kinds)
        assert set(found["series"]) <= {*kinds, "ceiling"}
        for row in found.iter_rows(named=True):
            assert (row["x"], row["y"]) == (
                table[row["candidate"]]["r_act"],
                table[row["candidate"]]["r_combined"],
            )
            assert row["hollow"] == (table[row["candidate"]]["layers_below_k"] > 0)
        named = found.drop_nulls("label")
        assert named.height == 4
        assert set(named["place"]) == {1, 2, 3, 4}
        lost = set(q.undrawn(at.scores, kinds))
        assert lost | set(found.filter(pl.col("series") != "ceiling")["candidate"]) == {
            one.name for one in at.scores.candidates if one.axis_kind in kinds
        }
    assert "qk_and_chars_clusters" in q.undrawn(at.scores, q.WRITE)  # an empty intersection has no score


def test_specificity_percent_and_cells_are_those_of_the_run(opened: Opened) -> None:
    at = shown(opened, dims=4, clean=2)
    stored = run_of(opened).tables
    here = (pl.col("delta") == at.delta) & (pl.col("k") == 4)
    after = stored["specificity"].filter(here & (pl.col("clean") == 2) & pl.col("layer").is_in([1, 2, 3]))
    means = {one: group["r"].drop_nans().mean() for (one,), group in after.group_by("candidate")}
    for row in q.specificity(at.scores).iter_rows(named=True):
        assert row["r_specific"] == pytest.approx(means[row["candidate"]])
        if row["kept"] is not None:
            assert row["kept"] == pytest.approx(row["r_specific"] / row["r_act"])
    percents = q.percent(at.scores)
    assert percents["percent_combined"].drop_nulls().max() == pytest.approx(100)
    ceiling = percents.filter(pl.col("candidate") == "dW_combined_ceiling")
    assert ceiling["percent_combined"][0] == pytest.approx(100)
    cells = q.cells(at.scores, "r_act")
    assert cells.height == len(at.scores.names) * 5
    both = cells.join(
        stored["table"].filter(here).select("candidate", pl.col("layer").cast(pl.Int64), "r_act"),
        on=["candidate", "layer"],
    )
    assert both["value"].equals(both["r_act"].fill_nan(None), null_equal=True)


def test_several_changes_have_mean_sd_and_interval(opened: Opened) -> None:
    at = shown(opened)
    assert at.agreement is not None
    each = [q.ranked(scores).sort("candidate")["joint"] for scores in at.changes]
    table = q.ranked(at.scores, at.changes).sort("candidate")
    both = pl.DataFrame({"one": each[0], "two": each[1]})
    mean = both.mean_horizontal(ignore_nulls=False)
    for found, expected in (
        (table["joint_mean"], mean),
        (table["joint_sd"], (each[0] - each[1]).abs() / np.sqrt(2)),
        (table["joint_high"] - table["joint_low"], 12.7062 * (each[0] - each[1]).abs()),  # t(0.975; 1)
    ):
        known = expected.is_not_null()
        np.testing.assert_allclose(found.filter(known), expected.filter(known), rtol=1e-6)
    assert q.by_change(at.changes).filter(pl.col("series") == DELTAS[1])["value"].null_count() < 10


# Words


def test_a_candidate_is_called_first_only_where_the_conclusion_does() -> None:
    found = planted_run()
    scores = scores_of(found.summary, found.tables, "tuned", 4, clean=2)
    said = conclude(scores)
    assert said.winner == "mlp_write"
    for title in (say.map_title(scores, q.WRITE, said), say.ranking_title(said)):
        assert title.endswith("; mlp_write comes out first")
    assert "holds more than chance of the weight change at blocks 1-3, of what it does" in (
        say.profile_title(scores, "mlp_write")
    )
    nothing = planted_run(0.0)
    scores = scores_of(nothing.summary, nothing.tables, "tuned", 4, clean=2)
    said = conclude(scores)
    assert said.winner == ""
    for title in (say.map_title(scores, q.WRITE, said), say.ranking_title(said)):
        assert "first" not in title
    read = say.map_title(scores, q.READ, said)
    assert read.startswith("None of 9") or read.endswith(say.READ_SIDE)


def test_every_title_counts_what_the_test_separates(opened: Opened) -> None:
    at = shown(opened, dims=4, measure="r_combined")
    held = (at.scores.tables["holm_combined"] < 0.05).sum()
    tested = np.isfinite(at.scores.tables["holm_combined"]).sum()
    assert f"in {held} of {tested} cells" in say.grid_title(at.scores, q.MEASURES["r_combined"])
    assert "runs from" in say.grid_title(at.scores, q.MEASURES["cosine"])
    assert say.profile_title(at.scores, "qk_and_chars_clusters").endswith("has no direction at any block")
    assert "looks at the weight change itself" in say.profile_title(at.scores, "act_ceiling")
    assert say.specificity_title(scores_of_clean(at, 0)) == "No clean direction is taken out"
    assert "first" not in "".join(panel.title for panel in panels.run_panels(opened, at))
    alike = replace(at.agreement, p_w=0.001, p_act=0.2, p_joint=0.2)
    assert say.stability_title(alike, 2).startswith("2 weight changes rank the candidates alike by R_w (W")
    apart = replace(at.agreement, p_w=float("nan"), p_act=0.2, p_joint=0.2)
    assert "are not shown to rank the candidates alike" in say.stability_title(apart, 2)
    lost = replace(at.agreement, w=float("nan"), w_act=float("nan"), w_joint=float("nan"))
    assert say.stability_title(lost, 2) == "No candidates have a score under all 2 weight changes"


def scores_of_clean(at: panels.Shown, clean: int) -> Any:
    return scores_of(at.result.summary, at.result.tables, at.delta, at.k, clean=clean)


# Panels


@pytest.mark.parametrize("changes", PLACES, ids=str)
def test_panels_draw_and_their_code_gives_their_tables(opened: Opened, changes: dict[str, Any]) -> None:
    made = view.run_panels(opened, run_of(opened), chosen(opened, **changes))
    assert len({panel.name for panel in made}) == len(made) == 7
    for panel in made:
        drawn(panel)
        assert panel.draw(DARK) != panel.draw(LIGHT)
        for word in ("None", "nan", "inf,"):
            assert word not in panel.title.removeprefix("None of ") + panel.caption, panel.name
        assert panel.models == ("base", "tuned") or shown(opened, **changes).delta == DELTAS[1]
        names: dict[str, Any] = {}
        exec(panel.code, names)
        assert names["table"].equals(panel.table), panel.name


def test_captions_say_what_a_reader_must_know(opened: Opened) -> None:
    at = shown(opened)
    made = {panel.name: panel.caption for panel in panels.run_panels(opened, at)}
    for name in ("subspace-map", "subspace-profile", "subspace-ranking", "subspace-specificity"):
        for words in (
            "exact moments",
            "Beta",
            "Holm",
            "blocks 1-3, where ΔW ≠ 0",
            "stream(α = +1) − stream(α = −1)",
            "17 held-out prompts",
            "14 train prompts, without ΔW",
        ):
            assert words in made[name], (name, words)
    assert "no hypotheses" in made["subspace-map"]
    assert say.READ_SIDE in made["subspace-map-read"]
    assert say.READ_SIDE in made["subspace-ranking"]
    assert "averaged" not in made["subspace-grid"] or "Holm" in made["subspace-grid"]
    assert "means over block 2." in panels.run_panels(opened, shown(opened, averaged="2"))[0].caption


def test_names_lie_beside_points_and_never_over_each_other() -> None:
    rows = {
        "candidate": ["first", "second", "third"],
        "x": [2.0, 2.0, 9.0],
        "y": [3.0, 3.01, 3.0],
        "series": ["write"] * 3,
        "hollow": [False, True, False],
        "label": ["first", "second", "third"],
    }
    drawn = log_points(
        pl.DataFrame(rows),
        x_title="x",
        y_title="y",
        looks={"write": ("#000", "circle")},
        palette=LIGHT,
        domains=(log_domain(rows["x"]), log_domain(rows["y"])),
        selected="third",
    )
    drawn.altair()
    spec = drawn.spec()
    texts = [part for part in spec["layer"] if part["mark"].get("baseline") == "middle"]
    placed = {v["label"]: (part["mark"]["align"], v) for part in texts for v in part["data"]["values"]}
    assert set(placed) == {"first", "second", "third"}
    assert placed["third"][0] == "right"  # at the right end, so on the left of its point
    apart = abs(np.log(placed["first"][1]["y"] / placed["second"][1]["y"]))
    assert placed["first"][0] != placed["second"][0] or apart > 0.05
    (click,) = spec["params"]
    assert click["select"]["fields"] == ["candidate"]
    assert click["select"]["nearest"] is True


def test_a_log_axis_has_ticks_wherever_it_is() -> None:
    for low, high in ((0.5, 3.0), (0.9, 1.3), (1e-3, 200.0), (0.03, 1.0)):
        found = log_ticks(low, high)
        assert len(found) >= 2
        assert all(low <= tick <= high for tick in found)
    assert log_ticks(1e-6, 1e3) == [10.0**power for power in range(-6, 4)]


@pytest.mark.parametrize("shade", ["ratio", "signed", "plain"])
def test_grid_colours_are_alike_on_both_sides(shade: Any) -> None:
    values = [4.0, 0.25, 1.0, 0.0, None, -3.0 if shade == "signed" else 1e-9]
    table = pl.DataFrame(
        {"candidate": ["a", "a", "a", "b", "b", "b"], "layer": [0, 1, 2] * 2, "value": values}
    )
    drawn = tall_grid(table, value_title="v", palette=DARK, shade=shade, selected="a", ends=("a",))
    drawn.altair()
    spec = drawn.spec()
    cells = {(v["candidate"], v["layer"]): v["shade"] for v in spec["layer"][0]["data"]["values"]}
    assert len(cells) == 5  # the cell without a value is an empty frame
    if shade == "ratio":
        assert cells["a", 0] == -cells["a", 1] == 2
        assert cells["a", 2] == 0
        assert cells["b", 0] == -2  # nothing inside: as far below as the scale goes
    json.dumps(spec, allow_nan=False)


# Files


def test_files_hold_the_tables(opened: Opened) -> None:
    at = shown(opened)
    for make in q.FILES.values():
        table = make(at.scores)
        for name, (_, write) in subspaces_parts.FORMATS.items():
            data = io.BytesIO(write(table))
            if name == "parquet":
                assert pl.read_parquet(data).equals(table)
            else:
                back = pl.read_csv(data, separator="\t" if name == "tsv" else ",")
                assert back.columns == table.columns
                assert back["candidate"].equals(table["candidate"])
    assert export.csv_bytes(pl.DataFrame({"a": [1], "b": ["x"]}), "\t") == b"a\tb\n1\tx\n"
    assert "| `mlp_write` | writes | write |" in at.scores.definitions()


# Runs and selection


def test_a_stored_run_leads_back_to_itself(opened: Opened) -> None:
    wanted = SubspaceScores(broad=6, deltas=(DELTAS[1],))
    changes = view.selection_of(wanted.to_json(), chosen(opened))
    seen = update(chosen(opened), opened.facts, **changes)
    assert (SubspaceFields.of(seen).broad, seen.delta) == (6, DELTAS[1])
    stored = wanted.model_copy(update={"fold_norm": False})
    seen = update(chosen(opened), opened.facts, **view.selection_of(stored.to_json(), chosen(opened)))
    assert view.experiment_of(opened, seen).fold_norm is False
    assert kind_of(wanted.to_json()).page == view.PAGE
    assert experiment_from_json(wanted.to_json()) == wanted
    assert "precompute.py run" in headless.command(opened.path, [view.experiment_of(opened, chosen(opened))])


def test_the_run_in_the_link_is_preferred_then_the_pages_own_then_the_newest(unscored: Path) -> None:
    at = opening(unscored)
    wanted = view.experiment_of(at, chosen(at))
    assert view.stored(at, wanted, "") is None
    assert not view.is_stored(at, wanted)
    other = store_run(unscored, wanted.model_copy(update={"ks": (1, 2)}))
    found = view.stored(at, wanted, "")
    assert found is not None
    assert found.condition["ks"] == [1, 2]
    assert not view.is_stored(at, wanted)
    old = store_run(unscored, wanted.model_copy(update={"definitions": 1}))
    assert not view.is_stored(at, wanted)  # by earlier definitions: it opens, and another can be run
    assert view.runs_at(at, wanted.broad)[old].count("earlier definitions") == 1
    assert "earlier" not in view.runs_at(at, wanted.broad)[other]
    own = store_run(unscored, wanted)
    assert view.is_stored(at, wanted)
    for run, condition in ((own, wanted), (other, None), ("unknown", wanted), ("", wanted)):
        found = view.stored(at, wanted, run)
        assert found is not None
        assert (found.condition == wanted.to_json()) == (condition is not None)
    assert view.stored(at, SubspaceScores(broad=3), own) is None  # another broad rank
    assert view.stored(at, wanted.model_copy(update={"fold_norm": False}), own) is None  # other gains
    assert set(view.runs_at(at, wanted.broad)) == {own, old, other}


def test_own_candidates_are_asked_for_only_where_code_may_run(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = OwnFile(Path("own.py"), "a" * 64, True)
    monkeypatch.setattr("app.live.own_code.own_file", lambda store, allowed=False: file)
    assert view.experiment_of(opened, chosen(opened)).code == ""
    monkeypatch.setattr(view, "code_allowed", lambda: True)
    wanted = view.experiment_of(opened, chosen(opened))
    assert wanted.code == "a" * 64
    assert view.stored(opened, wanted, "") is not None  # the run without them is shown meanwhile
    assert not view.is_stored(opened, wanted)


def test_a_page_of_stored_numbers_loads_no_torch(opened: Opened, planted: Path) -> None:
    code = "import sys, app.analyses, app.report.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    for at in (opened, opening(planted)):
        assert view.can_score(at) == has_subspaces(at.store)
    assert view.can_score(opened)


def test_links_name_blocks_and_nonsense_is_left_out() -> None:
    assert view.layers_of("3,1, 1,x,99,-2", 5) == (1, 3)
    assert view.layers_of("", 5) is None
    assert view.layers_of("7,ten", 5) is None
    assert view.nearest([1, 2, 4, 8], 5) == 4
    assert view.nearest([0, 8], 4) == 0


def test_unknown_names_in_a_link_show_the_usual(opened: Opened) -> None:
    at = shown(opened, delta="nothing", candidate="nobody", measure="agreement", dims=7)
    usual = shown(opened, dims=6)
    assert (at.delta, at.candidate, at.measure) == (usual.delta, usual.candidate, usual.measure)
    assert at.k in SMALL["ks"]


def test_a_change_that_is_zero_says_so_and_leaves_the_others(opened: Opened) -> None:
    run = run_of(opened)
    summary = {**run.summary, "changed": {DELTAS[0]: [], DELTAS[1]: [1, 2, 3]}}
    other = JobResult({**run.condition, "cleans": [0]}, summary, run.tables)
    with pytest.raises(AnalysisError, match="weight change is zero"):
        view.shown_of(opened, other, chosen(opened))
    at = view.shown_of(opened, other, chosen(opened, delta=DELTAS[1]))
    assert [one.target for one in at.changes] == [DELTAS[1]]
    assert at.agreement is None
    assert len(panels.run_panels(opened, at)) == 6


def test_what_a_link_names_in_vain_is_told(opened: Opened) -> None:
    wanted = chosen(opened, delta="nobody", candidate="none", measure="foo", averaged="77")
    told = view.substituted(
        shown(opened, delta="nobody", candidate="none", measure="foo", averaged="77"), wanted
    )
    assert [next(name for name in ("nobody", "none", "foo", "77") if name in text) for text in told] == [
        "nobody",
        "none",
        "foo",
        "77",
    ]
    assert view.substituted(shown(opened), chosen(opened)) == []


def test_blocks_that_a_change_leaves_alone_give_no_scores(opened: Opened) -> None:
    at = shown(opened, averaged="0")
    assert "changes nothing at block 0" in view.substituted(at, chosen(opened, averaged="0"))[0]
    assert at.found.best == ""
    for panel in panels.run_panels(opened, at):
        drawn(panel)
        assert "nan" not in panel.title


# The page


def text(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    said = "\n".join(str(block.value) for block in (*app.markdown, *app.caption))
    assert "Something went wrong" not in said
    return said.replace("\\", "")


def test_a_store_without_the_section_says_what_to_add(open_app: Open, own_store: Path) -> None:
    app = open_app(own_store, "subspaces")
    assert "This store holds nothing to score subspaces with" in text(app)
    (snippet,) = [code.value for code in app.code if "[subspaces]" in code.value]
    spec = SubspacesSpec.model_validate(tomllib.loads(snippet)["subspaces"])
    assert (spec.fit, spec.evaluate, len(spec.positive)) == (40, 40, 1)


def test_a_store_without_a_run_offers_one(open_app: Open, unscored: Path) -> None:
    app = open_app(unscored, "subspaces")
    assert "Not scored yet" in text(app)
    assert [b.disabled for b in app.button if b.label == "Score all candidates"] == [False]
    assert any("precompute.py run" in code.value for code in app.code)


def test_a_stored_run_opens_and_every_control_works(
    open_app: Open, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.models.loading.load", lambda *_: pytest.fail("no model is needed"))
    app = open_app(opened.path, "subspaces", dims="3")
    said = text(app)
    at = shown(opened, dims=3)
    assert parted(at.found.text.split("\n")[0].replace("`", ""))[0] in said
    for panel in panels.run_panels(opened, at):
        assert panel.heading in said
    assert any("Run before" in caption.value for caption in app.caption)
    app.select_slider(key="steps-dims").set_value(6).run()
    assert "k = 6" in text(app)
    assert app.query_params["dims"] == "6"
    app.select_slider(key="steps-clean").set_value(2).run()
    assert "Without the 2 leading clean directions" in text(app) or "No candidate's R_act" in text(app)
    app.selectbox(key="subspaces-delta").set_value(DELTAS[1]).run()
    assert f"ΔW: {DELTAS[1]}" in text(app)
    app.multiselect(key="subspaces-averaged").set_value([2, 1]).run()
    assert "means over blocks 1-2." in text(app)
    assert app.query_params["averaged"] == "1,2"
    app.selectbox(key="subspaces-candidate").set_value("act_ceiling").run()
    assert "act_ceiling looks at the weight change itself" in text(app)
    app.selectbox(key="subspaces-measure").set_value("cosine").run()
    assert "cosine with ΔW runs from" in text(app)


def test_another_broad_rank_offers_the_job(open_app: Open, opened: Opened) -> None:
    app = open_app(opened.path, "subspaces")
    other = next(v for v in view.broads(opened) if v not in view.scored(opened))
    app.select_slider(key="steps-broad").set_value(other).run()
    assert f"Not scored with broad rank {other}" in text(app)
    assert [b.disabled for b in app.button if b.key == "run"] == [False]


def test_what_was_left_out_is_named_with_its_reason(open_app: Open, unscored: Path) -> None:
    at = opening(unscored)
    made, wanted = result(), view.experiment_of(at, chosen(at))
    reason = "The candidate mine is not finite. Expected numbers, given 48 NaN or inf at layer 2."
    bad = {"delta": None, "k": None, "name": "mine (own.py)", "layer": 2, "reason": reason}
    summary = {**made.summary, "left_out": [bad], "notes": ["The study's own candidates stopped early."]}
    tables = dict(made.tables)
    key = wanted.content_hash(at.store.fingerprint)
    RunLog(unscored).append(wanted.to_json(), summary, tables.pop("table"), tables, content_hash=key)
    app = open_app(unscored, "subspaces")
    said = text(app)
    assert "1 candidate left out" in said
    assert "The study's own candidates stopped early." in said
    assert reason in said


def test_the_list_of_runs_opens_it(open_app: Open, opened: Opened) -> None:
    run_id = next(iter(view.runs_at(opened, SubspaceFields.of(chosen(opened)).broad)))
    app = open_app(opened.path, "runs", run=run_id)
    assert "write and mixed candidates" in text(app)


def test_a_click_chooses_the_candidate(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    state: dict[str, Any] = {"chart": {"selection": {"pick": [{"candidate": "mlp_write"}]}}}
    state |= {"selection": chosen(opened), "selection-facts": opened.facts}
    monkeypatch.setattr(controls.st, "session_state", state)
    controls.clicked("chart")
    assert controls.current().candidate == "mlp_write"
    assert components.plain("mlp_write") == "mlp\\_write"


def test_captions_say_what_above_chance_does_not_mean(opened: Opened) -> None:
    by_name = {panel.name: panel for panel in panels.run_panels(opened, shown(opened))}
    for name in ("subspace-map", "subspace-profile", "subspace-ranking", "subspace-grid"):
        assert "Above chance means no random direction" in by_name[name].caption
        assert "sets neither a candidate nor its block apart" in by_name[name].caption


def test_points_may_be_coloured_by_family_and_tensors_come_one_by_one(opened: Opened) -> None:
    at = shown(opened, hues="family")
    for panel in panels.maps(opened, at):
        families = {entry.name: entry.family for entry in at.scores.candidates}
        for name, series in panel.table.select("candidate", "series").iter_rows():
            assert series == families[name]
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert scope["table"].equals(panel.table)
        drawn(panel)
    looks = panels._families(LIGHT, q.points(at.scores, q.WRITE, families=True))
    assert len(set(looks.values())) == len(looks)
    table = q.FILES["per tensor"](at.scores)
    assert table.height == 2 * len(at.scores.names) * len(at.scores.layers)
    row = at.scores.names.index("mlp_write"), 2
    place = {"candidate": "mlp_write", "layer": int(at.scores.layers[2]), "tensor": "down_proj"}
    mine = table.filter(**place).row(0, named=True)
    for name in ("fraction", "r", "z", "p", "most"):
        assert mine[name] == pytest.approx(float(at.scores.tables[f"{name}_down_proj"][row]), nan_ok=True)
    assert mine["fraction"] == pytest.approx(mine["r"] * mine["rank"] / at.scores.d)
