"""Raw against mapped on the page: experiments, ranking, words, panels; the demo's planted modules on top."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from drawn_panels import drawn
from live_study import make_store
from streamlit.testing.v1 import AppTest

from app.build.build import build
from app.charts.palette import LIGHT
from app.frame import again as rerun
from app.frame.fields import power
from app.frame.opened import Opened
from app.frame.selection import Facts, defaults, parse, to_params, update
from app.live.jobs import JobResult
from app.live.model_cache import ModelCache
from app.live.run import compute, save
from app.patching import amplitudes, asymmetry, shared_tokens
from app.patching import drill as patch_drill
from app.patching import replacement as patch_view
from app.patching import table as patch_table
from app.patching import words as say
from engine.errors import PatchError
from engine.lab.repeat import Repeat
from engine.patching.mapped_spec import CONTROLS, MappedPatch
from engine.study.study import Study
from store.reader import Store
from store.runs import RunLog

ROOT = Path(__file__).resolve().parents[2]
PLANTED = json.loads((ROOT / "demo/planted.json").read_text(encoding="utf-8"))
FIRST, SECOND = PLANTED["attention"]["layer"], PLANTED["mlp"]["layer"]
BLOCKS = PLANTED["n_layers"]
RUN = (0, FIRST - 1, FIRST, SECOND, BLOCKS - 1)
FACTS = Facts(
    models=("base", "tuned"),
    n_layers={"base": BLOCKS, "tuned": BLOCKS},
    head_dim={"base": 16, "tuned": 16},
    sites=("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out"),
    positions=("decision", "mean"),
    languages=("en", "zh"),
    categories=("add",),
    splits=("train", "validation"),
)
START = update(defaults(FACTS), FACTS, position="decision", site="mlp_out", layer=SECOND)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo pair with attn_out and mlp_out of five blocks run, tuned ← base, and one the other way."""
    study = Study.load(ROOT / "studies/demo.toml").with_overrides(
        components=["attn_out", "mlp_out"], positions=["decision"]
    )
    pair = {name: study.models[name] for name in ("base", "tuned")}
    path = tmp_path_factory.mktemp("mapped") / "store"
    build(study.model_copy(update={"models": pair, "contrasts": {}, "subspaces": None}), path, quiet=True)
    opened, cache = Store(path), ModelCache("cpu")
    wanted = [patch_table.experiment_of(START, s, b) for s in ("attn_out", "mlp_out") for b in RUN]
    wanted += [patch_table.experiment_of(START, target="a")]
    for experiment in wanted:
        result = compute(opened, experiment, cache, lambda **_: None, lambda: False)
        save(str(path), opened.fingerprint, experiment, result)
    return path


def stored(store: Path) -> list[patch_table.Run]:
    listed = RunLog(store).list()
    return [
        (json.loads(c), json.loads(s) | {"run_id": r})
        for c, s, r in listed.select("condition", "summary", "run_id").rows()
        if json.loads(c)["job"] == "mapped"
    ]


def result_of(store: Path, **changes: Any) -> JobResult:
    experiment = patch_table.experiment_of(update(START, FACTS, **changes))
    log = RunLog(store)
    run = log.open(log.find(experiment.content_hash(Store(store).fingerprint)) or "none")
    return JobResult(run.condition, run.summary, run.tables)


def test_the_planted_modules_are_on_top_of_the_ranking(store: Path) -> None:
    """Positive control: of all attn_out and mlp_out, block 4's and block 5's save most, above every other."""
    forward = [run for run in stored(store) if run[0]["target"] == "tuned"]
    rows = patch_table.ranked(patch_table.table(forward))
    top = rows.head(2)
    assert set(zip(top["hook"], top["layer"], strict=True)) == {("attn_out", FIRST), ("mlp_out", SECOND)}
    assert top["rank"].to_list() == ["1–2", "1–2"]
    assert top["gain_low"].min() > rows[2:]["gain_high"].max()  # type: ignore[operator]
    assert (top["controls"] == "4 of 4").all()
    assert top["drop_low"].min() > 90  # type: ignore[operator]
    for kind in CONTROLS:
        for _, summary in forward:
            worse = summary["splits"]["validation"]["controls"][kind]
            assert worse["estimate"] > 0


