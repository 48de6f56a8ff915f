"""Rank sweeps against plain forward hooks, planted ranks, and what is chosen where."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.errors import JobError, PatchError
from engine.kinds import experiment_from_json
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.patching.mapped_spec import MappedPatch
from engine.patching.spec import Condition
from engine.rank import numbers as ranks
from engine.rank.report import RankData, choice
from engine.rank.run import Plan, Sides, run
from engine.rank.spec import RankSweep
from engine.rank.vectors import Cell
from engine.transport import MomentMatching, ScaledProcrustes
from engine.transport.named import MapSpec

Array = np.ndarray[Any, Any]
TRAIN, VALIDATION = 60, 8
PLANTED = 2
SITE = Site("mlp_out", 1)


def planted_pair(family: str) -> dict[str, Any]:
    """Two models that differ by a rank-2 change of the second block's last MLP matrix."""
    base = tiny(family)
    tuned = copy.deepcopy(base)
    taps = from_parts(tuned).taps
    module = taps.layers[1].mlp
    weight = [m for m in module.modules() if getattr(m, "weight", None) is not None][-1].weight
    generator = torch.Generator().manual_seed(1)
    out, inner = (0, 1) if family != "gpt2" else (1, 0)
    parts = [torch.randn(weight.shape[i], PLANTED, generator=generator) for i in (out, inner)]
    change = parts[0] @ parts[1].T / weight.shape[inner] ** 0.5
    with torch.no_grad():
        weight.add_(change if family != "gpt2" else change.T)
    return {"base": from_parts(base), "tuned": from_parts(tuned)}


def lab_of(models: dict[str, Any], other_tokens: bool = False, train: int = TRAIN) -> MemoryLab:
    """Prompts in pairs; with `other_tokens` the base reads other and longer ones."""
    count = train + VALIDATION
    ids, at = {}, {}
    for i, name in enumerate(models):
        longer = 3 if other_tokens and i == 0 else 0
        vocab = models[name].taps.vocab
        ids[name] = [
            random_tokens(1, 4 + row % 5 + longer, seed=row + 1000 * bool(longer), vocab=vocab)[0].tolist()
            for row in range(count)
        ]
        at[name] = [len(tokens) - 1 - row % 2 for row, tokens in enumerate(ids[name])]
    prompts = pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(count)],
            "text": ["x"] * count,
            "pair_id": [f"pair{i // 2}" for i in range(count)],
            "language": ["en", "zh"] * (count // 2),
            "split": ["train"] * train + ["validation"] * VALIDATION,
        }
    )
    return MemoryLab(models, ids, at, prompts)


def experiment(**changes: Any) -> RankSweep:
    asked = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": 1, "n_boot": 200}
    return RankSweep(**{**asked, "alphas": (0.7, 1.0), "ks": (1, 2, 5, 999), "draws": 2, **changes})


def plain_kl(lab: MemoryLab, spec: RankSweep, row: int, vectors: Array) -> Array:
    """KL(patched || unpatched) of one prompt of the target by plain hooks."""
    lm, position = lab.models["tuned"], lab.at["tuned"][row]
    ids = lab.ids["tuned"][row]
    read = position if spec.read_at == "patched" else len(ids) - 1
    plain = patch_oracle.log_probs(lm.model, ids, read)
    put = torch.as_tensor(vectors, dtype=torch.float32)
    with patch_oracle.patched(lm.taps, Site(spec.component, spec.layer), position, put):
        patched = patch_oracle.log_probs(lm.model, ids, read, len(vectors))
    return np.asarray(patch_oracle.kl(patched, plain))


def amplified(spec: RankSweep, vector: Array, mean: Array, alpha: float) -> Array:
    return alpha * vector if spec.scale == "vector" else mean + alpha * (vector - mean)


