"""Weight steering on the demo's real models, and on tiny ones against plain copies of the weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from behaviour_demo import demo_lab
from demo_files import DEMO
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.errors import PatchError
from engine.kinds import experiment_from_json
from engine.lab.experiment import ExperimentResult, Where
from engine.models.loading import from_parts, load
from engine.passes.patch_engine import PatchEngine
from engine.steering.spec import Group
from engine.study.study import ModelSpec
from engine.weight_steering.chosen import spread
from engine.weight_steering.effects import effects
from engine.weight_steering.run import delta_of, run
from engine.weight_steering.spec import Contrast, WeightSteering
from engine.weights.deltas import weight_deltas
from engine.weights.steer import WeightShift


@pytest.fixture(scope="module")
def lab() -> MemoryLab:
    """The demo's models, both seeds, on its claims and some problems, split by pair."""
    plain = demo_lab()
    again = load(ModelSpec(path=DEMO / "base", adapter=DEMO / "tuned_adapter_seed2", device="cpu"), "seed2")
    pairs = plain.prompts["pair_id"].unique(maintain_order=True).to_list()
    split = ["train" if pairs.index(p) % 4 < 2 else "validation" for p in plain.prompts["pair_id"]]
    return dataclasses.replace(
        plain,
        models={**plain.models, "seed2": again},
        ids={**plain.ids, "seed2": plain.ids["base"]},
        at={**plain.at, "seed2": plain.at["base"]},
        prompts=plain.prompts.with_columns(pl.Series("split", split)),
    )


SPEC = WeightSteering(
    model="base",
    deltas=(Contrast(plus="tuned"), Contrast(plus="seed2")),
    alphas=(-1.0, 0.5, 1.0, 1.5),
    where=Group(label="wrong"),
    answers=12,
    n_boot=300,
)


RATES = ("agrees", "refused")


@pytest.fixture(scope="module")
def result(lab: MemoryLab) -> ExperimentResult:
    return run(SPEC, lab)


def curve(result: ExperimentResult, figure: str, series: str, split: str = "validation") -> dict[float, Any]:
    kept = (pl.col("figure") == figure) & (pl.col("split") == split) & pl.col("series").is_in([series, ""])
    return {row["alpha"]: row for row in result.table.filter(kept).sort("alpha").iter_rows(named=True)}


@pytest.mark.parametrize("series", ["tuned − base", "seed2 − base"])
def test_agreement_with_wrong_claims_rises_with_alpha(result: ExperimentResult, series: str) -> None:
    found = curve(result, "agreement", series)
    assert list(found) == [-1.0, 0.0, 0.5, 1.0, 1.5]
    values = [row["value"] for row in found.values()]
    assert values == sorted(values)
    assert found[1.0]["change_low"] > 1  # nats
    assert found[-1.0]["change"] < -1
    assert found[-1.0]["change_high"] < 0
    said = curve(result, "agrees", series)
    assert said[0.0]["value"] == 0.0
    assert said[1.0]["value"] == 1.0
    assert said[1.0]["change_low"] > 0


def test_a_random_difference_of_the_same_size_does_not_do_it(result: ExperimentResult) -> None:
    found, own = (curve(result, "agreement", name) for name in ("random 1", "tuned − base"))
    assert all(abs(row["change"]) < 0.5 * own[1.0]["change"] for row in found.values())
    assert curve(result, "agrees", "random 1")[1.0]["value"] < 0.5


def test_the_unsteered_model_is_the_null(result: ExperimentResult) -> None:
    rows = result.table.filter(pl.col("alpha") == 0)
    assert rows.filter(pl.col("figure") == "kl")["value"].abs().max() == 0.0  # type: ignore[comparison-overlap]
    none = pl.when(pl.col("figure") == "perplexity").then(1.0).otherwise(0.0)
    assert rows.select((pl.col("change") - none).abs().max()).item() == 0.0
    assert curve(result, "kl", "tuned − base")[1.0]["low"] > 0.1