def test_upstream_of_the_planted_blocks_there_is_nothing_to_drop(store: Path) -> None:
    rows = patch_table.table(stored(store)).filter(pl.col("layer") < FIRST)
    assert rows.height == 4
    assert rows["drop"].null_count() == rows.height
    assert rows["kl_raw"].abs().max() <= 1e-6  # type: ignore[operator]
    assert rows["reason"].str.contains("within the self-patch floor").all()
    after = patch_table.table(stored(store)).filter(pl.col("layer") >= FIRST)
    assert after["drop"].null_count() == 0


def test_panels_say_what_was_found_and_their_code_gives_their_table(store: Path) -> None:
    opened: Any = SimpleNamespace(path=str(store))
    runs, result = stored(store), result_of(store)
    grid = patch_table.grid_panel(runs, START, str(store))
    ranking = patch_table.ranking_panel(runs, str(store))
    rows = patch_table.table(patch_table.alike(runs, START))
    mine = rows.filter((pl.col("hook") == "mlp_out") & (pl.col("direction") == "tuned ← base"))
    profile = patch_drill.profile_panel(mine, result.condition, "")
    assert grid is not None
    assert ranking is not None
    assert profile is not None
    titles = [panel.title for panel in (grid, ranking, profile)]
    assert "tuned ← base: the map saves 0.198 (" in titles[0]
    assert "1 other is level within the intervals; the moment-matched activation is not shown" in titles[0]
    assert titles[0].endswith("to change anything at 4 of 10 sites")
    top = "Top results of 11 runs: the map saves 0.198 ("
    assert titles[1].startswith(top)
    alone = patch_table.grid_panel([run for run in runs if run[0] == result.condition], START, str(store))
    assert alone is not None
    assert alone.title.startswith("tuned ← base: the map saves 0.17")
    assert "first on train" not in alone.title
    assert f"disturbs most at block {SECOND}: 0.174 nats" in titles[2]
    assert titles[2].endswith("it changes nothing at blocks 0, 3")
    drilled = patch_drill.panels(opened, result)
    assert "the map lowers KL by 99.8 % (" in drilled[0].title
    assert drilled[0].title.endswith("; every control disturbs more")
    assert "bogus, the map of block 1" in drilled[0].caption
    assert "stays at α = 1" in drilled[0].caption
    for panel in (grid, ranking, *drilled):
        scope: dict[str, Any] = {}
        exec(panel.code, scope)
        assert scope["table"].equals(panel.table), panel.name
    for panel in (grid, ranking, profile, *drilled):
        drawn(panel)


def test_the_marked_alpha_is_the_one_that_train_chose(store: Path) -> None:
    opened: Any = SimpleNamespace(path=str(store))
    result = result_of(store)
    panel = patch_drill.alpha_panel(opened, result)
    mapped = panel.table.filter(pl.col("kind") == "mapped")
    train, validation = (mapped.filter(pl.col("split") == s).sort("kl") for s in ("train", "validation"))
    best = result.summary["best"]["alpha"]
    assert train["alpha"][0] == best
    # a result in which validation would have chosen otherwise still tells the α of train
    moved = panel.table.with_columns(
        kl=pl.when((pl.col("split") == "validation") & (pl.col("alpha") == 0.4)).then(1e-9).otherwise("kl")
    )
    other = JobResult(result.condition, result.summary, {**result.tables, "curve": moved})
    again = patch_drill.alpha_panel(opened, other)
    assert f"at α = {best:g}" in again.title
    marks = json.dumps(again.draw(LIGHT).spec(), ensure_ascii=False)
    assert f'"x": {best}, "label": "best α (train)"' in marks
    assert validation.height == train.height


