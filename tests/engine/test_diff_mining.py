"""Diff mining against plain Hugging Face passes, what counts as a context, planted words, and refusals."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from moved_pair import PROMPTS, lab_of, pair
from pydantic import ValidationError
from tiny_models import VARIED, tiny

from engine.diff_mining.contexts import told_apart
from engine.diff_mining.run import Change, floor, run
from engine.diff_mining.spec import DiffMining
from engine.diff_mining.topics import topics
from engine.errors import JobError, PatchError
from engine.models.loading import LoadedModel, from_parts

ASKED: dict[str, Any] = {"target": "tuned", "source": "base"}


def plain(lm: LoadedModel, ids: list[list[int]]) -> list[np.ndarray]:
    """Log-probabilities behind every token, by Hugging Face's own forward pass, float64 (tokens, V) each."""
    with torch.no_grad():
        return [
            lm.model(input_ids=torch.tensor([one]), use_cache=False)
            .logits[0]
            .double()
            .log_softmax(-1)
            .numpy()
            for one in ids
        ]


@pytest.mark.parametrize("family", VARIED)
def test_ratios_are_those_of_plain_passes(family: str) -> None:
    base, tuned = pair(family)
    lab = lab_of({"base": base, "tuned": tuned})
    found = run(DiffMining(**ASKED, over="prompts", least=1e-9, top=50), lab)
    ids = lab.ids["base"]
    assert len({one[0] for one in ids}) == PROMPTS, "no beginning is shared"
    after, before = plain(tuned, ids), plain(base, ids)
    means = [np.stack([np.exp(one).mean(axis=0) for one in said]) for said in (after, before)]
    want = (np.log(means[0]) - np.log(means[1])).mean(axis=0)
    shown = found.table
    assert np.allclose(shown["mean"], want[shown["token_id"]], atol=1e-4)
    assert np.allclose(shown["p_target"], means[0].mean(axis=0)[shown["token_id"]], rtol=1e-3)
    assert shown["mean"].max() == pytest.approx(want.max(), abs=1e-4)
    kl = [
        float((np.exp(a) * (a - b)).sum())
        for one, two in zip(after, before, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    assert found.summary["kl"] == pytest.approx(np.mean(kl), abs=1e-5)
    assert not torch.is_inference_mode_enabled(), "what runs next in this process can take gradients"
    assert torch.is_grad_enabled()
    assert found.summary["contexts"] == sum(map(len, ids))
    line = found.tables["contexts"].row(0, named=True)
    row, token = int(line["where"][1:]), line["token"]
    assert line["p_target"] == pytest.approx(float(np.exp(after[row][token, line["token_id"]])), rel=1e-3)


def test_a_beginning_of_several_units_is_nobodys_and_one_that_repeats_counts_once() -> None:
    ids = [[9, 9, 1, 5], [9, 9, 2, 5], [9, 9, 1, 5], [9, 9, 1, 6]]
    unit = np.array([0, 1, 0, 0])
    found = told_apart(ids, unit, "pair", list("abcd"))
    assert found.shared == 2, "9 and 9 9"
    kept = sorted(zip(found.row.tolist(), found.token.tolist(), found.unit.tolist(), strict=True))
    assert kept == [(0, 2, 0), (0, 3, 0), (1, 2, 1), (1, 3, 1), (3, 3, 0)]
    with pytest.raises(PatchError, match="no two observations"):
        told_apart([[1, 2], [1, 2]], np.array([0, 1]), "prompt", list("ab"))


def test_a_planted_word_is_named_and_its_context_shown() -> None:
    """A constant is added to the logit of one token, by way of the last norm's bias: a word said more."""
    base = from_parts(tiny("gpt2", seed=1))
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        row = model.get_output_embeddings().weight[17]
        model.transformer.ln_f.bias.add_(1.5 * row / row.norm() ** 2)
    lab = lab_of({"base": base, "tuned": from_parts(model)}, 24)
    found = run(DiffMining(**ASKED, over="prompts", least=1e-6), lab)
    first = found.table.filter(side="promoted").row(0, named=True)
    assert (first["token_id"], first["text"], first["beyond"]) == (17, "t17", True)
    assert first["low"] < first["mean"] < first["high"]
    assert first["mean"] > 1.0
    assert 17 in found.tables["contexts"]["token_id"]


def test_a_model_beside_itself_says_the_same() -> None:
    base, _ = pair("llama")
    lab = lab_of({"base": base, "tuned": base})
    found = run(DiffMining(**ASKED, over="prompts"), lab)
    assert (found.summary["equal"], found.summary["beyond"], found.summary["kl"]) == (True, 0, 0.0)
    assert found.tables["topics"].is_empty()


def test_exchanged_models_have_the_opposite_change_of_the_same_tokens() -> None:
    base, tuned = pair("qwen2")
    lab = lab_of({"base": base, "tuned": tuned})
    there = run(DiffMining(**ASKED, over="prompts", top=50), lab)
    back = run(DiffMining(target="base", source="tuned", over="prompts", top=50), lab)
    assert there.summary["tested"] == back.summary["tested"]
    ends = [one.table.select("token_id", "mean").sort("token_id") for one in (there, back)]
    both = ends[0].join(ends[1], on="token_id")
    assert both.height > 10
    assert np.allclose(both["mean"], -both["mean_right"], atol=1e-5)


def test_few_units_and_rounding_name_nothing() -> None:
    rng = np.random.default_rng(0)
    source = rng.dirichlet(np.ones(40), size=30)
    target = source * np.exp(0.3 + 0.05 * rng.normal(size=source.shape))
    target[:, ::2] = source[:, ::2] ** 2 / target[:, ::2]
    spec = DiffMining(**ASKED)
    assert Change.of(spec, target, source, {}).told.all()
    assert not Change.of(spec, target[:11], source[:11], {}).told.any()
    loud = {"base": {"kl": 0.2}, "tuned": {"kl": 0.2}}
    assert floor(loud) == pytest.approx(3 * np.sqrt(2 * 0.4)), "not less for many units"
    assert not Change.of(spec, target, source, loud).told.any()


def test_a_token_is_not_said_more_where_its_mean_probability_falls() -> None:
    """Twice as often in 29 texts that hardly say it, a little less in the one that says nothing else."""
    source, target = np.full((30, 2), 0.001), np.full((30, 2), 0.002)
    source[0], target[0] = 0.5, 0.45
    source[:, 1], target[:, 1] = 0.2, 0.3 + 0.01 * np.random.default_rng(0).normal(size=30)
    target[1:, 0] += 1e-4 * np.random.default_rng(1).normal(size=29)
    change = Change.of(DiffMining(**ASKED), target, source, {})
    assert change.mean[0] > 0.5
    assert change.told.tolist() == [False, True]


def test_long_prompts_are_told_apart_without_copies_of_their_beginnings() -> None:
    rows = [[number, *range(20_000)] for number in range(2)]
    found = told_apart([[9, *row] for row in rows], np.arange(2), "prompt", ["a", "b"])
    assert (len(found.row), found.shared) == (2 * 20_001, 1)


def test_topics_are_tokens_that_rise_together() -> None:
    """Two groups of tokens behind two kinds of contexts; one token is said a thousand times as much."""
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 2, 200)
    weights = np.zeros((2, 8))
    weights[0, :4], weights[1, 4:] = 1.0, 1.0
    raised = weights[kind] * rng.lognormal(0, 0.3, (200, 8)) * np.array([1000.0, *[1.0] * 7])
    made = topics(raised, np.arange(200) // 5, 2, 0)
    assert made is not None
    groups = {frozenset(np.flatnonzero(row > 0.05).tolist()) for row in made.weights}
    assert groups == {frozenset(range(4)), frozenset(range(4, 8))}
    assert made.stability.min() > 0.95
    assert made.share.sum() == pytest.approx(1.0)
    assert topics(raised[:, :1], np.arange(200), 3, 0) is None
    apart = topics(rng.exponential(size=(60, 30)), np.arange(60), 6, 0)
    assert apart is not None
    assert apart.stability.mean() < 0.9, "noise has no topics"


def test_what_is_refused() -> None:
    base, tuned = pair("llama")
    lab = lab_of({"base": base, "tuned": tuned})
    lab.ids["tuned"] = [[*one, 3] for one in lab.ids["tuned"]]
    with pytest.raises(PatchError, match="different tokens"):
        run(DiffMining(**ASKED, over="prompts"), lab)
    with pytest.raises(ValidationError, match="over"):
        DiffMining(**ASKED, over="prompts", texts=("a",))
    with pytest.raises(ValidationError, match="blank"):
        DiffMining(**ASKED, texts=(" ",))
    with pytest.raises(PatchError, match="often enough"):
        run(DiffMining(**ASKED, over="prompts", least=0.99), lab_of({"base": base, "tuned": tuned}))
    stopped = lab_of({"base": base, "tuned": tuned})
    stopped.stop_after = 0
    with pytest.raises(JobError, match="cancelled"):
        run(DiffMining(**ASKED, over="prompts"), stopped)


def test_plain_texts_are_units_by_their_first_token() -> None:
    base, tuned = pair("llama")
    lab = lab_of({"base": base, "tuned": tuned})
    texts = (*(f"{n} 5 7 {n}" for n in range(13)), "0 6")
    found = run(DiffMining(**ASKED, texts=texts, least=1e-6), lab)
    assert (found.summary["units"], found.summary["unit"]) == (13, "text")
    assert found.summary["contexts"] == 4 * 13 + 1
    assert found.tables["contexts"]["where"].str.starts_with("text ").all()
    assert isinstance(found.table, pl.DataFrame)
