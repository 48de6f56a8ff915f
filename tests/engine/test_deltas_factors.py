"""ΔW of an adapter from its own factors, and what rounding does to a difference of stored weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapter_kinds import KINDS, LORA, ROWS, adapter
from peft import LoraConfig
from safetensors.torch import load_file
from tiny_models import tiny
from tiny_tokenizers import chatml

from engine.models.loading import LoadedModel, load
from engine.models.low_rank import LowRank, canonical
from engine.study.study import ModelSpec
from engine.weights.deltas import WeightDelta, tensor_difference, weight_deltas
from engine.weights.rounding import narrowest, rounding_norm

SCALES = {"lora": 3.0, "rslora": 6 / 2**0.5}
FALL_BACK = {"dora", "loha", "ia3", "norms", "a saved norm"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factors") / "base"
    tiny("qwen3", vocab_size=ROWS).save_pretrained(folder)
    chatml().save_pretrained(folder)
    return folder


def pair(base: Path, place: Path, dtype: Any = "bfloat16") -> tuple[LoadedModel, LoadedModel]:
    return (
        load(ModelSpec(path=base, dtype=dtype), "base"),
        load(ModelSpec(path=base, adapter=place, dtype=dtype), "tuned"),
    )


def found(base: Path, place: Path, dtype: Any = "bfloat16") -> dict[str, WeightDelta]:
    plain, tuned = pair(base, place, dtype)
    return {d.name: d for d in weight_deltas(plain.model, tuned.model, factors=tuned.factors)}


def told(place: Path, name: str, scale: float) -> np.ndarray:
    """scale · B A as the adapter's file has it, in float64."""
    saved = load_file(place / "adapter_model.safetensors")
    key = f"base_model.model.{name.removesuffix('.weight')}"
    return scale * (saved[f"{key}.lora_B.weight"].double() @ saved[f"{key}.lora_A.weight"].double()).numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", SCALES)
def test_rank_and_values_are_the_adapters_in_every_dtype(
    base: Path, tmp_path: Path, kind: str, dtype: Any
) -> None:
    place = adapter(tmp_path / kind, KINDS[kind])
    deltas = found(base, place, dtype)
    plain, tuned = pair(base, place, dtype)
    assert len(deltas) == 6
    for name, delta in deltas.items():
        wanted = told(place, name, SCALES[kind])
        assert delta.rank == 2
        # both factors are rounded to float32 once: 2⁻²⁴ of entries that add up over a rank of 2
        np.testing.assert_allclose(delta.matrix(), wanted, atol=1e-6 * np.abs(wanted).max())
        sigma = np.linalg.svd(wanted, compute_uv=False)
        np.testing.assert_allclose(delta.spectrum, sigma[:2], rtol=1e-6)
        assert delta.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-6)
        own, other = (
            dict(m.model.named_parameters())[name].detach().double().numpy() for m in (plain, tuned)
        )
        off = np.linalg.norm(other - own - wanted) / np.linalg.norm(wanted)
        assert delta.rounding == pytest.approx(off, rel=1e-2, abs=2e-7)
        assert delta.noise is None
        limits = {"float32": (0, 1e-5), "bfloat16": (1e-4, 0.1), "float16": (1e-5, 1e-2)}[dtype]
        assert limits[0] < off < limits[1]