def test_every_amplitude_is_told_from_the_stored_kls(store: Path) -> None:
    """One run, a row for each α: the one that train chose as the summary has it, the others by hand."""
    opened: Any = SimpleNamespace(path=str(store))
    result = result_of(store)
    table, summary = amplitudes.rows(result), result.summary
    assert table["alpha"].unique().sort().to_list() == summary["alphas"]
    assert table.filter(pl.col("which").str.contains("auto"))["alpha"].unique().to_list() == [
        summary["alpha_auto"]
    ]
    for split in ("train", "validation"):
        best = table.filter(pl.col("which").str.contains("best"), pl.col("split") == split).row(0, named=True)
        found = summary["splits"][split]
        for name, value in (
            ("gain", found["delta"]),
            ("drop", found["drop"]),
            ("kl_raw", found["kl"]["raw"]),
        ):
            ends = (best[name], best[f"{name}_low"], best[f"{name}_high"])
            assert ends == pytest.approx((value["estimate"], value["low"], value["high"]), rel=1e-12)
    every, prompts = result.tables["kl"], result.tables["prompts"]
    held = prompts.filter(pl.col("split") == "validation")["row"]
    kl = {
        (kind, alpha): rows.filter(pl.col("row").is_in(held.implode()))["kl"].mean()
        for (kind, alpha), rows in every.group_by("kind", "alpha")
    }
    for alpha in (0.4, 1.6):
        row = table.filter(pl.col("alpha") == alpha, pl.col("split") == "validation").row(0, named=True)
        assert row["gain"] == pytest.approx(kl["raw", 1.0] - kl["mapped", alpha], rel=1e-9)
        assert row["drop"] == pytest.approx(100 * (1 - kl["mapped", alpha] / kl["raw", 1.0]), rel=1e-9)
    panel = amplitudes.amplitudes_panel(opened, result, 0.41)
    assert panel is not None
    assert " at α = 0.4, " in panel.title
    assert "best)" in panel.title
    drawn(panel)


def test_both_directions_are_compared_prompt_by_prompt(store: Path) -> None:
    opened: Any = Opened(str(store), Store(store), FACTS)
    result, back = result_of(store), result_of(store, target="a")
    assert result.condition["target"] == back.condition["source"] == "tuned"
    found = asymmetry.reversed_run(opened, result)
    assert found is not None
    assert found.condition == back.condition
    assert asymmetry.reversed_run(opened, result_of(store, layer=0)) is None
    table = asymmetry.rows(result, back)
    one, other = (
        {
            r["id"]: r
            for r in run.tables["prompts"].filter(pl.col("split") == "validation").iter_rows(named=True)
        }
        for run in (result, back)
    )
    for row in table.iter_rows(named=True):
        here = [one[name][f"kl_{row['kind']}"] for name in one]
        gaps = [one[name][f"kl_{row['kind']}"] - other[name][f"kl_{row['kind']}"] for name in one]
        assert row["n"] == len(one) == len(other)
        assert row["difference"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-9, abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["sd"] == pytest.approx(statistics.stdev(here), rel=1e-9)
    turned = asymmetry.rows(back, result)
    assert turned["difference"].to_list() == pytest.approx((-table["difference"]).to_list(), rel=1e-12)
    panel = asymmetry.asymmetry_panel(opened, result, back)
    assert panel.title.startswith(
        "KL of tuned ← base less that of base ← tuned on the same prompts; nats: moment-matched"
    )
    scope: dict[str, Any] = {}
    exec(panel.code, scope)
    assert scope["table"].equals(panel.table)
    assert drawn(asymmetry.asymmetry_panel(opened, back, result))
    assert "patch-asymmetry" in [p.name for p in patch_table.run_panels(opened, result, START)]


def test_amplitudes_are_read_and_written() -> None:
    assert amplitudes.read(" 0.7,0.3 ,1") == (0.3, 0.7, 1.0)
    assert amplitudes.read("") == ()
    assert amplitudes.written((0.3, 0.123456789), (1.0,)) == "0.3,0.123456789"
    assert amplitudes.written((1.0,), (1.0,)) == ""
    exact = (1 / 3, 0.1 + 0.2, 1e-5, 2.0)
    assert amplitudes.read(amplitudes.written(exact, (1.0,))) == tuple(sorted(exact))
    assert amplitudes.written((2.0,), (1.0,)) == "2"
    assert len(amplitudes.read(",".join(map(str, range(64))))) == 64
    with pytest.raises(PatchError, match=r"too many amplitudes.*at most 64.*Given: 65"):
        amplitudes.read(",".join(map(str, range(65))))
    with pytest.raises(PatchError, match=r"at most 64.*Given: 65"):  # 1 is added to a mapped patch
        patch_table.experiment_of(update(START, FACTS, grid=",".join(map(str, range(2, 66)))))
    for nonsense in ("a", "1,,2", "inf"):
        with pytest.raises(PatchError, match=r"Expected.*0\.3, 0\.5"):
            amplitudes.read(nonsense)


def test_a_stored_run_leads_back_to_the_same_experiment() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"method": "RidgeTransport", "lam_mode": "set", "lam": 1.5, "clusters": 3, "layer": 2},
        {"rank": 4, "shrink": 0.2, "target": "a", "amplitude": "deviation", "raw_alpha": "scaled"},
        {"method": "LogitSubspaceRidge", "q": 8, "language": "zh", "read_at": "decision"},
        {"method": "LogitSubspaceRidge", "q": 8, "joint": "yes", "lam_from": -6.0},
        {"method": "PCAProcrustes", "rank": 3, "joint": "yes"},
        {"rank": 4, "map_scale": "seed"},
        {"grid": "0.3, 0.5,0.7"},
        {"grid": f"{1 / 3!r}"},
        {"vocabulary": "shared"},
    ]
    for change in changes:
        selection = update(START, FACTS, **change)
        experiment = patch_table.experiment_of(selection)
        elsewhere = defaults(FACTS)
        back = update(elsewhere, FACTS, **patch_table.selection_of(experiment.to_json(), elsewhere))
        assert patch_table.experiment_of(back) == experiment