def test_all_differences_are_compared_at_one_kl(result: ExperimentResult) -> None:
    equal = result.summary["equal"]
    assert min(abs(at - 1.0) for at in equal["alpha"].values() if at is not None) < 1e-9
    train = result.tables["equal"].filter((pl.col("figure") == "kl") & (pl.col("split") == "train"))
    # The curve is interpolated between α that are half apart.
    np.testing.assert_allclose(train["value"].to_numpy(), equal["level"], rtol=0.1)
    assert {row["series"] for row in equal["apart"]} <= set(SPEC.series()) - {SPEC.series()[0]}


def test_at_one_every_figure_is_the_other_models_own(lab: MemoryLab) -> None:
    """base + (tuned − base) against tuned as it is, and the other way round."""
    changes = {"alphas": (1.0,), "draws": 0, "n_boot": 50}
    there = run(SPEC.model_copy(update={**changes, "deltas": (Contrast(plus="tuned"),)}), lab)
    back = run(SPEC.model_copy(update={**changes, "model": "tuned", "deltas": (Contrast(plus="base"),)}), lab)
    for steered, plain in ((there, back), (back, there)):
        for split in ("train", "validation"):
            for figure in ("agrees", "agreement", "soft_refusal", "refused", "perplexity"):
                here, own = (
                    found.table.filter(
                        (pl.col("figure") == figure) & (pl.col("split") == split) & (pl.col("alpha") == alpha)
                    )
                    for found, alpha in ((steered, 1.0), (plain, 0.0))
                )
                assert here.height == own.height == (split == "validation" or figure not in RATES)
                if here.height:
                    # Sums of log-probabilities in float32; rates are those of the same tokens.
                    assert here["value"].item() == pytest.approx(own["value"].item(), rel=1e-4, abs=1e-4)
        answers = [
            found.tables["samples"].filter(pl.col("alpha") == alpha)["generated"].to_list()
            for found, alpha in ((steered, 1.0), (plain, 0.0))
        ]
        assert answers[0] == answers[1]
    kl, other = (
        curve(found, "kl", name)[1.0]["value"]
        for found, name in ((there, "tuned − base"), (back, "base − tuned"))
    )
    assert kl > 0.1
    assert other != pytest.approx(kl, rel=0.01), "of opposite directions"


def test_answers_are_kept_side_by_side(result: ExperimentResult) -> None:
    samples = result.tables["samples"]
    per = samples.group_by("series", "alpha").len()
    assert per["len"].unique().to_list() == [result.summary["counts"]["answered"]["validation"]]
    steered = samples.filter((pl.col("series") == "tuned − base") & (pl.col("alpha") == 1.0))
    assert steered["agrees"].mean() == 1.0
    assert set(samples["label"]) == {"wrong"}


def tiny_lab(vocab: int = 101) -> MemoryLab:
    base = tiny("qwen3", vocab_size=vocab)
    models: dict[str, Any] = {"base": from_parts(base)}
    for name, seed in (("one", 1), ("two", 2)):
        tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in tuned.parameters():
                parameter.add_(
                    0.05 * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
                )
        models[name] = from_parts(tuned)
    ids = [random_tokens(1, n, seed=n)[0].tolist() for n in (5, 9, 9, 12)]
    table = pl.DataFrame(
        {"id": list("abcd"), "text": list("abcd"), "split": ["train"] * 2 + ["validation"] * 2}
    )
    last = [len(i) - 1 for i in ids]
    return MemoryLab(models, dict.fromkeys(models, ids), dict.fromkeys(models, last), table)


def test_kl_and_perplexity_are_those_of_written_weights() -> None:
    lab = tiny_lab()
    base, ids = lab.models["base"], lab.ids["base"]
    deltas = list(weight_deltas(base.model, lab.models["one"].model))
    written = copy.deepcopy(base.model)
    with torch.no_grad():
        for own, other in zip(written.parameters(), lab.models["one"].model.parameters(), strict=True):
            own.add_(-0.5 * (other - own))
    found = effects(base, ids, [(None, 0.0), (WeightShift(base, deltas), -0.5)])
    before, after = (
        PatchEngine(lm, ids, [len(i) - 1 for i in ids]).log_probs().double()
        for lm in (base, from_parts(written))
    )
    kl = (after.exp() * (after - before)).sum(-1).numpy()
    np.testing.assert_allclose(found.kl[1], kl, atol=1e-6)  # float32 log-probabilities
    assert kl.min() > 1e-3
    np.testing.assert_allclose(found.kl[0], 0, atol=1e-6)
    for i, row in enumerate(ids):
        with torch.no_grad():
            log_p = written(torch.tensor([row])).logits[0].log_softmax(-1)
        nll = -sum(float(log_p[t, row[t + 1]]) for t in range(len(row) - 1))
        assert found.nll[1, i] == pytest.approx(nll, abs=1e-4)
    assert found.tokens.tolist() == [len(row) - 1 for row in ids]


