"""Half-precision linear layers by way of float32: the same products, rounded once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from engine.passes import wide

HALF = [torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def slow_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor without the instructions, whatever this one has."""
    monkeypatch.setattr(wide, "slow", lambda dtype, device: dtype in HALF and device.type == "cpu")


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("most", [2**24, 100], ids=["whole", "in parts"])
def test_it_is_the_exact_product_rounded_once(
    dtype: torch.dtype, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide, "MOST_NUMBERS", most)
    x, weight, bias = draws((3, 5, 24), (17, 24), (17,), dtype=dtype)
    exact = x.double() @ weight.double().T + bias.double()
    found = wide.linear(x, weight, bias)
    assert found.dtype == dtype
    assert found.shape == (3, 5, 17)
    # a sum that lies between two numbers may fall to either side: one spacing, seldom
    spacing = torch.finfo(dtype).eps * exact.abs()
    assert (found.double() - exact).abs().le(0.51 * spacing + 1e-5).all()


def test_few_rows_and_float32_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("widened")

    x, weight = draws((7, 24), (17, 24))
    wanted = functional.linear(x, weight), functional.linear(x.float(), weight.float())
    monkeypatch.setattr(Tensor, "float", refuse)
    assert torch.equal(wide.linear(x, weight), wanted[0])
    long = torch.ones(64, 24)
    assert wide.linear(long, torch.ones(17, 24)).shape == (64, 17)
    with pytest.raises(AssertionError, match="widened"):
        wide.linear(long.to(torch.bfloat16), weight)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_layers_keep_type_weights_hooks_and_copies(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(24, 17) if kind == "linear" else Conv1D(17, 24)
    model = nn.Sequential(layer).to(torch.bfloat16)
    (x,) = draws((9, 24))
    before = model(x)
    wide.widen(model)
    assert type(model[0]) is type(layer)
    seen = []
    model[0].register_forward_hook(lambda _module, _args, out: seen.append(out))
    after = model(x)
    assert torch.equal(seen[0], after)
    torch.testing.assert_close(after, before, rtol=2**-7, atol=1e-2)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied[0].weight.zero_()
        copied[0].bias.zero_()
    assert not copied(x).any(), "a copy computes with its own weights"
    assert torch.equal(model(x), after)
    assert torch.equal(model.float()(x.float()), functional_of(layer, x.float())), (
        "in float32 nothing changes"
    )


def functional_of(layer: nn.Module, x: Tensor) -> Tensor:
    return type(layer).forward(layer, x)  # type: ignore[attr-defined, no-any-return]


def test_only_layers_in_a_slow_dtype_are_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.ModuleDict({"fp16": nn.Linear(4, 4).half(), "fp32": nn.Linear(4, 4), "norm": nn.LayerNorm(4)})
    wide.widen(model)
    assert [name for name, part in model.items() if "forward" in part.__dict__] == ["fp16"]
    other = nn.Linear(4, 4).to(torch.bfloat16)
    monkeypatch.setattr(wide, "slow", lambda *_: False)
    wide.widen(other)
    assert "forward" not in other.__dict__
    assert not wide.slow(torch.float32, torch.device("cpu"))


def test_what_is_asked_of_torch_is_there() -> None:
    """Were these renamed, every processor would be taken for a fast one."""
    assert isinstance(torch.ops.mkldnn._is_mkldnn_bf16_supported(), bool)
    assert isinstance(torch.ops.mkldnn._is_mkldnn_fp16_supported(), bool)