@pytest.mark.parametrize("value", [3e-5, 1e-8, 1e-12, 0.02, 10**0.25, 12345.0, 1e6])
def test_a_penalty_in_a_link_is_the_one_that_was_run(value: float) -> None:
    place = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 2}
    for penalty in ({"penalty_from": value}, {"penalty": value}):
        asked = MappedPatch.from_json({**place, "map": {"method": "RidgeTransport", **penalty}})
        back = update(START, FACTS, **patch_table.selection_of(asked.to_json(), START))
        again, notices = parse(to_params(back, FACTS), FACTS)
        assert notices == []
        assert patch_table.experiment_of(again).map == asked.map
    assert [power(float(n)) for n in range(-12, 7)] == [float(f"1e{n}") for n in range(-12, 7)]
    assert power(-4.52288) == 10**-4.52288  # links made before mean what they meant
    assert power(1.75) == 10**1.75


def test_the_whole_table_is_every_site_block_and_direction() -> None:
    opened: Any = SimpleNamespace(facts=FACTS)
    every = patch_table.experiments(opened, START)
    # what enters a block left the one before, so resid_pre is only run at block 0
    assert len(every) == len(set(every)) == 2 * (4 * BLOCKS + 1)
    assert {e.target for e in every} == {"base", "tuned"}
    assert patch_table.experiment_of(START) in every


def test_a_patch_may_be_restricted_to_heads() -> None:
    chosen = update(START, FACTS, site="head_z", heads="6, 2")
    condition = patch_view.condition_of(chosen)
    assert condition.heads == (2, 6)
    back = update(START, FACTS, **patch_view.selection_of(condition.to_json(), START))
    assert patch_view.condition_of(back).heads == (2, 6)
    assert patch_view.condition_of(update(chosen, FACTS, site="mlp_out")).heads is None
    with pytest.raises(PatchError, match="heads of the link"):
        patch_view.condition_of(update(chosen, FACTS, heads="two"))


def span(value: float, width: float = 0.1) -> dict[str, float]:
    return {"estimate": value, "low": value - width, "high": value + width}