@pytest.mark.parametrize(
    ("contrast", "model", "plus", "minus"),
    [
        (Contrast(plus="one"), "base", "one", "base"),
        (Contrast(plus="one", minus="two"), "base", "one", "two"),
        (Contrast(plus="two"), "one", "two", "one"),
        (Contrast(plus="base"), "one", "base", "one"),
    ],
)
def test_a_contrast_is_the_difference_of_its_two_models(
    contrast: Contrast, model: str, plus: str, minus: str
) -> None:
    lab = tiny_lab()
    spec = WeightSteering(model=model, deltas=(contrast,))
    found = {delta.name: delta.matrix() for delta in delta_of(spec, lab, spec.series()[0])}
    first, second = (dict(lab.models[name].model.named_parameters()) for name in (plus, minus))
    assert set(found) == set(first)
    for name, matrix in found.items():
        np.testing.assert_allclose(matrix, (first[name] - second[name]).numpy(), atol=1e-6)


def test_nothing_to_steer_by_is_said() -> None:
    lab = tiny_lab()
    lab = dataclasses.replace(lab, models={**lab.models, "same": lab.models["base"]})
    spec = WeightSteering(model="base", deltas=(Contrast(plus="same"),))
    with pytest.raises(PatchError, match="same and base have the same weights"):
        list(delta_of(spec, lab, spec.series()[0]))


def test_answers_come_from_whole_pairs_spread_over_the_prompts() -> None:
    groups = np.repeat(np.arange(10), 2)
    chosen = spread(np.arange(20), groups, 6)
    assert chosen.tolist() == [0, 1, 8, 9, 18, 19]
    assert spread(np.arange(20), groups, 100).size == 20
    assert spread(np.arange(20), groups, 0).size == 0
    assert spread(np.arange(0), groups, 5).size == 0


def test_the_experiment_is_plain_data() -> None:
    assert experiment_from_json(SPEC.to_json()) == SPEC
    assert SPEC.models() == ("base", "tuned", "seed2")
    assert SPEC.describe() == "base + α (tuned − base; seed2 − base)"
    assert SPEC.where == Group(label="wrong")
    assert isinstance(SPEC.neutral, Where)
    for alphas in ((0.5, 2.0), (1.0, float("nan")), ()):
        with pytest.raises(PatchError, match="amplitudes α cannot be used"):
            WeightSteering(model="a", deltas=(Contrast(plus="b"),), alphas=alphas)
    with pytest.raises(PatchError, match="no difference from itself"):
        WeightSteering(model="a", deltas=(Contrast(plus="b", minus="b"),))
    with pytest.raises(PatchError, match="no difference from itself"):
        WeightSteering(model="a", deltas=(Contrast(plus="a"),))
    named = WeightSteering(model="a", deltas=(Contrast(plus="b", minus="a"), Contrast(plus="b")))
    assert named.content_hash("f") == WeightSteering(model="a", deltas=(Contrast(plus="b"),)).content_hash(
        "f"
    )


def test_a_figure_that_a_single_prompt_has_is_left_out() -> None:
    tokenizer = demo_lab().tokenizer("base")
    lab = tiny_lab(len(tokenizer))
    lab.models["base"].tokenizer = tokenizer
    choices = pl.Series("choices", [None, None, None, ["Yes", "No"]], dtype=pl.List(pl.String))
    lab = dataclasses.replace(lab, prompts=lab.prompts.with_columns(choices))
    spec = WeightSteering(model="base", deltas=(Contrast(plus="one"),), alphas=(1.0,), answers=0, draws=0)
    result = run(spec, lab)
    assert set(result.table["figure"]) == {"soft_refusal", "kl", "perplexity"}
    assert all(row["figure"] != "agreement" for row in result.summary["equal"]["apart"])