@pytest.mark.parametrize(
    ("family", "scale", "basis"),
    [("qwen3", "vector", "map"), ("gemma2", "deviation", "map"), ("gpt_neox", "vector", "difference"),
     ("gpt2", "deviation", "difference")],
)  # fmt: skip
def test_every_cell_is_what_plain_hooks_give(family: str, scale: str, basis: str) -> None:
    lab = lab_of(planted_pair(family))
    spec = experiment(scale=scale, basis=basis, read_at="decision")
    found = run(spec, lab)
    x = lab.activations("base", SITE, "", range(TRAIN)).astype(float)
    y = lab.activations("tuned", SITE, "", range(TRAIN)).astype(float)
    mean = y.mean(axis=0)
    fitted = ScaledProcrustes(0.05).fit(x, y)
    width = y.shape[1]
    if basis == "map":
        directions = fitted.output_basis()
    else:
        directions = ranks.leading_directions(Plan.of(spec, lab, Sides.of(spec, lab)).apart).basis
    table = found.tables["prompts"].filter(pl.col("split") == "validation")
    for row in (TRAIN, TRAIN + 3):
        own, source = (lab.activations(name, SITE, "", [row]).astype(float) for name in ("tuned", "base"))
        cells: dict[tuple[str, int, float], Array] = {}
        for alpha in spec.alphas:
            whole = amplified(spec, fitted.predict(source)[0], mean, alpha)
            cells["mapped", 0, alpha] = whole
            cells["raw", 0, alpha] = MomentMatching().fit(x, y).predict(source)[0]
            for k in (1, 2, 5, width):
                part = fitted.at_rank(k).predict(source)[0]
                cells["truncated", k, alpha] = amplified(spec, part, mean, alpha)
                inside = directions[:, :k] @ directions[:, :k].T
                cells["projector", k, alpha] = own[0] + inside @ (whole - own[0])
        expected = plain_kl(lab, spec, row, np.stack(list(cells.values())))
        mine = table.filter(pl.col("row") == row)
        for (kind, k, alpha), kl in zip(cells, expected, strict=True):
            got = mine.filter((pl.col("kind") == kind) & (pl.col("k") == k) & (pl.col("alpha") == alpha))
            # float32 through two blocks; KLs here are up to about 1.
            assert got["kl"].to_list() == pytest.approx([kl], abs=2e-5), (kind, k, alpha)
    assert table["kl"].max() > 0.05  # type: ignore[operator]


def test_the_full_rank_and_the_full_basis_are_the_mapped_patch() -> None:
    lab = lab_of(planted_pair("qwen3"))
    table = run(experiment(), lab).tables["prompts"]
    width = lab.sizes("tuned")["d"]
    whole = table.filter(pl.col("kind") == "mapped")["kl"].to_numpy()
    assert whole.mean() > 1e-3
    for kind in ("truncated", "projector", "random"):
        full = table.filter((pl.col("kind") == kind) & (pl.col("k") == width))["kl"].to_numpy()
        # The same vectors up to float64 rounding before they become float32.
        np.testing.assert_allclose(full, whole, rtol=0, atol=1e-5)


def test_planted_rank_is_found_and_random_bases_do_not_carry_it() -> None:
    lab = lab_of(planted_pair("qwen3"))
    spec = experiment(map=MapSpec(method="Identity"), basis="difference", ks=(), alphas=(1.0,), draws=3)
    found = run(spec, lab)
    assert found.summary["truncated"] is None
    at = found.summary["projector"][0]
    assert at["smallest"] is not None
    assert at["smallest"] <= PLANTED
    coverage = found.table.filter((pl.col("split") == "validation") & (pl.col("k") == PLANTED))
    value = dict(coverage.select("kind", "value").iter_rows())
    assert value["projector"] == pytest.approx(100, abs=0.1)
    assert value["random"] < 50
    spectrum = found.tables["spectrum"].filter(pl.col("series") == "difference")["value"].to_numpy()
    assert spectrum[PLANTED] < 1e-4 * spectrum[PLANTED - 1], "the singular values fall off behind it"
    assert found.summary["spectra"]["difference"]["needed"] <= PLANTED


def test_equal_models_have_no_ratios_and_say_why() -> None:
    base = from_parts(tiny("qwen3"))
    lab = lab_of({"base": base, "tuned": base})
    with pytest.raises(PatchError, match="nothing to swap"):
        run(experiment(map=MapSpec(method="Identity"), basis="difference"), lab)
    found = run(experiment(scale="deviation", alphas=(1.0,)), lab)
    assert "raw patch changes nothing" in found.summary["truncated"]["reason"]
    assert found.summary["truncated"]["smallest"] is None
    assert found.table.filter(pl.col("kind") == "truncated")["value"].null_count() == 8


def test_models_with_other_tokens_are_swept() -> None:
    other = from_parts(tiny("llama", seed=5, vocab_size=90))
    lab = lab_of({"base": other, "tuned": from_parts(tiny("qwen3"))}, other_tokens=True)
    found = run(experiment(ks=(1, 4)), lab)
    assert found.summary["reference"] == "raw"
    assert found.table["value"].is_not_null().all()


def test_models_of_other_width_are_compared_with_the_mean() -> None:
    other = from_parts(tiny("llama", seed=5, hidden_size=48))
    lab = lab_of({"base": other, "tuned": from_parts(tiny("qwen3"))})
    found = run(experiment(ks=(1, 4)), lab)
    assert found.summary["reference"] == "mean"
    values = found.tables["prompts"].filter((pl.col("kind") == "raw") & (pl.col("row") == TRAIN))
    mean = lab.activations("tuned", SITE, "", range(TRAIN)).astype(float).mean(axis=0)
    expected = plain_kl(lab, experiment(), TRAIN, mean[None])
    assert values["kl"].to_list() == pytest.approx([expected[0]] * 2, abs=2e-5)