def made(raw: float | None, mapped: float, width: float = 0.01, **more: Any) -> dict[str, Any]:
    """A summary as the runner makes it, with the numbers that the words use."""
    kl = {"mapped": span(mapped, width), **{k: span(mapped + 0.5) for k in CONTROLS}}
    found: dict[str, Any] = {"n": 10, "kl": kl, "delta": None, "drop": None, "reason": "no raw"}
    if raw is not None:
        kl["raw"] = span(raw, width)
        found |= {"delta": span(raw - mapped, width), "reason": ""}
        found["drop"] = span(100 * (raw - mapped) / raw) if raw > 1e-6 else None
    found["controls"] = {k: {**span(0.5), "beaten": True} for k in CONTROLS} | more
    return {"best": {"alpha": 0.8}, "splits": {"train": found, "validation": found}, "run_id": "r"}


CONDITION = {"target": "t", "source": "s", "component": "mlp_out", "layer": 3, "position": "decision"}
CONDITION |= {"map": {"method": "MeanShift"}, "read_at": "patched", "scale": "vector", "raw_alpha": "fixed"}


def test_words_do_not_claim_what_intervals_do_not_show() -> None:
    lower = say.verdict(CONDITION, made(0.4, 0.1))
    assert lower.startswith("t ← s, mlp_out of block 3: the map lowers KL by 75.0 %")
    assert "at α = 0.8" in lower
    assert "the map raises KL; from 0.1 to 0.4" in say.verdict(CONDITION, made(0.1, 0.4))
    assert "not shown to change KL" in say.verdict(CONDITION, made(0.4, 0.399))
    assert "the moment-matched activation is not shown to change anything" in say.verdict(
        CONDITION, made(1e-9, 0.3)
    )
    assert "the mapped activation moves the next token by 0.3" in say.verdict(CONDITION, made(None, 0.3))
    level = made(0.4, 0.1, random={**span(0.01), "beaten": False})
    assert say.verdict(CONDITION, level).endswith("not told from these controls: random")


def test_a_best_alpha_at_the_end_of_the_grid_is_pointed_out() -> None:
    assert say.edge_note({"best": {"alpha": 1.0}, "alphas": [0.2, 1.0, 2.0]}) == ""
    assert "2, is an end of the grid" in say.edge_note({"best": {"alpha": 2.0}, "alphas": [0.2, 1.0, 2.0]})


def test_ranks_are_only_told_as_far_as_intervals_show() -> None:
    values = ((0.9, 0.05), (0.5, 0.2), (0.4, 0.2), (0.1, 0.01))
    runs = [({**CONDITION, "layer": i}, made(1.0, 1.0 - v, w)) for i, (v, w) in enumerate(values)]
    rows = patch_table.ranked(patch_table.table(runs))
    assert rows["layer"].to_list() == [0, 1, 2, 3]
    assert rows["rank"].to_list() == ["1", "2–3", "2–3", "4"]
    mixed = [*runs, ({**CONDITION, "layer": 9}, made(None, 0.1))]
    assert patch_table.ranked(patch_table.table(mixed))["layer"].to_list() == [0, 1, 2, 3]
    strangers = patch_table.ranked(patch_table.table([({**CONDITION, "layer": 9}, made(None, 0.1))]))
    assert strangers["over"].to_list() == ["mean"]
    assert strangers["gain"].to_list() == [0.5]


def test_the_first_place_is_chosen_on_train_and_told_by_validation() -> None:
    """Layer 1 saves most on validation, layer 0 on train: layer 0 is named, with its own validation value."""
    weak, strong = made(1.0, 0.7), made(1.0, 0.2)
    runs = [
        (
            {**CONDITION, "layer": 0},
            weak | {"splits": {"train": strong["splits"]["train"], **_validation(weak)}},
        ),
        (
            {**CONDITION, "layer": 1},
            strong | {"splits": {"train": weak["splits"]["train"], **_validation(strong)}},
        ),
    ]
    rows = patch_table.ranked(patch_table.table(runs))
    assert rows["layer"].to_list() == [0, 1]
    assert rows["rank"].to_list() == ["2", "1"]
    said = "the map saves 0.3 (0.29 to 0.31) nats at mlp_out 0 · t ← s, the first on train, 1 above"
    assert patch_table.top_words(rows) == said


def _validation(summary: dict[str, Any]) -> dict[str, Any]:
    return {"validation": summary["splits"]["validation"]}


