"""A model's weights in a file: read back bit by bit, one at a time, with what they are shared by."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny

from engine.models import tensor_parts
from engine.models.low_rank import low_rank_factors, singular_values
from engine.models.tensor_parts import norm_of
from engine.weights import kept as kept_weights
from engine.weights.deltas import weight_deltas
from engine.weights.kept import put_aside
from engine.weights.names import unmatched
from engine.weights.rounding import narrowest, rounding_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["qwen3", "gpt2", "qwen3_moe"])
def test_a_file_gives_the_differences_that_the_model_gives(
    tmp_path: Path, family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_weights, "CHUNK", 1000)  # no tensor is a whole number of them
    base = tiny(family).to(dtype)
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for number, parameter in enumerate(tuned.parameters()):
            if number % 3:
                parameter.add_(0.1 * torch.randn(parameter.shape).to(dtype))
    wanted = list(weight_deltas(base, tuned))
    own = {name: value.detach().clone() for name, value in base.named_parameters()}
    weights = put_aside(base, tmp_path / "weights")
    assert {**weights}.keys() == own.keys()
    assert all(torch.equal(weights[name], value) for name, value in own.items())
    assert load_file(tmp_path / "weights").keys() == own.keys(), "an ordinary safetensors file"
    assert unmatched(weights.names, tuned) == unmatched(base, tuned) == {}
    steps: list[int] = []
    found = list(weight_deltas(weights, tuned, advance=lambda: steps.append(1)))
    assert [delta.name for delta in found] == [delta.name for delta in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert (one.norm, one.noise, one.rank) == (other.norm, other.noise, other.rank)
        assert one.dense is None or (one.dense == other.dense).all()
    assert len(steps) == len(weights)


def test_shared_parameters_are_known_from_the_file(tmp_path: Path) -> None:
    tied, untied = tiny("qwen3"), tiny("qwen3", tie_word_embeddings=False)
    for number, (base, other) in enumerate([(tied, untied), (untied, tied), (tied, tied)]):
        names = put_aside(base, tmp_path / str(number)).names
        assert unmatched(names, other) == unmatched(base, other)
    with pytest.raises(KeyError):
        put_aside(tied, tmp_path / "again")["lm_head.weight"]


def test_what_cannot_be_written_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept_weights, "_write", full)
    with pytest.raises(OSError, match="No space"):
        put_aside(tiny("qwen3"), tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_parts_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is summed over parts is the same up to the order of float32 sums."""
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(300, 5, generator=generator) @ torch.randn(5, 200, generator=generator)
    full = torch.randn(300, 200, generator=generator)

    def measured() -> list[float]:
        factors = low_rank_factors(low)
        assert factors is not None
        assert low_rank_factors(full) is None
        spectra = [float(values.sum()) for values in map(singular_values, (full, full.T.contiguous()))]
        half = full.bfloat16()
        roundings = [rounding_norm(full), rounding_norm(half), rounding_norm(half.float())]
        assert [narrowest(values) for values in (full, half, half.float(), full.half().float())] == [
            torch.float32,
            torch.bfloat16,
            torch.bfloat16,
            torch.float16,
        ]
        return [norm_of(full), norm_of(low), *spectra, *roundings, float(torch.linalg.norm(factors[0]))]

    whole = measured()
    monkeypatch.setattr(tensor_parts, "PART", 1024)
    assert measured() == pytest.approx(whole, rel=1e-6)
