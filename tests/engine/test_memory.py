"""Memory that runs out: every allocator's error halves a batch, the log says so, and no number changes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny
from transformers import AutoModelForCausalLM

from engine.errors import CaptureError, ModelError, PatchbayError, PatchError
from engine.models import memory
from engine.models.loading import LoadedModel, from_parts, load
from engine.models.memory import in_halves, out_of_memory
from engine.models.sites import Site
from engine.passes.attribution import gradients
from engine.passes.capture import capture_unit
from engine.passes.continuations import score
from engine.passes.edits import replace_at
from engine.passes.generate import generate
from engine.prompts.positions import Positions
from engine.study.study import ModelSpec
from engine.subspaces.capture import capture_streams
from engine.weight_steering.effects import effects

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
SCARCE: dict[str, Callable[[], Exception]] = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError(CPU),
    "numpy": lambda: MemoryError("Unable to allocate 8.00 GiB for an array"),
}
LENGTHS = (12, 12, 12, 11, 11, 10)
IDS = [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]
LAST = [length - 1 for length in LENGTHS]
ROUNDING = 1e-5
"""Three blocks in float32 whose sums run in another order; activations here are of size 1."""


def really(task: Callable[[], object]) -> BaseException:
    """The error that an allocator raises when asked for more than any address space holds."""
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        task()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        *(make() for make in SCARCE.values()),
        really(lambda: torch.empty(1 << 55)),
        really(lambda: np.empty(1 << 55)),
        really(lambda: bytearray(1 << 62)),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.88 GB, other allocations: 30 MB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 99 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=repr,
)
def test_what_counts_as_out_of_memory(error: BaseException) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        OSError(errno.ENOENT, "No such file"),
        CaptureError("A single prompt does not fit.", given="CUDA out of memory"),
    ],
    ids=repr,
)
def test_what_does_not(error: BaseException) -> None:
    assert not out_of_memory(error)


def refuse(item: int, error: Exception) -> PatchbayError:
    return PatchbayError(f"{item} does not fit ({error}).")


def test_halves_keep_the_order_and_are_told_each_time() -> None:
    tried: list[list[int]] = []

    def work(batch: list[int]) -> None:
        tried.append(batch)
        if len(batch) > 2:
            raise MemoryError

    told: list[tuple[int, int]] = []
    done = list(in_halves([[0, 1, 2, 3, 4], [5]], work, refuse, lambda *halved: told.append(halved)))
    assert done == [[0, 1], [2], [3, 4], [5]]
    assert tried == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4], [5]]
    assert told == [(5, 2), (3, 1)]


def test_one_item_that_does_not_fit_and_other_errors_end_it() -> None:
    def full(batch: list[int]) -> None:
        raise MemoryError("no room")

    with pytest.raises(PatchbayError, match=r"7 does not fit \(no room\)") as caught:
        list(in_halves([[7, 8]], full, refuse))
    assert isinstance(caught.value.__cause__, MemoryError)

    def broken(batch: list[int]) -> None:
        raise RuntimeError("mat1 and mat2 shapes")

    with pytest.raises(RuntimeError, match="mat1"):
        list(in_halves([[7, 8]], broken, refuse))


def test_what_the_failed_attempt_held_is_free_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    monkeypatch.setattr(memory, "free", lambda: alive.append(held[-1]() is not None))

    def work(batch: list[int]) -> None:
        tensor = torch.zeros(len(batch))
        held.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise RuntimeError(CPU)

    assert len(list(in_halves([[0, 1, 2]], work, refuse))) == 3
    assert alive == [False, False]


def captured(lm: LoadedModel) -> list[Any]:
    where = {"last": Positions("last", "one", tuple(np.array([place]) for place in LAST), {})}
    sites = ("resid", "attn_out", "mlp_out", "head_z")
    found = capture_unit(lm, IDS, range(len(IDS)), where, components=sites, batch_tokens=10_000)
    return list(found["last"].values())


def streams(lm: LoadedModel) -> list[Any]:
    found = capture_streams(lm, IDS, 10_000)
    return [found.last, found.mlp_input, found.tokens, found.attention]


def edits(lm: LoadedModel) -> list[Any]:
    noise = torch.randn(len(IDS), lm.taps.d, generator=torch.Generator().manual_seed(0))
    return [None, replace_at(Site("resid_post", 1), LAST, noise)]


def generated(lm: LoadedModel) -> list[Any]:
    return generate(lm, IDS, edits(lm), max_new_tokens=5, stop=[]).tokens


def scored(lm: LoadedModel) -> list[Any]:
    found = score(lm, IDS, [[[5], [6, 7, 8]]] * len(IDS), edits(lm)).log_probs
    return [tokens for condition in found for prompt in condition for tokens in prompt]


def steered(lm: LoadedModel) -> list[Any]:
    return [effects(lm, IDS, [(None, 0.0)]).nll]


def differentiated(lm: LoadedModel) -> list[Any]:
    found = gradients(lm, IDS, [0] * len(IDS), LAST, (0, 2))
    return [found.token, found.log_prob, *found.at_output.values(), found.direct]


PATHS = (captured, streams, generated, scored, steered, differentiated)
EACH_PATH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)


def scarce(lm: LoadedModel, most: int, error: Callable[[], Exception]) -> Any:
    """Makes the model's decoder fail on more than `most` tokens at once; returns the hook's handle."""

    def hook(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() > most:
            raise error()

    return lm.taps.decoder.register_forward_pre_hook(hook, with_kwargs=True)


@EACH_PATH
@pytest.mark.parametrize("kind", SCARCE)
def test_halving_changes_no_number_and_the_log_says_so(
    path: Callable[[LoadedModel], list[Any]], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = from_parts(tiny("qwen3"))
    whole = path(lm)
    assert not caplog.records
    handle = scarce(lm, 30, SCARCE[kind])
    with caplog.at_level(logging.WARNING, "patchbay.memory"):
        halved = path(lm)
    handle.remove()
    said = [record.message for record in caplog.records]
    assert said[0] == "a batch of 6 did not fit into memory, trying 3"
    assert set(said[1:]) <= {
        "a batch of 3 did not fit into memory, trying 1",
        "a batch of 2 did not fit into memory, trying 1",
    }
    for a, b in zip(halved, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=ROUNDING)


@EACH_PATH
@pytest.mark.parametrize("kind", SCARCE)
def test_a_single_prompt_that_does_not_fit_is_named(
    path: Callable[[LoadedModel], list[Any]], kind: str
) -> None:
    lm = from_parts(tiny("qwen3"))
    scarce(lm, 0, SCARCE[kind])
    with pytest.raises((CaptureError, PatchError), match=r"single prompt|One prompt") as caught:
        path(lm)
    assert f"prompt {5 if path is differentiated else 0} " in str(caught.value), "the first that runs"
    assert not lm.lock.locked()


@pytest.mark.parametrize("kind", SCARCE)
def test_a_model_that_does_not_fit_is_not_called_damaged(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("qwen3").save_pretrained(tmp_path)

    def full(*_args: object, **_kwargs: object) -> None:
        raise SCARCE[kind]()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match=r"does not fit into memory.*16-bit") as caught:
        load(ModelSpec(path=tmp_path), "base")
    assert caught.value.__cause__ is not None
    assert out_of_memory(caught.value.__cause__)


LIMITED = """
import resource