def test_train_prompts_are_mapped_without_themselves() -> None:
    """With fewer prompts than dimensions a map repeats what it was fitted on: the best k would be "full"."""
    lab = lab_of(planted_pair("qwen3"), train=24)
    spec = experiment(folds=4, map=MapSpec(shrinkage=0.0))
    sides = Sides.of(spec, lab)
    plan = Plan.of(spec, lab, sides)
    in_sample = plan.fitted.predict(sides.source_train) - sides.target_train
    assert np.abs(in_sample).max() < 1e-3, "the map of all train prompts has no error on them"
    assert np.abs(plan.apart).max() > 0.1
    folds = sides.folds(4, spec.seed)
    assert [len(set(folds[sides.groups == g])) for g in set(sides.groups.tolist())] == [1] * 12
    for fold in range(4):
        out = folds == fold
        own = ScaledProcrustes(0.0).fit(sides.source_train[~out], sides.target_train[~out])
        np.testing.assert_allclose(plan.vectors.mapped[:24][out], own.predict(sides.source_train[out]))
        truncated = plan.vectors.paths[fold].at(np.flatnonzero(out), (1, 5))
        np.testing.assert_allclose(truncated, own.predict_path(sides.source_train[out], (1, 5)))


def simulated(disagree: bool) -> RankData:
    """KLs where α = 1 and k = 2 are best on train; on validation α = 2 and k = 1 are, if they disagree."""
    spec = experiment(alphas=(1.0, 2.0), ks=(1, 2))
    cells = [Cell("raw", 0, 0, 1.0), *(Cell("mapped", 0, 0, a) for a in spec.alphas)]
    for kind in ("truncated", "projector", "random"):
        cells += [Cell(kind, int(kind == "random"), k, a) for k in (1, 2) for a in spec.alphas]
    in_train = np.arange(40) < 20
    noise = np.random.default_rng(0).uniform(0.95, 1.05, size=(len(cells), 40))
    level = {("truncated", 1, 1.0): 0.6, ("truncated", 2, 1.0): 0.2, ("truncated", 1, 2.0): 0.7}
    kl = np.array([level.get((c.kind, c.k, c.alpha), 1.0) for c in cells])[:, None] * noise
    if disagree:
        flip = {("truncated", 1, 2.0): 0.1, ("truncated", 2, 1.0): 0.9}
        for i, c in enumerate(cells):
            if (c.kind, c.k, c.alpha) in flip:
                kl[i, ~in_train] = flip[c.kind, c.k, c.alpha]
    return RankData(spec, cells, kl, np.arange(40), in_train, 1e-6)


def test_what_is_chosen_is_chosen_on_train_alone() -> None:
    for disagree in (False, True):
        table, found = choice(simulated(disagree))
        assert found["truncated"]["best"] == {"k": 2, "alpha": 1.0}
        assert found["truncated"]["smallest"] == {"k": 2, "alpha": 1.0}
        at = dict(table.filter(pl.col("kind") == "truncated").select("k", "alpha").iter_rows())
        assert at == {1: 1.0, 2: 1.0}


def test_specs_say_what_they_cannot_do() -> None:
    with pytest.raises(PatchError, match="no ranked output"):
        experiment(map=MapSpec(method="RidgeTransport"))
    with pytest.raises(PatchError, match="no ranked output"):
        experiment(map=MapSpec(clusters=3))
    with pytest.raises(PatchError, match="no such rank"):
        experiment(ks=(0, 3))
    with pytest.raises(PatchError, match="amplitudes"):
        experiment(alphas=(float("nan"),))
    spec = experiment(basis="difference", map=MapSpec(method="MeanShift"))
    assert experiment_from_json(spec.to_json()) == spec


def test_a_sweep_reports_and_stops() -> None:
    lab = lab_of(planted_pair("qwen3"))
    lab.stop_after = 2
    with pytest.raises(JobError, match="cancelled"):
        run(experiment(), lab)


def test_a_train_split_too_small_for_folds_says_so() -> None:
    lab = lab_of(planted_pair("qwen3"), train=2)
    lab.prompts = lab.prompts.drop("pair_id")
    with pytest.raises(PatchError, match="too small"):
        experiment().run(lab)


def test_a_grid_that_is_too_large_is_refused_before_anything_runs_yet_can_be_read() -> None:
    """Every rank is run at every α: 527 of these came from one link."""
    place = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 0}
    many, most = tuple(range(1, 66)), tuple(range(1, 65))
    nothing: Any = None
    for changes, said in (({"alphas": many}, "amplitudes"), ({"ks": many}, "ranks")):
        kinds = [RankSweep, MappedPatch, Condition] if said == "amplitudes" else [RankSweep]
        for kind in kinds:
            asked = kind(**place, **changes)
            assert kind.from_json(asked.to_json()) == asked
            with pytest.raises(PatchError, match=f"too many {said}.*at most 64.*Given: 65"):
                asked.run(nothing)
    with pytest.raises(AttributeError):  # as many as may be: it begins, with nothing to run on
        RankSweep(**place, alphas=most, ks=most).run(nothing)