def test_patterns_of_rank_and_alpha_are_followed(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "p", KINDS["rank_pattern"])
    for name, delta in found(base, place).items():
        rank, scale = (4, 2 / 4) if "o_proj" in name else (2, 6 / 2)
        assert delta.rank == rank
        wanted = told(place, name, scale)
        np.testing.assert_allclose(delta.matrix(), wanted, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", sorted(FALL_BACK))
def test_what_has_no_plain_factors_is_the_difference_of_the_weights(
    base: Path, tmp_path: Path, kind: str
) -> None:
    place = adapter(tmp_path / "k", KINDS[kind])
    plain, tuned = pair(base, place)
    theirs, ours = dict(tuned.model.named_parameters()), dict(plain.model.named_parameters())
    deltas = found(base, place)
    dense = {name: delta for name, delta in deltas.items() if delta.rounding is None}
    assert dense
    assert all("norm" in name for name in dense) or kind != "a saved norm"
    for name, delta in dense.items():
        wanted = theirs[name].detach().float() - ours[name].detach().float()
        tolerance = 1e-3 * float(wanted.norm())  # low-rank differences are kept to that
        np.testing.assert_allclose(delta.matrix(), wanted.numpy(), atol=tolerance)
        assert delta.noise is not None


def test_factors_are_not_believed_where_the_weights_say_something_else(base: Path, tmp_path: Path) -> None:
    """The study's first model is not the adapter's base: ΔW from it is more than B A."""
    place = adapter(tmp_path / "lora", KINDS["lora"])
    _, tuned = pair(base, place)
    other = tiny("qwen3", seed=1, vocab_size=ROWS).bfloat16()
    deltas = list(weight_deltas(other, tuned.model, factors=tuned.factors))
    assert len(deltas) > 6
    assert all(delta.rounding is None for delta in deltas)


def test_a_change_that_rounds_away_in_the_merge_is_still_the_adapters(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", LoraConfig(**LORA | {"lora_alpha": 1e-6}))
    deltas = found(base, place)
    assert len(deltas) == 6
    assert all(d.rank == 2 and d.rounding is not None and d.rounding > 0.5 for d in deltas.values())


def test_an_adapter_that_was_not_trained_changes_nothing(base: Path, tmp_path: Path) -> None:
    place = adapter(tmp_path / "lora", KINDS["lora"])
    plain, tuned = pair(base, place)
    still = {n: LowRank(f.left * 0, f.right) for n, f in tuned.factors.items()}
    assert list(weight_deltas(plain.model, plain.model, factors=still)) == []


def test_a_contrast_of_adapters_keeps_its_factors_beyond_any_rank_that_is_searched_for() -> None:
    generator = torch.Generator().manual_seed(3)
    sides = []
    for seed in range(2):
        del seed
        left, right, sigma, _ = canonical(
            LowRank(torch.randn(900, 70, generator=generator), torch.randn(70, 800, generator=generator))
        )
        norm = float(np.linalg.norm(sigma))
        sides.append(WeightDelta("w", (900, 800), norm, 0.1, 70, 0.0, left, right, spectrum=sigma))
    contrast = tensor_difference(*sides)
    assert contrast is not None
    assert contrast.rank == 140
    wanted = sides[0].matrix().astype(np.float64) - sides[1].matrix()
    assert np.linalg.norm(contrast.matrix() - wanted) < 1e-6 * np.linalg.norm(wanted)  # float32
    assert contrast.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-6)
    assert tensor_difference(sides[0], sides[0]) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_expected_rounding_is_what_rounding_does(dtype: torch.dtype) -> None:
    exact = torch.randn(400, 500, generator=torch.Generator().manual_seed(0)).double() * 0.02
    rounded = exact.to(dtype)
    # Σ over 200,000 independent errors: their norm is known to about 1/√200,000, and entries near powers of 2
    # and small ones are a little off uniform
    assert rounding_norm(rounded) == pytest.approx(float((rounded.double() - exact).norm()), rel=1e-2)
    assert narrowest(rounded.float()) == dtype
    assert rounding_norm(torch.zeros(3, 3)) == 0.0


def test_two_roundings_of_one_tensor_are_not_above_rounding_and_a_real_change_is() -> None:
    base = tiny("qwen3")
    exact = base.model.layers[0].mlp.up_proj.weight.detach().clone()
    generator = torch.Generator().manual_seed(0)
    nudged = exact * (1 + 2.0**-9 * torch.randn(exact.shape, generator=generator))  # below bfloat16's step
    changed = exact * (1 + 0.5 * torch.randn(exact.shape, generator=generator))
    rounded = tiny("qwen3").bfloat16()
    for values, above in ((nudged, False), (changed, True)):
        tuned = tiny("qwen3").bfloat16()
        with torch.no_grad():
            tuned.model.layers[0].mlp.up_proj.weight.copy_(values)
        (delta,) = weight_deltas(rounded, tuned)
        assert delta.rounding is None
        assert delta.noise is not None
        assert (delta.noise < 0.05) == above
        assert (delta.noise > 0.5) != above