import numpy as np
import psutil
import torch
from tiny_models import random_tokens, tiny

from engine.passes.capture import capture_unit
from engine.models.loading import from_parts
from engine.prompts.positions import Positions

torch.set_num_threads(1)
lm = from_parts(tiny("llama", intermediate_size=4096))
ids = [random_tokens(1, 120, seed=i)[0].tolist() for i in range(48)]
last = {"last": Positions("last", "one", tuple(np.array([119]) for _ in ids), {})}


def capture(batch_tokens, told=None):
    return capture_unit(
        lm, ids, range(48), last, components=("resid",), batch_tokens=batch_tokens, on_halved=told
    )["last"]


expected, told = capture(600), []
# 48 prompts need about 95 MB for each of the MLP's inner tensors
room = psutil.Process().memory_info().vms + 75 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
found = capture(100_000, lambda *sizes: told.append(sizes))
worst = max(float(abs(found[key] - expected[key]).max()) for key in expected)
print(told[0], worst)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS holds on Linux")
def test_a_process_that_may_have_no_more_memory_goes_on_in_halves() -> None:
    here = Path(__file__).resolve()
    paths = os.pathsep.join(map(str, (here.parents[2], here.parents[1])))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    first, worst = ended.stdout.rsplit(maxsplit=1)
    assert first == "(48, 24)"
    assert float(worst) < ROUNDING
