"""What a condition injects, against numpy by hand; widths, missing parts, groups and token strings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_tokenizers import chatml
from tokenizers import pre_tokenizers

from engine.errors import PatchError
from engine.lab.experiment import resampling_groups
from engine.patching.run import replacement_vectors, self_check
from engine.patching.spec import Condition
from engine.patching.tables import token_text

RNG = np.random.default_rng(0)
OWN, SOURCE = RNG.normal(size=(5, 4)), RNG.normal(2, 3, size=(5, 4))
SOURCE_TRAIN, TARGET_TRAIN = RNG.normal(2, 3, size=(9, 4)), RNG.normal(-1, 0.5, size=(9, 4))
EVERYTHING: dict[str, Any] = {
    "own": OWN,
    "source": SOURCE,
    "source_train": SOURCE_TRAIN,
    "target_train": TARGET_TRAIN,
}


def condition(**changes: Any) -> Condition:
    plain = {"target": "tuned", "source": "base", "component": "resid_post", "layer": 1}
    return Condition(**{**plain, **changes})


def injected(**changes: Any) -> np.ndarray:
    asked = condition(**changes)
    vectors = replacement_vectors(asked, OWN.shape, **EVERYTHING)
    return vectors.at(asked.alphas, asked.scale, np.arange(5))


def test_every_kind_by_hand() -> None:
    mu_s, sd_s = SOURCE_TRAIN.mean(0), SOURCE_TRAIN.std(0, ddof=1)
    mu_t, sd_t = TARGET_TRAIN.mean(0), TARGET_TRAIN.std(0, ddof=1)
    expected = {
        "raw": mu_t + sd_t * (SOURCE - mu_s) / sd_s,
        "literal": SOURCE,
        "self": OWN,
        "mean": np.tile(mu_t, (5, 1)),
    }
    for kind, by_hand in expected.items():
        # float32 rounding of values of size 10
        np.testing.assert_allclose(injected(kind=kind)[0], by_hand, rtol=0, atol=1e-6, err_msg=kind)


def test_amplitude_scales_the_vector_or_its_offset_from_the_mean() -> None:
    mu = TARGET_TRAIN.mean(0)
    alphas = (-1.0, 0.0, 0.5, 1.0)
    whole = injected(kind="literal", alphas=alphas)
    offset = injected(kind="literal", alphas=alphas, scale="deviation")
    assert whole.shape == offset.shape == (4, 5, 4)
    for a, alpha in enumerate(alphas):
        np.testing.assert_allclose(whole[a], alpha * SOURCE, atol=1e-6)
        np.testing.assert_allclose(offset[a], mu + alpha * (SOURCE - mu), atol=1e-6)
    # at alpha = 1 both are the vector itself to the last bit; at 0 the deviation is the mean control
    assert (offset[3] == SOURCE.astype(np.float32)).all()
    assert (whole[3] == SOURCE.astype(np.float32)).all()
    assert (offset[1] == injected(kind="mean")[0]).all()


def test_vectors_of_a_batch_are_the_rows_of_the_whole() -> None:
    vectors = replacement_vectors(condition(alphas=(0.5, 2.0)), OWN.shape, **EVERYTHING)
    whole = vectors.at((0.5, 2.0), "vector", np.arange(5))
    some = np.array([4, 0, 2])
    assert (vectors.at((0.5, 2.0), "vector", some) == whole[:, some]).all()


def test_constant_dimensions_are_counted() -> None:
    source_train = SOURCE_TRAIN.copy()
    source_train[:, 2] = 7.0
    vectors = replacement_vectors(
        condition(), OWN.shape, source=SOURCE, source_train=source_train, target_train=TARGET_TRAIN
    )
    assert vectors.constant == {"source": 1, "target": 0}
    np.testing.assert_allclose(vectors.base[:, 2], TARGET_TRAIN[:, 2].mean(), rtol=1e-14)


@pytest.mark.parametrize("kind", ["raw", "literal"])
def test_models_of_different_widths_are_refused_by_name(kind: str) -> None:
    with pytest.raises(PatchError) as caught:
        replacement_vectors(condition(kind=kind), OWN.shape, **{**EVERYTHING, "source": np.zeros((5, 6))})
    said = str(caught.value)
    assert "base and tuned have different widths at resid_post@1" in said
    assert "4 numbers per prompt (tuned)" in said
    assert "6 (base)" in said
    assert "transport map" in said


@pytest.mark.parametrize(
    ("changes", "missing", "said"),
    [
        ({"kind": "raw"}, "source", "needs the source's activations"),
        ({"kind": "raw"}, "source_train", "needs both models' activations on the train prompts"),
        ({"kind": "raw"}, "target_train", "needs both models' activations on the train prompts"),
        ({"kind": "self"}, "own", "self-patch needs the target's own activations"),
        ({"kind": "mean"}, "target_train", "mean control needs the target's activations"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, str], missing: str, said: str) -> None:
    with pytest.raises(PatchError, match=said):
        replacement_vectors(condition(**changes), OWN.shape, **{**EVERYTHING, missing: None})


def test_a_deviation_without_a_mean_is_refused() -> None:
    vectors = replacement_vectors(condition(kind="self"), OWN.shape, own=OWN)
    with pytest.raises(PatchError, match="deviation from the train mean needs"):
        vectors.at((1.0,), "deviation", np.arange(5))


def test_other_prompts_and_infinite_vectors_are_refused() -> None:
    with pytest.raises(PatchError, match=r"same prompts.*5 prompts.*Given: 4"):
        replacement_vectors(condition(kind="literal"), OWN.shape, source=SOURCE[:4])
    broken = SOURCE.copy()
    broken[1, 1] = np.inf
    with pytest.raises(PatchError, match=r"not all finite.*Given: 1 prompts"):
        replacement_vectors(condition(kind="literal"), OWN.shape, source=broken)


def test_a_self_patch_that_changes_something_is_refused() -> None:
    engine: Any = SimpleNamespace(self_limit=1e-6, dtype=torch.float32)
    assert self_check(np.array([1e-9, -3e-9]), engine, "mlp_out@0").passed
    with pytest.raises(PatchError, match=r"refused: patching mlp_out@0.*at most 1e-06.*0.002 nats"):
        self_check(np.array([0.0, 2e-3]), engine, "mlp_out@0")
    with pytest.raises(PatchError, match="inf nats"):
        self_check(np.array([np.nan]), engine, "mlp_out@0")


def test_pairs_are_resampled_together() -> None:
    assert resampling_groups(pl.DataFrame({"id": ["a", "b"]})).tolist() == [0, 1]
    pairs = pl.DataFrame({"id": list("abcde"), "pair_id": ["x", None, "x", None, "1"]})
    assert resampling_groups(pairs).tolist() == [0, 1, 0, 2, 3]


class ByteTokenizer:
    """Token 0 is "hi", 1 the first two bytes of 你, 2 decodes to nothing, 3 a byte in SentencePiece's way."""

    def decode(self, ids: list[int], clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces
        return {0: " hi", 1: "\ufffd", 2: "", 3: "\ufffd"}[ids[0]]

    def convert_ids_to_tokens(self, token: int) -> str:
        return {1: "ä½", 2: "<pad>", 3: "<0xE5>"}[token]


def test_tokens_are_shown_as_a_person_reads_them() -> None:
    tokenizer = ByteTokenizer()
    assert [token_text(tokenizer, i) for i in range(3)] == [" hi", "⟨E4 BD⟩", "<pad>"]
    assert "你".encode().startswith(bytes.fromhex("E4 BD"))
    assert token_text(None, 17) == "#17"


def test_byte_tokens_are_those_of_a_real_byte_level_tokenizer() -> None:
    """Every token of one byte shows that byte, or the character it is."""
    tokenizer, seen = chatml(), set()
    for token in pre_tokenizers.ByteLevel.alphabet():
        shown = token_text(tokenizer, tokenizer.convert_tokens_to_ids(token))
        byte = ord(shown) if len(shown) == 1 else int(shown.strip("⟨⟩"), 16)
        assert (byte < 128) == (len(shown) == 1)
        seen.add(byte)
    assert seen == set(range(256))