def test_the_drill_down_shows_tokens_of_each_kind(store: Path) -> None:
    table = result_of(store).table
    for kind in ("mapped", "raw", *CONTROLS):
        rows = patch_drill.drill_table(table, kind)
        assert rows["split"][0] == "validation"
        part = rows.filter(pl.col("split") == "validation")
        assert part["kl"].is_sorted(descending=True)
        assert rows["before"].str.count_matches("%").min() == 5
    assert patch_drill.drill_table(table, "raw")["kl"].max() > 0.5  # type: ignore[operator]


def test_the_page_shows_the_table_and_runs_a_row_again(open_app: Callable[..., AppTest], store: Path) -> None:
    params = {"position": "decision", "site": "mlp_out", "layer": str(SECOND)}
    app = open_app(store, "patching", **params)
    said = "\n".join(m.value for m in app.markdown).replace("\\", "")
    assert not app.exception
    assert "the map lowers KL by 99.8 %" in said
    assert "Top results of 11 runs" in said
    buttons = {button.key: button for button in app.button}
    assert buttons["run"].label.startswith("Run the whole table (")
    assert "run-site" not in buttons
    assert any("Run before" in caption.value for caption in app.caption)
    assert buttons["again"].label == "Run again and compare"
    opened, experiment = Store(store), patch_table.experiment_of(START)
    again = Repeat(of=experiment.to_json())
    result = compute(opened, again, ModelCache("cpu"), lambda **_: None, lambda: False)
    save(str(store), opened.fingerprint, again, result)
    shown = open_app(store, "patching", **params)
    captions = " ".join(c.value for c in shown.caption)
    assert "Run again (1): " in captions
    assert not shown.exception


def test_a_pair_with_two_tokenizers_is_run_in_each_models_own_tokens(tmp_path: Path) -> None:
    path = make_store(tmp_path)
    opened = Store(path)
    experiment = patch_table.experiment_of(
        update(START, FACTS, site="resid_post", layer=1, method="RidgeTransport")
    ).model_copy(update={"target": "other", "n_boot": 200})
    result = compute(opened, experiment, ModelCache("cpu"), lambda **_: None, lambda: False)
    ids = opened.tokens("other")["token_ids"].to_list(), opened.tokens("base")["token_ids"].to_list()
    assert all(a != b for a, b in zip(*ids, strict=True))
    found = result.summary["splits"]["validation"]
    assert found["kl"]["mapped"]["estimate"] > 1e-4
    assert set(found["kl"]) == {"mapped", "raw", *CONTROLS}
    table = result.tables["table"]
    assert (table["target_index"] != table["source_index"]).any()
    rows = patch_table.table([(experiment.to_json(), result.summary)])
    assert rows["direction"].to_list() == ["other ← base"]


def test_a_repetition_is_told_in_words() -> None:
    assert rerun.verdict(0.0, 1) == "Run again (1): every KL came out the same, to the last bit."
    assert rerun.verdict(3e-7, 2) == "Run again (2): the KLs differ by at most 3e-7 nats."
    assert "cannot be compared" in rerun.verdict(None, 3)


def test_the_diagnostic_on_shared_tokens_stands_beside_the_whole(store: Path) -> None:
    """One tokenizer shares every token: both figures are one."""
    asked = patch_table.experiment_of(update(START, FACTS, vocabulary="shared"))
    opened, cache = Store(store), ModelCache("cpu")
    result = compute(opened, asked, cache, lambda **_: None, lambda: False)
    save(str(store), opened.fingerprint, asked, result)
    at: Any = Opened(str(store), opened, FACTS)
    panel = shared_tokens.shared_panel(at, result_of(store, vocabulary="shared"))
    assert panel is not None
    assert "shared tokens have 100.0 % of the unpatched probability" in panel.title
    for kind in panel.table["kind"].unique():
        whole, part = panel.table.filter(kind=kind)["value"].to_list()
        assert part == pytest.approx(whole, rel=1e-4, abs=1e-7)
    scope: dict[str, Any] = {}
    exec(panel.code, scope)
    assert scope["table"].equals(panel.table)
    drawn(panel)
    assert shared_tokens.shared_panel(at, result_of(store)) is None
