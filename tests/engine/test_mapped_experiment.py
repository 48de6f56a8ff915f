"""Mapped patches on tiny models, against dense formulas and plain forward hooks one prompt at a time."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from sklearn.linear_model import Ridge
from tiny_models import tiny

from engine.errors import AnalysisError, JobError, PatchError
from engine.kinds import experiment_from_json
from engine.lab.experiment import ExperimentResult, Where, resampling_groups
from engine.lab.repeat import Repeat, largest_difference
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine
from engine.patching.mapped_spec import CONTROLS, MappedPatch
from engine.patching.spec import Condition
from engine.patching.vectors import intervention, wrong_pairs
from engine.stats.means import bootstrap_mean
from engine.transport.named import MapSpec

CHANGED, LAYERS, PAIRS, TRAIN = 2, 4, 14, 8
KL_TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
"""float32: two orders of summation through two blocks differ by some 1e-6 in a log-probability."""


def table(pairs: int = PAIRS, train: int = TRAIN) -> pl.DataFrame:
    """Prompts in pairs of two languages; the first pairs are the train split."""
    rows = [
        {
            "id": f"p{pair}-{language}",
            "text": f"prompt {pair} {language}",
            "pair_id": f"p{pair}",
            "language": language,
            "category": ("add", "buy")[pair % 2],
            "split": "train" if pair < train else "validation",
        }
        for pair in range(pairs)
        for language in ("en", "zh")
    ]
    return pl.DataFrame(rows)


def tokens(seed: int, count: int, low: int = 5, high: int = 13) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 101, size=rng.integers(low, high)).tolist() for _ in range(count)]


def lab_of(models: dict[str, Any], ids: dict[str, list[list[int]]]) -> MemoryLab:
    loaded = {name: from_parts(model, name=name) for name, model in models.items()}
    at = {name: [len(row) - 1 - (i % 3) for i, row in enumerate(rows)] for name, rows in ids.items()}
    return MemoryLab(loaded, ids, at, table())


@pytest.fixture(scope="module")
def lab() -> MemoryLab:
    """base and tuned: equal but for the MLP of one block."""
    base = tiny("qwen3", seed=3, num_hidden_layers=LAYERS)
    tuned = copy.deepcopy(base)
    weight = tuned.model.layers[CHANGED].mlp.down_proj.weight
    with torch.no_grad():
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    ids = tokens(0, 2 * PAIRS)
    return lab_of({"base": base, "tuned": tuned}, {"base": ids, "tuned": ids})


def experiment(**changes: Any) -> MappedPatch:
    plain = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": CHANGED}
    return MappedPatch(**{**plain, "alphas": (0.5, 1.0, 1.5), "n_boot": 200, **changes})


def kl_of(result: ExperimentResult, kind: str, alpha: float) -> np.ndarray:
    every = result.tables["kl"].filter((pl.col("kind") == kind) & (pl.col("alpha") == alpha)).sort("row")
    return every["kl"].to_numpy()


def plain_kl(lm: LoadedModel, site: Site, ids: list[int], at: int, vector: np.ndarray) -> float:
    """KL(patched || unpatched) of one prompt by two plain forward passes."""
    before = patch_oracle.log_probs(lm.model, ids, at)[0]
    with patch_oracle.patched(lm.taps, site, at, torch.as_tensor(vector)[None]):
        after = patch_oracle.log_probs(lm.model, ids, at)[0]
    return float(patch_oracle.kl(after, before))


@pytest.mark.parametrize(
    "changes", [{}, {"scale": "deviation", "raw_alpha": "scaled"}, {"component": "head_z"}]
)
def test_every_kind_and_amplitude_equals_plain_hooks(lab: MemoryLab, changes: dict[str, Any]) -> None:
    wanted = experiment(map=MapSpec(method="RidgeTransport", penalty=1.0), **changes)
    result = wanted.run(lab)
    rows = np.arange(2 * PAIRS)
    target = lab.models["tuned"]
    checked, moved = 0, 0
    every = result.tables["kl"].select("kind", "alpha").unique().rows()
    assert {kind for kind, _ in every} == {"mapped", "raw", *CONTROLS}
    for kind, alpha in every:
        site, vectors, places = intervention(lab, wanted, rows, alpha, kind)
        found = kl_of(result, kind, alpha)
        for row in (0, 5, 15, 16, 23, 27):
            ids = lab.ids["tuned"][row]
            expected = plain_kl(target, site, ids, int(places[row]), vectors[row])
            np.testing.assert_allclose(found[row], expected, **KL_TOLERANCE)
            checked, moved = checked + 1, moved + (expected > 1e-4)
    assert moved > checked / 2, "most patches must move the distribution, or nothing is tested"


def captured(lab: MemoryLab, name: str, layer: int) -> np.ndarray:
    """The MLP's output at each prompt's token, by a hook on the plain forward pass, float64."""
    rows: list[np.ndarray] = []
    module = lab.models[name].model.model.layers[layer].mlp
    for ids, at in zip(lab.ids[name], lab.at[name], strict=True):
        handle = module.register_forward_hook(
            lambda _m, _a, out, at=at: rows.append(out[0, at].double().numpy())
        )
        with torch.no_grad():
            lab.models[name].model(input_ids=torch.tensor([ids]))
        handle.remove()
    return np.stack(rows)


def ridge(x: np.ndarray, y: np.ndarray, at: np.ndarray, penalty: float) -> np.ndarray:
    mx, sx, my, sy = x.mean(0), x.std(0, ddof=1), y.mean(0), y.std(0, ddof=1)
    fit = Ridge(alpha=penalty, fit_intercept=False).fit((x - mx) / sx, (y - my) / sy)
    return my + fit.predict((at - mx) / sx) * sy


def test_vectors_equal_dense_formulas(lab: MemoryLab) -> None:
    wanted = experiment(map=MapSpec(method="RidgeTransport", penalty=2.0))
    rows = np.arange(2 * PAIRS)
    train = rows[: 2 * TRAIN]
    x, y = captured(lab, "base", CHANGED), captured(lab, "tuned", CHANGED)
    other_x, other_y = captured(lab, "base", 0), captured(lab, "tuned", 0)
    order = wrong_pairs(lab.prompts[train], wanted.seed)
    mean, spread = y[train].mean(0), y[train].std(0, ddof=1)
    mapped = ridge(x[train], y[train], x, 2.0)
    expected = {
        "mapped": mapped,
        "raw": mean + (x - x[train].mean(0)) / x[train].std(0, ddof=1) * spread,
        "bogus": ridge(other_x[train], other_y[train], x, 2.0),
        "shuffled": ridge(x[train], y[train][order], x, 2.0),
        "mean": np.broadcast_to(mean, y.shape),
        "self": y,
    }
    for kind, vectors in expected.items():
        _, found, _ = intervention(lab, wanted, rows, 1.5, kind)
        np.testing.assert_allclose(found, 1.5 * vectors, rtol=2e-4, atol=2e-5)  # float32 activations
    _, turned, _ = intervention(lab, wanted, train, 1.0, "random")
    sizes = [np.linalg.svd(v - mean, compute_uv=False) for v in (turned, mapped[train])]
    np.testing.assert_allclose(sizes[0], sizes[1], rtol=1e-3, atol=1e-4 * sizes[1][0])
    assert np.abs(turned - mapped[train]).max() > 0.1 * np.abs(mapped).max()


@pytest.mark.parametrize("method", ["Identity", "MomentMatching", "ScaledProcrustes"])
def test_the_random_control_is_as_large_as_the_map_s_output_on_new_prompts(
    lab: MemoryLab, method: str
) -> None:
    """Also where there are fewer train prompts than dimensions and the map writes in all of them."""
    wanted, rows = experiment(map=MapSpec(method=method)), np.arange(2 * PAIRS)
    mean = captured(lab, "tuned", CHANGED)[: 2 * TRAIN].mean(0)
    assert mean.size > 2 * TRAIN
    mapped, turned = (intervention(lab, wanted, rows, 1.0, k)[1] - mean for k in ("mapped", "random"))
    # float32 of vectors of size 1
    np.testing.assert_allclose(turned @ turned.T, mapped @ mapped.T, rtol=1e-4, atol=1e-4)
    assert np.abs(turned - mapped).max() > 0.1 * np.abs(mapped).max()


@pytest.mark.parametrize(("kind", "method"), [("literal", "Identity"), ("raw", "MomentMatching")])
def test_maps_that_are_plain_conditions_give_their_kl(lab: MemoryLab, kind: str, method: str) -> None:
    site = {"target": "tuned", "source": "base", "component": "resid_post", "layer": CHANGED}
    condition = Condition(**site, kind=kind, alphas=(0.5, 1.0), split="all", n_boot=200)
    plain = condition.run(lab).tables["table"]
    result = experiment(**site, map=MapSpec(method=method), alphas=(0.5,)).run(lab)
    for alpha in (0.5, 1.0):
        wanted = plain.filter(pl.col("alpha") == alpha).sort("row")["kl"].to_numpy()
        # one map is computed in float64, the other in float32 and its own order of operations
        np.testing.assert_allclose(kl_of(result, "mapped", alpha), wanted, **KL_TOLERANCE)
        _, ours, _ = intervention(lab, experiment(**site, map=MapSpec(method=method)), [3, 20], alpha)
        _, theirs, _ = intervention(lab, condition, [3, 20], alpha)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    if kind == "raw":
        np.testing.assert_allclose(kl_of(result, "raw", 1.0), kl_of(result, "mapped", 1.0), **KL_TOLERANCE)


def test_no_deviation_is_the_mean(lab: MemoryLab) -> None:
    result = experiment(scale="deviation", alphas=(0.0, 1.0), map=MapSpec(method="MeanShift")).run(lab)
    mean = kl_of(result, "mean", 1.0)
    for kind in ("mapped", "bogus", "random"):
        np.testing.assert_allclose(kl_of(result, kind, 0.0), mean, **KL_TOLERANCE)
    site = {"target": "tuned", "source": "base", "component": "mlp_out", "layer": CHANGED}
    condition = Condition(**site, kind="mean", split="all", n_boot=200).run(lab).tables["table"]
    np.testing.assert_allclose(mean, condition.sort("row")["kl"].to_numpy(), **KL_TOLERANCE)


@pytest.mark.parametrize(("component", "layer"), [("resid_post", 1), ("attn_out", CHANGED), ("head_z", 0)])
def test_upstream_of_the_change_nothing_can_drop(lab: MemoryLab, component: str, layer: int) -> None:
    result = experiment(component=component, layer=layer, map=MapSpec(method="Identity")).run(lab)
    for split in ("train", "validation"):
        found = result.summary["splits"][split]
        assert abs(found["kl"]["raw"]["estimate"]) <= 1e-6
        assert found["drop"] is None
        assert "within the self-patch floor" in found["reason"]
    assert np.abs(kl_of(result, "mapped", 1.0)).max() <= 1e-6
    assert result.summary["best"]["alpha"] == 1.0
    assert result.summary["map"]["r2_validation"] == pytest.approx(1.0)


def test_controls_are_judged_by_paired_differences(lab: MemoryLab) -> None:
    """A shift of the mean keeps every prompt's own vector, which a random rotation and the mean don't; it
    does not look at the pairing, so that there is nothing to shuffle."""
    asked = experiment(component="resid_post", map=MapSpec(method="MeanShift"))
    result = asked.run(lab)
    found = result.summary["splits"]["validation"]
    assert found["n"] == 2 * (PAIRS - TRAIN)
    assert found["n_groups"] == PAIRS - TRAIN
    assert result.summary["interval"]["unit"] == "pair"
    assert set(found["controls"]) == set(CONTROLS) - {"shuffled"}
    assert "does not look at" in result.summary["left_out"]["shuffled"]
    assert result.summary["map"]["r2_shuffled"] is None
    kept = result.tables["prompts"].filter(split="validation")
    drawn = {name: getattr(asked, name) for name in ("n_boot", "level", "seed")}
    for kind, control in found["controls"].items():
        worse = found["kl"][kind]["estimate"] - found["kl"]["mapped"]["estimate"]
        assert control["estimate"] == pytest.approx(worse)
        paired = (kept[f"kl_{kind}"] - kept["kl_mapped"]).to_numpy()
        ends = bootstrap_mean(paired, groups=resampling_groups(kept), **drawn)
        assert (control["low"], control["high"]) == pytest.approx((ends.low, ends.high))
        assert control["beaten"] == (ends.low > 0)
    assert found["controls"]["random"]["beaten"]


def means(result: ExperimentResult, split: str) -> pl.DataFrame:
    curve = result.tables["curve"]
    return curve.filter((pl.col("split") == split) & (pl.col("kind") == "mapped")).sort("alpha")


def test_alpha_is_chosen_on_train_where_validation_would_choose_another(lab: MemoryLab) -> None:
    alphas = tuple(np.round(np.arange(0.0, 2.01, 0.1), 2).tolist())
    disagreed = 0
    for layer in range(LAYERS):
        chosen = experiment(component="attn_out", layer=layer, map=MapSpec(method="MeanShift"))
        chosen = chosen.model_copy(update={"target": "base", "alphas": alphas, "map": MapSpec(rank=2)})
        result = chosen.run(lab)
        train, validation = means(result, "train"), means(result, "validation")
        best = float(train["alpha"][train["kl"].arg_min()])  # type: ignore[arg-type]
        other = float(validation["alpha"][validation["kl"].arg_min()])  # type: ignore[arg-type]
        assert result.summary["best"] == {"alpha": best, "chosen_on": "train"}
        at = validation.filter(pl.col("alpha") == best).row(0, named=True)
        reported = result.summary["splits"]["validation"]["kl"]["mapped"]
        assert reported == pytest.approx({"estimate": at["kl"], "low": at["low"], "high": at["high"]})
        assert result.tables["table"].filter(pl.col("kind") == "mapped")["alpha"].unique().to_list() == [best]
        if other != best:
            disagreed += 1
            assert at["kl"] > validation["kl"].min()  # type: ignore[operator]
    assert disagreed, "the two splits must disagree somewhere, or nothing is pinned"


def test_alpha_auto_is_on_the_grid(lab: MemoryLab) -> None:
    result = experiment(component="mlp_out", map=MapSpec(rank=1), alphas=(0.3,)).run(lab)
    auto = result.summary["alpha_auto"]
    assert auto is not None
    assert result.summary["alphas"] == sorted({0.3, 1.0, auto})
    assert result.tables["curve"].filter(pl.col("kind") == "raw")["alpha"].unique().to_list() == [1.0]
    scaled = experiment(map=MapSpec(rank=1), alphas=(0.3,), raw_alpha="scaled").run(lab)
    raw = scaled.tables["curve"].filter((pl.col("kind") == "raw") & (pl.col("split") == "train"))
    assert raw["alpha"].to_list() == scaled.summary["alphas"]


def test_tables_agree_with_each_other(lab: MemoryLab) -> None:
    result = experiment().run(lab)
    prompts, drill = result.tables["prompts"], result.tables["table"]
    best = result.summary["best"]["alpha"]
    for kind in ("mapped", "shuffled", "random"):
        np.testing.assert_array_equal(prompts.sort("row")[f"kl_{kind}"].to_numpy(), kl_of(result, kind, best))
        rows = drill.filter(pl.col("kind") == kind)
        assert rows.sort("row")["kl"].to_list() == prompts.sort("row")[f"kl_{kind}"].to_list()
    assert (prompts["reduction"] - (prompts["kl_raw"] - prompts["kl_mapped"])).abs().max() == 0
    for split in ("train", "validation"):
        part, found = prompts.filter(pl.col("split") == split), result.summary["splits"][split]
        drop = 100 * part["reduction"].sum() / part["kl_raw"].sum()
        assert found["drop"]["estimate"] == pytest.approx(drop)
        assert found["delta"]["estimate"] == pytest.approx(part["reduction"].mean())
    assert drill["top_before"].list.len().unique().to_list() == [5]
    before = drill.group_by("row").agg(pl.col("top_before").n_unique())
    assert before["top_before"].max() == 1  # the unpatched tokens don't depend on the kind
    assert {"target_token", "source_token", "language"} <= set(drill.columns)


def test_prompts_of_one_language_are_reported_with_the_map_of_all(lab: MemoryLab) -> None:
    result = experiment(where=Where(language="zh")).run(lab)
    assert result.tables["prompts"]["language"].unique().to_list() == ["zh"]
    assert result.summary["map"]["n"] == 2 * TRAIN
    assert result.summary["splits"]["train"]["n"] == TRAIN
    _, some, _ = intervention(lab, experiment(), [1, 3], 1.0)
    _, same, _ = intervention(lab, experiment(where=Where(language="zh")), [1, 3], 1.0)
    np.testing.assert_array_equal(some, same)


@pytest.fixture(scope="module")
def strangers() -> MemoryLab:
    """Two models of different width and vocabulary that read the prompts in their own tokens."""
    small = tiny("gpt2", seed=1, hidden_size=24, num_hidden_layers=2)
    large = tiny("llama", seed=2, hidden_size=48, num_hidden_layers=3)
    ids = {"small": tokens(1, 2 * PAIRS), "large": tokens(2, 2 * PAIRS, 8, 17)}
    return lab_of({"small": small, "large": large}, ids)


@pytest.mark.parametrize(("target", "source"), [("small", "large"), ("large", "small")])
@pytest.mark.parametrize("method", ["RidgeTransport", "ScaledProcrustes"])
def test_models_of_two_widths_have_no_raw_condition(
    strangers: MemoryLab, target: str, source: str, method: str
) -> None:
    wanted = experiment(
        target=target, source=source, layer=1, component="resid_post", map=MapSpec(method=method)
    )
    result = wanted.run(strangers)
    assert "raw" in result.summary["left_out"]
    assert f"{source} has width" in result.summary["left_out"]["raw"]
    found = result.summary["splits"]["validation"]
    assert (found["delta"], found["drop"], found["correlation"]) == (None, None, None)
    assert "no raw condition" in found["reason"]
    assert set(found["kl"]) == {"mapped", *CONTROLS}
    site, vectors, places = intervention(strangers, wanted, [4, 25], 0.5)
    for row, vector, at in zip((4, 25), vectors, places, strict=True):
        ids = strangers.ids[target][row]
        np.testing.assert_allclose(
            kl_of(result, "mapped", 0.5)[row],
            plain_kl(strangers.models[target], site, ids, int(at), vector),
            **KL_TOLERANCE,
        )


def test_a_dimensionwise_map_between_widths_is_refused(strangers: MemoryLab) -> None:
    wanted = experiment(target="small", source="large", layer=1, map=MapSpec(method="MeanShift"))
    with pytest.raises(AnalysisError, match="widths 48 and 24"):
        wanted.run(strangers)


def test_what_cannot_be_run_says_why(lab: MemoryLab, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PatchError, match="Layer 9 is out of range for tuned"):
        experiment(layer=9).run(lab)
    alone = experiment(bogus_layer=CHANGED)
    assert "no other block" in alone.run(lab).summary["left_out"]["bogus"]
    with pytest.raises(PatchError, match="no bogus replacement"):
        intervention(lab, alone, [0], 1.0, "bogus")
    with pytest.raises(PatchError, match="unembedding of tuned is not stored"):
        experiment(map=MapSpec(method="LogitSubspaceRidge")).run(lab)
    monkeypatch.setattr(PatchEngine, "self_limit", -1.0)
    with pytest.raises(PatchError, match="changes its output"):
        experiment().run(lab)


def test_it_stops_between_batches(lab: MemoryLab) -> None:
    lab.reported.clear()
    lab.stop_after = 1
    try:
        with pytest.raises(JobError, match="cancelled"):
            experiment().run(lab)
    finally:
        lab.stop_after = None


def test_a_logit_subspace_takes_the_stored_unembedding(lab: MemoryLab) -> None:
    model = lab.models["tuned"].model
    lab.arrays["weights/tuned/unembedding"] = model.lm_head.weight.detach().numpy()
    lab.arrays["weights/tuned/final_norm_gain"] = model.model.norm.weight.detach().numpy()
    try:
        result = experiment(map=MapSpec(method="LogitSubspaceRidge", directions=8)).run(lab)
    finally:
        lab.arrays.clear()
    assert (
        result.summary["map"]["words"]
        == "ridge in the logit subspace, 8 logit directions, λ by leave-one-out"
    )
    assert np.isfinite(kl_of(result, "mapped", 1.0)).all()


def test_a_repetition_gives_the_same_numbers_and_another_seed_does_not(lab: MemoryLab) -> None:
    first = experiment()
    again = experiment_from_json(Repeat(of=first.to_json(), attempt=2).to_json())
    assert again.models() == ("tuned", "base")
    assert again.describe().startswith("again (2): tuned ← base, mlp_out@2")
    assert again.content_hash("f") != Repeat(of=first.to_json()).content_hash("f")
    result, repeated = first.run(lab), again.run(lab)
    assert largest_difference(result.tables, repeated.tables) == 0.0  # the same process, the same batches
    other = experiment(seed=1).run(lab)
    assert (largest_difference(result.tables, other.tables) or 0.0) > 1e-4  # another random rotation
    assert largest_difference(result.tables, {"table": other.table}) is None
    assert largest_difference(result.tables, experiment(alphas=(0.5,)).run(lab).tables) is None


def test_shared_tokens_are_a_diagnostic_beside_the_whole(
    lab: MemoryLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tokens shared: the same numbers; two of three: other ones, and their probability."""

    class Vocabulary:
        def __init__(self, last: int) -> None:
            self.last = last

        def get_vocab(self) -> dict[str, int]:
            return {f"t{i}": i for i in range(self.last)}

        def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
            return f"t{ids[0]}"

    vocab = lab.models["tuned"].taps.vocab
    sizes = {"tuned": vocab, "base": vocab}
    monkeypatch.setattr(type(lab), "tokenizer", lambda _self, name: Vocabulary(sizes[name]), raising=False)
    assert "shared" not in experiment(shared=False).to_json()
    assert "shared" not in experiment().run(lab).summary
    found = experiment(shared=True).run(lab).summary
    for split in ("train", "validation"):
        whole, shared = found["splits"][split], found["shared"][split]
        assert shared["coverage"] == pytest.approx(1.0, abs=1e-6)
        for kind, span in whole["kl"].items():
            assert shared["kl"][kind]["estimate"] == pytest.approx(span["estimate"], rel=1e-5, abs=1e-9)
        assert shared["delta"]["low"] == pytest.approx(whole["delta"]["low"], rel=1e-4, abs=1e-9)
    sizes["base"] = 2 * vocab // 3
    part = experiment(shared=True).run(lab).summary["shared"]["validation"]
    assert 0.3 < part["coverage"] < 0.95
    assert part["delta"]["estimate"] != pytest.approx(found["splits"]["validation"]["delta"]["estimate"])
