"""Conditions: validation, JSON and hash; replacement vectors against numpy by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import PatchError
from engine.patching.spec import Condition
from engine.stats.moments import fit_moments, match_moments

BASE = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 3}

conditions = st.builds(
    Condition,
    target=st.sampled_from(["base", "tuned"]),
    source=st.sampled_from(["base", "tuned"]),
    component=st.sampled_from(["head_z", "head_out"]),
    layer=st.integers(0, 40),
    heads=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    position=st.sampled_from(["last_content", "decision", "last_nonspecial"]),
    kind=st.sampled_from(["raw", "literal", "self", "mean"]),
    alphas=st.lists(st.floats(-4, 4), min_size=1, max_size=5).map(tuple),
    scale=st.sampled_from(["vector", "deviation"]),
    read_at=st.sampled_from(["patched", "decision"]),
    reverse_kl=st.booleans(),
    split=st.sampled_from(["train", "validation", "all"]),
    where=st.fixed_dictionaries({"language": st.none() | st.text(max_size=3)}),
)


@settings(max_examples=60, deadline=None)
@given(conditions)
def test_json_round_trip_keeps_condition_and_hash(condition: Condition) -> None:
    again = Condition.from_json(json.loads(json.dumps(condition.to_json())))
    assert again == condition
    assert again.content_hash("f") == condition.content_hash("f")
    assert condition.content_hash("f") != condition.content_hash("g")


def test_the_hash_tells_every_field_apart() -> None:
    plain = Condition(**BASE)
    changed = {
        "target": "base",
        "source": "tuned",
        "component": "mlp_out",
        "layer": 4,
        "position": "decision",
        "kind": "literal",
        "alphas": (0.5,),
        "scale": "deviation",
        "read_at": "decision",
        "reverse_kl": True,
        "split": "train",
        "where": {"language": "zh"},
        "top_k": 4,
        "n_boot": 100,
        "level": 0.9,
        "seed": 1,
    }
    hashes = {Condition(**{**BASE, key: value}).content_hash("f") for key, value in changed.items()}
    assert set(changed) | {"heads", "job"} == set(Condition.model_fields)
    assert len(hashes | {plain.content_hash("f")}) == len(changed) + 1


def test_equal_questions_have_one_hash() -> None:
    one = Condition(**BASE | {"component": "head_z"}, alphas=(1, 0, 0.5, 0.5, -0.0), heads=(2, 0))
    two = Condition(**BASE | {"component": "head_z"}, alphas=(0.0, 0.5, 1.0), heads=(0, 2, 2))
    assert one == two
    assert one.content_hash("f") == two.content_hash("f")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position": "mean"}, "'mean' cannot be patched: it is not one token"),
        ({"position": "sample(k=4,skip_last=1)"}, "cannot be patched"),
        ({"alphas": ()}, "at least one, all finite"),
        ({"alphas": (float("nan"),)}, "at least one, all finite"),
        ({"heads": (1,)}, "resid_post has no heads"),
        ({"component": "head_z", "heads": ()}, "at least one, 0 or more"),
        ({"layer": -1}, "layer: Input should be greater than or equal to 0"),
        ({"kind": "mapped"}, "kind: Input should be 'raw', 'literal', 'self' or 'mean'"),
        ({"alpha": 1.0}, "alpha: Extra inputs are not permitted"),
    ],
)
def test_an_impossible_condition_says_what_is_wrong(change: dict[str, object], said: str) -> None:
    with pytest.raises(PatchError) as caught:
        Condition.from_json({**BASE, **change})
    assert said in str(caught.value)


def test_moment_matching_by_hand() -> None:
    source_train = np.array([[0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])  # mean 2, 10; sd 2, 0
    target_train = np.array([[1.0, -1.0], [1.5, 0.0], [2.0, 1.0]])  # mean 1.5, 0; sd 0.5, 1
    source, target = fit_moments(source_train), fit_moments(target_train)
    assert source.sd.tolist() == [2.0, 0.0]
    assert source.constant == 1
    assert target.constant == 0
    matched = match_moments(np.array([[6.0, 99.0], [2.0, 10.0]]), source, target)
    # (6 - 2) / 2 * 0.5 + 1.5 = 2.5; the constant dimension goes to the target's mean
    np.testing.assert_allclose(matched, [[2.5, 0.0], [1.5, 0.0]], atol=0)


def test_matched_train_activations_have_the_targets_moments() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(5, 3, (40, 7)) * np.arange(1, 8)
    target = rng.gamma(2.0, 4.0, (40, 7))
    matched = match_moments(source, fit_moments(source), fit_moments(target))
    # float64 sums over 40 rows: a few units of 1e-16
    np.testing.assert_allclose(matched.mean(0), target.mean(0), rtol=1e-12)
    np.testing.assert_allclose(matched.std(0, ddof=1), target.std(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(match_moments(source, fit_moments(source), fit_moments(source)), source)


def test_rounding_noise_is_not_taken_for_variation() -> None:
    rng = np.random.default_rng(1)
    huge = np.float32(3000.0) * (1 + np.float32(1e-7) * rng.normal(size=(50, 1)))
    small = np.float32(1e-3) * rng.normal(size=(50, 1))
    moments = fit_moments(np.hstack([huge, small]).astype(np.float32))
    assert moments.constant == 1
    assert moments.sd[0] == 0.0
    # the small but truly varying dimension keeps its sd, 1e-3 within the error of 50 draws (10 %)
    assert abs(moments.sd[1] / 1e-3 - 1) < 0.4


def test_moments_need_two_finite_prompts() -> None:
    with pytest.raises(PatchError, match="at least two prompts"):
        fit_moments(np.zeros((1, 4)))
    with pytest.raises(PatchError, match="not all finite"):
        fit_moments(np.array([[1.0, np.inf], [0.0, 0.0]]))
