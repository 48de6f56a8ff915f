"""Live runs in the report: the tables that papers print hold what the runs and the pages hold."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from live_study import CHANGED, make_store
from planted_store import CHECKS

import precompute
from app.behaviour import view as behaviour_view
from app.frame.blocks import Attached, Report, Section, Table, Text
from app.frame.opened import Opened, open_at
from app.frame.panel import Panel
from app.frame.selection import Selection, update
from app.frame.stored import compact, of_pair, opened_run
from app.heads import view as heads_view
from app.live.headless import run_all
from app.patching import summary as tables
from app.patching import table as patch_table
from app.rank import view as rank_view
from app.report.build import build, documents, pair_selection
from app.report.cells import cell
from app.report.own import not_run, wanted
from app.transport import panels as transport
from app.transport import places as transport_table
from app.transport import tables as tq
from engine.behaviour.spec import Behaviour
from engine.heads.spec import HeadSubsets
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment, resampling_groups
from engine.patching.mapped_spec import MappedPatch
from engine.rank.spec import RankSweep
from engine.stats.means import bootstrap_mean, bootstrap_ratio
from store.files import seal, unseal
from store.manifest import verify
from store.runs import RunLog

SITES = [("mlp_out", CHANGED), ("resid_post", CHANGED), ("resid_post", CHANGED + 1)]


def mapped(component: str, layer: int, **changes: object) -> MappedPatch:
    plain = {"target": "tuned", "source": "base", "component": component, "layer": layer}
    return MappedPatch.model_validate({**plain, **changes})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    path = make_store(tmp_path_factory.mktemp("report"), "float32")
    manifest = unseal((path / "manifest.json").read_bytes(), "manifest")
    (path / "manifest.json").write_bytes(seal(manifest | {"self_checks": CHECKS}))
    wanted: list[Experiment] = [mapped(site, layer) for site, layer in SITES]
    wanted.append(mapped("mlp_out", CHANGED, target="base", source="tuned"))
    plain = {"target": "tuned", "source": "base", "layer": CHANGED, "n_boot": 100}
    wanted.append(RankSweep(component="mlp_out", alphas=(1.0,), ks=(1, 2), folds=2, draws=2, **plain))
    wanted.append(HeadSubsets(component="head_z", most=2, **plain))
    wanted += [Behaviour(model=name, measures=("soft_refusal",), n_boot=100) for name in ("base", "tuned")]
    wanted.append(Behaviour(model="tuned", measures=("soft_refusal",), n_boot=100, shared_with="base"))
    wanted.append(mapped("resid_post", 0, source="other"))  # of another pair
    failed = run_all(str(path), wanted, device="cpu", quiet=True)
    assert not failed, failed
    return open_at(str(path))


@pytest.fixture(scope="module")
def chosen(opened: Opened) -> Selection:
    return pair_selection(opened, "tuned,base")


@pytest.fixture(scope="module")
def report(opened: Opened, chosen: Selection) -> Report:
    return build(opened, chosen)


def named(report: Report, name: str) -> Section:
    return next(section for section in report.sections if section.name == name)


def table(section: Section, name: str) -> Table:
    return next(block for block in section.blocks if isinstance(block, Table) and block.name == name)


def test_the_one_shot_table_is_what_the_runs_stored(opened: Opened, report: Report) -> None:
    found = table(named(report, "summary"), "one-shot-tuned")
    rows = found.frame.drop_nulls("run_id").sort("hook", "layer")
    assert list(zip(rows["hook"], rows["layer"], strict=True)) == SITES
    for row in rows.iter_rows(named=True):
        stored = RunLog(opened.path).open(row["run_id"]).summary
        split = stored["splits"]["validation"]
        assert row["kl_raw"] == split["kl"]["raw"]["estimate"]
        assert row["kl_mapped_high"] == split["kl"]["mapped"]["high"]
        assert (row["gain"], row["gain_low"]) == (split["delta"]["estimate"], split["delta"]["low"])
        assert row["drop"] == (split["drop"] or {}).get("estimate")
        assert row["alpha"] == stored["best"]["alpha"]
        assert row["r2_validation"] == stored["map"]["r2_validation"]
    shown = found.read.filter(pl.col("α").is_not_null())
    first = found.frame.drop_nulls("run_id").row(0, named=True)
    assert re.match(rf"{100 * first['gain'] / first['kl_raw']:.1f} \(", shown["Drop %"][0])
    assert found.read.columns[:6] == ["Layer", "Hook", "α", "R² val", "CKA raw", "CKA mapped"]


def test_the_one_shot_table_has_the_scores_of_the_transport_page(opened: Opened, chosen: Selection) -> None:
    """What was fitted at every place stands beside the runs, and makes lines where nothing was run."""
    at = transport.effective(opened, chosen)
    place, spec = tq.Place.of(at), tq.spec_of(at)
    runs = tables.comparable(of_pair(opened, chosen, ("mapped",)), chosen)
    mine = [run for run in runs if run[0]["target"] == "tuned"]
    assert transport_table.known(opened.store, place, spec) is None
    bare = tables.one_shot(opened, chosen, place, mine)
    assert bare.frame.height == len(SITES)
    assert bare.frame["cka_mapped_debiased"].null_count() == len(SITES)
    known = transport_table.compute(opened.store, place, spec)
    full = tables.one_shot(opened, chosen, place, mine).frame
    assert full.height == known.height
    both = full.join(known, left_on=["hook", "layer"], right_on=["site", "layer"], suffix="_page")
    for name in tables.CKAS:
        assert both[name].equals(both[f"{name}_page"], null_equal=True)
    for fit, own in both.select("r2_validation", "r2_validation_page").drop_nulls().iter_rows():
        # the run fits on what the lab hands out, the page on what the store keeps: the same float32 numbers
        assert fit == pytest.approx(own, abs=1e-6)


def test_the_bogus_control_is_paired_and_on_both_splits(opened: Opened, report: Report) -> None:
    """ΔKL and drop% of the bogus map equal plain bootstraps of the stored per-prompt KLs."""
    frame = table(named(report, "summary"), "bogus").frame
    assert frame.height >= 4
    assert set(frame["split"]) == {"train", "validation"}
    for row in frame.iter_rows(named=True):
        run = RunLog(opened.path).open(row["run_id"])
        split = run.summary["splits"][row["split"]]
        if not row["bogus"]:
            assert row["gain"] == split["delta"]["estimate"]
            continue
        prompts = run.tables["prompts"].filter(split=row["split"])
        groups = resampling_groups(prompts)
        raw, wrong = prompts["kl_raw"].to_numpy(), prompts["kl_bogus"].to_numpy()
        assert row["kl_mapped"] == split["kl"]["bogus"]["estimate"] == pytest.approx(wrong.mean())
        ratio = bootstrap_ratio(100 * (raw - wrong), raw, groups=groups, n_boot=2000, seed=0)
        assert (row["drop"], row["drop_low"], row["drop_high"]) == pytest.approx(
            (ratio.estimate, ratio.low, ratio.high)
        )
        plain = bootstrap_mean(raw - wrong, groups=groups, n_boot=2000, seed=0)
        assert (row["gain"], row["gain_high"]) == pytest.approx((plain.estimate, plain.high))


def test_the_title_of_the_control_counts_what_intervals_show(report: Report) -> None:
    found = table(named(report, "summary"), "bogus")
    wrong = found.frame.filter("bogus")
    none = int(np.sum([not (low or 0) > 0 for low in wrong["drop_low"]]))
    assert found.title.endswith(f"in {none} of {wrong.height} cases")


def test_the_top_results_are_the_pages_ranking(opened: Opened, chosen: Selection, report: Report) -> None:
    runs = of_pair(opened, chosen, ("mapped",))
    page = patch_table.ranking_panel(runs, opened.path)
    assert page is not None
    assert table(named(report, "summary"), "top").frame.equals(page.table, null_equal=True)
    again = next(b for b in named(report, "mapped").blocks if isinstance(b, Panel) and b.name == "patch-top")
    assert again.title == page.title
    assert again.table.equals(page.table, null_equal=True)


def test_the_panels_of_runs_are_the_pages(opened: Opened, chosen: Selection, report: Report) -> None:
    views = {"rank": (("rank",), rank_view), "heads": (("heads",), heads_view)}
    for name, (jobs, view) in views.items():
        (run,) = of_pair(opened, chosen, jobs)
        result = opened_run(opened, run[1]["run_id"])
        seen = update(chosen, opened.facts, **view.selection_of(run[0], chosen))
        wanted = view.run_panels(opened, result, seen)
        made = [block for block in named(report, name).blocks if isinstance(block, Panel)]
        assert [(p.title, p.caption) for p in made] == [(p.title, p.caption) for p in wanted]
        assert all(a.table.equals(b.table, null_equal=True) for a, b in zip(made, wanted, strict=True))


def test_behaviour_stands_side_by_side(opened: Opened, chosen: Selection, report: Report) -> None:
    section = named(report, "behaviour")
    assert any(isinstance(b, Text) and b.title.endswith("base, tuned") for b in section.blocks)
    experiments = [Behaviour(model=m, measures=("soft_refusal",), n_boot=100) for m in ("base", "tuned")]
    runs = {}
    for experiment in experiments:
        run_id = RunLog(opened.path).find(experiment.content_hash(opened.store.fingerprint))
        assert run_id is not None
        runs[experiment.model] = opened_run(opened, run_id)
    wanted = behaviour_view.panels(opened, runs, update(chosen, opened.facts, measure="soft_refusal"))
    made = [block for block in section.blocks if isinstance(block, Panel)]
    assert [p.title for p in made[: len(wanted)]] == [p.title for p in wanted]
    # what was measured with the diagnostic on shared tokens is another measurement and stands by itself
    headings = [b.title for b in section.blocks if isinstance(b, Text)]
    assert [h.rsplit(": ", 1)[1] for h in headings] == ["base, tuned", "tuned"]


def test_another_pairs_runs_are_listed_and_no_more(opened: Opened, report: Report) -> None:
    runs = table(named(report, "provenance"), "runs").frame
    assert runs.height == 10
    assert runs["what"].str.contains("other").sum() == 1
    assert not table(named(report, "summary"), "top").frame["direction"].str.contains("other").any()
    other = build(opened, pair_selection(opened, "tuned,other"))
    assert table(named(other, "summary"), "top").frame["direction"].to_list() == ["tuned ← other"]


def test_what_was_not_run_can_be_run_by_its_command(opened: Opened, chosen: Selection) -> None:
    section = not_run(opened, chosen)
    files = {b.name: json.loads(b.data) for b in section if isinstance(b, Attached)}
    whole = {json.dumps(e.to_json()) for e in patch_table.experiments(opened, chosen)}
    left = {json.dumps(experiment_from_json(d).to_json()) for d in files["not-run-mapped.json"]}
    assert left < whole
    assert len(whole) - len(left) == len(SITES) + 1
    for block in section:
        if isinstance(block, Text) and " run " in block.code:
            words = re.search(r"--condition (.*)$", block.code)
            assert words is not None
            assert words[1] in files or experiment_from_json(json.loads(words[1].strip("'")))


def test_compact_experiments_are_the_same_experiments() -> None:
    for experiment in (
        mapped("mlp_out", 1),
        HeadSubsets(target="a", source="b", component="head_z", layer=2, most=3),
    ):
        assert experiment_from_json(compact(experiment)) == experiment


def test_the_document_holds_what_is_attached(report: Report) -> None:
    document, journal = documents(report)
    name = "not-run-mapped.json"
    link = re.search(rf'download="{name}" href="data:application/json;base64,([^"]+)"', document)
    assert link is not None
    assert base64.b64decode(link[1]) == journal[name]
    assert f"]({name})" in journal["report.md"].decode()
    shown = table(named(report, "summary"), "top").read
    for value in shown.row(0):
        assert cell(value).replace("<", "&lt;") in document


def test_fitting_first_fills_the_table(opened: Opened, tmp_path: Path) -> None:
    command = ["report", opened.path, "--out", str(tmp_path / "r"), "--pair", "base,tuned", "--fit"]
    assert precompute.main(command) == 0
    text = (tmp_path / "r" / "report.md").read_text()
    assert "from Transport maps" in text
    assert (tmp_path / "r" / "not-run-mapped.json").is_file()
    assert not verify(Path(opened.path))
    assert precompute.main(command[:4]) == 0  # over the earlier one, attachments included


def test_models_of_other_sizes_are_not_offered_what_would_be_refused(
    opened: Opened, chosen: Selection, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {one.name for one in wanted(opened, chosen)}
    refused = {"steering", "head-map", "heads", "patch_map", "difference_lens"}
    assert refused <= kinds
    true, other = opened.store.model_info, {"d": 1, "n_heads": 1}
    monkeypatch.setattr(
        type(opened.store), "model_info", lambda _, model: true(model) | (other if model == chosen.b else {})
    )
    assert {one.name for one in wanted(opened, chosen)} == kinds - refused
