"""Steering against plain forward hooks, a planted direction, random ones, and what is chosen on train."""

from __future__ import annotations

from typing import Any

import numpy as np
import patch_oracle
import polars as pl
import pytest
import torch
from memory_lab import MemoryLab
from tiny_models import random_tokens, tiny

from engine.errors import PatchError
from engine.kinds import experiment_from_json
from engine.models.loading import from_parts
from engine.models.sites import Site
from engine.rank import numbers as ranks
from engine.steering.report import Effects, equal_table
from engine.steering.run import choose, moves, run
from engine.steering.spec import Group, Steering
from engine.steering.vectors import Move, direction, find_tokens, word_tokens

Array = np.ndarray[Any, Any]
TRAIN, VALIDATION = 24, 16


class Words:
    """A tokenizer of whole words: "w17" is token 17; other texts are spelt, one token a letter."""

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        assert not add_special_tokens
        if text.startswith("w") and text[1:].isdigit():
            return {"input_ids": [int(text[1:])]}
        return {"input_ids": [ord(letter) % 90 + 3 for letter in text]}

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool = False) -> str:
        return f"w{ids[0]}"


def lab_of(models: dict[str, Any]) -> MemoryLab:
    count = TRAIN + VALIDATION
    ids = {}
    for i, (name, lm) in enumerate(models.items()):
        lm.tokenizer = Words()
        vocab = lm.taps.vocab
        ids[name] = [
            random_tokens(1, 4 + row % 4 + i, seed=row + 100 * i, vocab=vocab)[0].tolist()
            for row in range(count)
        ]
    at = {name: [len(tokens) - 1 for tokens in found] for name, found in ids.items()}
    prompts = pl.DataFrame(
        {
            "id": [f"p{i}" for i in range(count)],
            "language": ["en", "zh"] * (count // 2),
            "label": ["right", "right", "wrong", "wrong"] * (count // 4),
            "split": ["train"] * TRAIN + ["validation"] * VALIDATION,
        }
    )
    lab = MemoryLab(models, ids, at, prompts)
    for name, lm in models.items():
        lab.arrays[f"weights/{name}/unembedding"] = lm.taps.unembedding.weight.detach().numpy()
        lab.arrays[f"weights/{name}/final_norm_gain"] = lm.taps.gain(lm.taps.final_norm).numpy()
    return lab


def pair(family: str = "qwen3") -> MemoryLab:
    return lab_of({"tuned": from_parts(tiny(family)), "base": from_parts(tiny(family, seed=4))})


def experiment(**changes: Any) -> Steering:
    asked = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 1, "n_boot": 200}
    words = {"wanted": ("w9", "w40"), "against": ("w77",), "draws": 3, "alphas": (0.1, 0.3, 1.0)}
    groups = {"where": Group(language="en"), "neutral": Group(language="zh")}
    return Steering(**{**asked, **words, **groups, **changes})


def plain(lab: MemoryLab, spec: Steering, row: int, vectors: Array) -> tuple[Array, Array]:
    """Log-probabilities (c, V) under patches, and without (V,), by plain hooks."""
    lm, ids, position = lab.models["tuned"], lab.ids["tuned"][row], lab.at["tuned"][row]
    with patch_oracle.patched(
        lm.taps, Site(spec.component, spec.layer), position, torch.as_tensor(vectors, dtype=torch.float32)
    ):
        patched = patch_oracle.log_probs(lm.model, ids, position, len(vectors))
    return patched.numpy(), patch_oracle.log_probs(lm.model, ids, position)[0].numpy()


def odds(log_p: Array) -> Array:
    return np.asarray(np.log(np.exp(log_p[..., [9, 40]]).sum(-1)) - log_p[..., 77])


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_neox", "gpt2"])
def test_shift_and_side_effect_are_those_of_plain_hooks(family: str) -> None:
    lab = pair(family)
    spec = experiment(direction="contrast", plus=Group(label="wrong"), minus=Group(label="right"))
    found = run(spec, lab)
    site = Site("resid_post", 1)
    own = lab.activations("tuned", site, "", range(TRAIN + VALIDATION)).astype(float)
    label = lab.prompts["label"].to_numpy()[:TRAIN]
    v = own[:TRAIN][label == "wrong"].mean(axis=0) - own[:TRAIN][label == "right"].mean(axis=0)
    v /= np.linalg.norm(v)
    norm, mean = np.linalg.norm(own[:TRAIN], axis=1).mean(), own[:TRAIN].mean(axis=0)
    shifts, kls = [], []
    validation = range(TRAIN, TRAIN + VALIDATION)
    for row in validation:
        x = own[row]
        vectors = np.stack([x + 0.3 * norm * v, x - norm * v, x - (x @ v) * v, x - ((x - mean) @ v) * v])
        patched, before = plain(lab, spec, row, vectors)
        shifts.append(odds(patched) - odds(before))
        kls.append((np.exp(patched) * (patched - before)).sum(-1))
    english = np.array([row % 2 == 0 for row in validation])
    shift, kl = np.array(shifts)[english].mean(axis=0), np.array(kls)[~english].mean(axis=0)
    table = found.table.filter(pl.col("split") == "validation")
    keys = [("direction", 0.3), ("direction", -1.0), ("ablate", 0.0), ("ablate_mean", 0.0)]
    for i, (series, alpha) in enumerate(keys):
        got = table.filter((pl.col("series") == series) & (pl.col("alpha") == alpha))
        # float32 through two blocks, shifts of about 1.
        assert got["shift"].to_list() == pytest.approx([shift[i]], abs=5e-5)
        assert got["kl"].to_list() == pytest.approx([kl[i]], abs=2e-5)
    assert np.abs(shift).max() > 0.05


def test_planted_direction_shifts_the_right_way_and_beats_random_ones() -> None:
    """Behind the last block the unembedding difference of two tokens is what moves their odds."""
    found = run(experiment(direction="unembedding", layer=2, budget=0.2, draws=6), pair())
    assert found.summary["chosen"] > 0
    best = found.summary["equal"]["best"]
    assert best["direction"]["low"] > 0
    assert best["difference"]["low"] > 0
    assert best["direction"]["shift"] > best["most"]
    equal = found.tables["equal"].filter(pl.col("split") == "train")
    # Amplitudes come from a curve through three points and 0.
    np.testing.assert_allclose(equal["kl"].to_numpy(), found.summary["equal"]["level"], rtol=0.3)
    assert equal["draw"].to_list() == sorted(equal["draw"].to_list())
    up = found.table.filter((pl.col("series") == "direction") & (pl.col("split") == "validation"))
    shift = up.sort("alpha")["shift"].to_numpy()
    assert (np.diff(shift) > 0).all()


def test_a_random_direction_is_not_told_from_random_ones() -> None:
    """Null: v is drawn like the control; it beats all of them no more often than one in draws + 1."""
    lab, beaten = pair(), 0
    for seed in range(12):
        spec = experiment(direction="leading", leading=1 + seed, seed=seed, draws=4, n_boot=100, layer=0)
        lab.models["base"] = from_parts(tiny("llama", seed=30 + seed))
        lab._engines = {key: value for key, value in lab._engines.items() if key[0] == "tuned"}
        lab.models["base"].tokenizer = Words()
        best = run(spec, lab).summary["equal"]["best"]
        beaten += best is not None and best["direction"]["shift"] > best["most"]
    # Binomial(12, 1/5): 7 or more in 0.4 %.
    assert beaten < 7


def test_directions_of_a_pair() -> None:
    lab, site = pair(), Site("resid_post", 1)
    rows = np.arange(0, TRAIN, 2)
    apart = lab.activations("base", site, "", rows).astype(float) - lab.activations("tuned", site, "", rows)
    tokens = find_tokens(Words(), ("w9",), ("w77",))
    mean = apart.mean(axis=0)
    np.testing.assert_allclose(
        direction(experiment(), lab, tokens)[0], mean / np.linalg.norm(mean), atol=1e-6
    )
    second, _ = direction(experiment(direction="leading", leading=2), lab, tokens)
    expected = ranks.leading_directions(apart).basis[:, 1]
    assert abs(second @ expected) == pytest.approx(1)
    assert second @ mean >= 0
    with pytest.raises(PatchError, match="fewer directions"):
        direction(experiment(direction="leading", leading=40), lab, tokens)


def simulated(best_validation: float) -> Effects:
    """Shifts that are largest at 0.3 on train, and at `best_validation` elsewhere; 1.0 breaks the budget."""
    spec = experiment(draws=2)
    asked = moves(spec)
    in_train = np.arange(20) < 10
    change, kls = np.zeros((len(asked), 20)), np.zeros((len(asked), 20))
    for i, move in enumerate(asked):
        change[i, in_train] = {0.1: 0.5, 0.3: 1.0, 1.0: 5.0}.get(move.alpha, -1.0)
        change[i, ~in_train] = 2.0 if move.alpha == best_validation else 0.1
        kls[i] = {0.1: 0.01, 0.3: 0.05, 1.0: 3.0}.get(abs(move.alpha), 0.0)
    roles = {"wanted": np.ones(20, dtype=bool), "neutral": np.ones(20, dtype=bool)}
    return Effects(spec, asked, change, np.zeros(20), kls, np.arange(20), roles, in_train, np.arange(20))


def test_the_amplitude_is_chosen_on_train_within_the_budget() -> None:
    for best_validation in (0.3, 0.1, 1.0):
        assert choose(simulated(best_validation), 0.1) == 0.3
    assert choose(simulated(0.3), 5.0) == 1.0
    assert choose(simulated(0.3), 0.001) is None


def test_signs_of_random_directions_are_chosen_on_train() -> None:
    asked = [Move("direction", 0, 0.3), Move("random", 1, -0.2), Move("random", 1, 0.4)]
    in_train = np.arange(8) < 4
    change = np.zeros((3, 8))
    change[:, in_train] = np.array([3.0, 1.0, 0.5])[:, None]
    change[:, ~in_train] = np.array([3.0, 0.2, 2.0])[:, None]
    roles = {"wanted": np.ones(8, dtype=bool), "neutral": np.ones(8, dtype=bool)}
    spec = experiment(draws=2)
    effects = Effects(spec, asked, change, np.zeros(8), change, np.arange(8), roles, in_train, np.arange(8))
    table, best = equal_table(effects)
    assert table["alpha"].to_list() == [0.3, -0.2] * 2
    assert best["random"]["shift"] == pytest.approx(0.2)
    assert best["difference"]["shift"] == pytest.approx(2.8)


def test_words_become_all_their_single_tokens() -> None:
    assert word_tokens(Words(), ["w9", "w40"]) == {9: True, 40: True}
    begins = word_tokens(Words(), ["yes"])
    assert list(begins) == [ord("y") % 90 + 3]
    tokens = find_tokens(Words(), ["w9", "yes"], ["w77"])
    assert tokens.describe(tokens.wanted).count("…") == 1
    with pytest.raises(PatchError, match="share a token"):
        find_tokens(Words(), ["w9"], ["w40", "w9"])


def test_a_direction_of_no_length_and_bad_specs_are_refused() -> None:
    lm = from_parts(tiny("qwen3"))
    same = lab_of({"tuned": lm, "base": lm})
    same.ids["base"], same.at["base"] = same.ids["tuned"], same.at["tuned"]
    with pytest.raises(PatchError, match="There is no direction"):
        run(experiment(), same)
    with pytest.raises(PatchError, match="two different groups"):
        experiment(direction="contrast")
    with pytest.raises(PatchError, match="amplitudes"):
        experiment(alphas=(-0.1, 1.0))
    with pytest.raises(PatchError, match="words on both sides"):
        experiment(wanted=("",))
    wide = lab_of({"tuned": from_parts(tiny("qwen3")), "base": from_parts(tiny("llama", hidden_size=48))})
    with pytest.raises(PatchError, match="different widths"):
        run(experiment(), wide)
    with pytest.raises(PatchError, match="head values"):
        run(experiment(direction="unembedding", component="head_z"), pair())
    spec = experiment(direction="contrast", plus=Group(label="wrong"))
    assert experiment_from_json(spec.to_json()) == spec
    assert spec.models() == ("tuned",)


def test_several_leading_directions_are_taken_away_together() -> None:
    """The span by a plain SVD, the patches by plain hooks; random spans beside it."""
    assert experiment(direction="leading", dims=1) == experiment(direction="leading")
    assert "dims" not in experiment(direction="leading").to_json()
    assert experiment(dims=3) == experiment()
    lab = pair()
    spec = experiment(direction="leading", leading=2, dims=3)
    assert spec.direction_text() == "directions 2 to 4 of base − tuned"
    found = run(spec, lab)
    site = Site("resid_post", 1)
    every = range(TRAIN + VALIDATION)
    own, other = (lab.activations(name, site, "", every).astype(float) for name in ("tuned", "base"))
    english = (lab.prompts["language"] == "en").to_numpy()[:TRAIN]
    apart = (other - own)[:TRAIN][english]
    span = np.linalg.svd(apart)[2][1:4].T
    v = span @ span.T @ apart.mean(axis=0)
    v /= np.linalg.norm(v)
    norm = np.linalg.norm(own[:TRAIN], axis=1).mean()
    shifts = []
    for row in [r for r in every[TRAIN:] if lab.prompts["language"][r] == "en"]:
        x = own[row]
        patched, before = plain(lab, spec, row, np.stack([x - span @ (span.T @ x), x + 0.3 * norm * v]))
        shifts.append(odds(patched) - odds(before))
    table = found.table.filter(pl.col("split") == "validation")
    for i, (series, alpha) in enumerate((("ablate", 0.0), ("direction", 0.3))):
        value = table.filter(pl.col("series") == series, pl.col("alpha") == alpha)["shift"][0]
        assert value == pytest.approx(np.mean(shifts, axis=0)[i], abs=1e-4)
    random = table.filter(pl.col("series") == "ablate_random").row(0, named=True)
    assert random["shift_least"] <= random["shift"] <= random["shift_most"]
    with pytest.raises(PatchError, match="fewer directions"):
        run(experiment(direction="leading", leading=40, dims=30), lab)
