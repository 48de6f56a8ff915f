"""Everything that only an accelerator can show, in one command and one table; under eight minutes.

    python benchmarks/gpu.py                 the first accelerator that torch finds, else a toy run on the CPU
    python benchmarks/gpu.py --device cuda:1 --dtypes bfloat16 --markdown gpu.md
    python benchmarks/gpu.py --device cpu    the toy run: tests the script, says nothing about speed

peaks        one large matrix product and one large copy on this device: what speeds are set against
correct      captured rows and a sweep's KLs of a small model against a CPU's, in every dtype. The reference
             is a CPU in the next wider dtype; the device may be `SLACK` times as far from it as a CPU is
             in the dtype itself, so the limit is the dtype's rounding on the same numbers, no constant
throughput   capture of every site, a sweep of 264 conditions, generated tokens on Qwen3-0.6B's shape with
             random weights: tokens, rows and bytes per second, and what share of the peaks that is
memory       capture and a sweep in half the memory that they took: batches must be halved, numbers stay

Exit status 1 when a number is wrong, a halving did not happen or a part failed.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.models.loading import LoadedModel, from_parts
from engine.models.memory import free
from engine.models.sites import Site
from engine.passes.batching import batches, padded_tokens
from engine.passes.capture import capture_unit, forward_hidden
from engine.passes.generate import generate, replace_at
from engine.passes.patch_engine import PatchEngine
from engine.prompts.positions import Positions

SLACK = 3.0
"""How much farther from the reference than a CPU in the same dtype: sums run in another order, and the worst
of thousands of rows is compared with the worst of thousands."""
WIDER = {"float32": torch.float64, "bfloat16": torch.float32, "float16": torch.float32}
COMPONENTS = ("resid", "attn_out", "mlp_out", "head_z")
TIGHT = 0.5
"""Share of a batch's own need that it is left with when memory is made short."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is: a real shape, or the script's own test."""

    square: int
    copied: int
    small: dict[str, Any]
    large: dict[str, Any]
    prompts: int
    longest: int
    alphas: int
    ranks: int
    generated: int
    batch_tokens: int
    rounds: int


def _shape(d: int, blocks: int, heads: int, keys: int, head_dim: int, ff: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": d,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "head_dim": head_dim,
        "intermediate_size": ff,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }


FULL = Sizes(
    square=8192,
    copied=1 << 30,
    small=_shape(512, 8, 8, 2, 64, 1408, 8000),
    large=_shape(1024, 28, 16, 8, 128, 3072, 151_936),
    prompts=480,
    longest=60,
    alphas=11,
    ranks=24,
    generated=48,
    batch_tokens=16_384,
    rounds=3,
)
SMALL = Sizes(
    square=256,
    copied=1 << 22,
    small=_shape(32, 2, 4, 2, 16, 48, 199),
    large=_shape(48, 3, 4, 2, 16, 64, 299),
    prompts=12,
    longest=16,
    alphas=2,
    ranks=3,
    generated=4,
    batch_tokens=4096,
    rounds=1,
)


@dataclass
class Table:
    """Rows of the table, printed as they come, and whether one of them failed."""

    device: torch.device
    rows: list[str] = field(default_factory=list)
    failed: bool = False
    flops: dict[str, float] = field(default_factory=dict)
    bytes: float = float("nan")

    def add(self, *cells: str, ok: bool = True) -> None:
        """A row: what, dtype, measured, against, share or limit; a failed one says so."""
        self.failed |= not ok
        self.rows.append("| " + " | ".join((*cells, "" if ok else "**wrong**")) + " |")
        print(self.rows[-1], flush=True)

    def share(self, flops: float, seconds: float, dtype: str) -> str:
        """FLOP/s and how much of the measured peak they are."""
        rate = flops / seconds
        return f"{rate / 1e12:.3g} TFLOP/s, {rate / self.flops[dtype]:.0%} of peak"


HEAD = "| what | dtype | measured | against | |\n|---|---|---|---|---|"


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    torch.get_device_module(device).synchronize()


def seconds(device: torch.device, task: Callable[[], Any], rounds: int) -> float:
    """Wall time of a call, the best of some rounds after one that is not counted."""
    task()
    best = float("inf")
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        task()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def model(shape: dict[str, Any], dtype: torch.dtype, device: torch.device, seed: int = 0) -> LoadedModel:
    """A Qwen3 of a shape with random weights, made on the device."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model("qwen3", **shape, max_position_embeddings=4096)
    with torch.device(device):
        made = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return from_parts(made)


def prompts(count: int, longest: int, vocab: int) -> list[list[int]]:
    """Random tokens, a quarter of `longest` to `longest` of them, longest first."""
    rng = np.random.default_rng(0)
    lengths = sorted(rng.integers(longest // 4, longest + 1, count).tolist(), reverse=True)
    return [rng.integers(3, vocab, length).tolist() for length in lengths]


def places(token_ids: Sequence[Sequence[int]]) -> dict[str, Positions]:
    """The last token, the one two before it, and the mean over the later three quarters."""
    last = [len(ids) - 1 for ids in token_ids]
    return {
        "decision": Positions("decision", "one", tuple(np.array([i]) for i in last)),
        "last_content": Positions("last_content", "one", tuple(np.array([i - 2]) for i in last)),
        "mean": Positions("mean", "mean", tuple(np.arange((i + 1) // 4, i) for i in last)),
    }


def captured(
    lm: LoadedModel, ids: list[list[int]], tokens: int, on_halved: Any = None
) -> dict[Any, np.ndarray]:
    """Every site at every position, by (position, component, layer)."""
    found = capture_unit(
        lm, ids, range(len(ids)), places(ids), components=COMPONENTS, batch_tokens=tokens, on_halved=on_halved
    )
    return {(place, *key): rows for place, sites in found.items() for key, rows in sites.items()}


def row_error(found: dict[Any, np.ndarray], reference: dict[Any, np.ndarray]) -> float:
    """Largest ‖found − reference‖ / ‖reference‖ of any row at any site."""

    def worst(key: Any) -> float:
        distance = np.linalg.norm(found[key] - reference[key], axis=1)
        return float((distance / np.linalg.norm(reference[key], axis=1)).max())

    return max(map(worst, reference))


def swaps(own: np.ndarray, alphas: int, ranks: int) -> Callable[[Sequence[int]], np.ndarray]:
    """Rank-k swaps of another prompt's activation at some amplitudes: prompts -> (conditions, prompts, d)."""
    basis = np.linalg.qr(np.random.default_rng(1).standard_normal((own.shape[1], ranks)))[0].astype(
        np.float32
    )
    source, amplitudes = np.roll(own, 1, axis=0), np.linspace(0.0, 2.0, alphas, dtype=np.float32)

    def values(chosen: Sequence[int]) -> np.ndarray:
        here = own[list(chosen)]
        change = source[list(chosen)] - here
        swapped = np.stack([here + (change @ basis[:, :k]) @ basis[:, :k].T for k in range(1, ranks + 1)])
        return (amplitudes[:, None, None, None] * swapped).reshape(-1, *here.shape)

    return values


def peaks(table: Table, sizes: Sizes, dtypes: Sequence[str]) -> None:
    """Matrix product and copy: the speeds that the others are set against."""
    for name in dtypes:
        a = torch.randn(sizes.square, sizes.square, device=table.device).to(getattr(torch, name))
        took = seconds(table.device, lambda a=a: torch.nn.functional.linear(a, a), sizes.rounds + 2)  # type: ignore[misc]
        table.flops[name] = 2.0 * sizes.square**3 / took
        what = f"{sizes.square}² times {sizes.square}²"
        table.add("peak: matrix product", name, f"{table.flops[name] / 1e12:.3g} TFLOP/s", what)
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=table.device)
    target = torch.empty_like(source)
    took = seconds(table.device, lambda: target.copy_(source), sizes.rounds + 2)
    table.bytes = 2.0 * sizes.copied / took
    table.add(
        "peak: copy", "", f"{table.bytes / 1e9:,.0f} GB/s", f"{sizes.copied / 1e6:,.0f} MB, read and written"
    )


def cast(made: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in a dtype; buffers stay, as in a loaded checkpoint."""
    for parameter in made.parameters():
        parameter.data = parameter.data.to(dtype)
    return made


def correct(table: Table, sizes: Sizes, dtypes: Sequence[str]) -> None:
    """Captured rows and KLs of a small model, against a CPU in the next wider dtype."""
    first = model(sizes.small, torch.float32, torch.device("cpu"))
    ids = prompts(min(48, sizes.prompts), sizes.longest, first.taps.vocab)
    last, site = [len(i) - 1 for i in ids], Site("resid_post", first.taps.n_layers // 2)
    values = swaps(PatchEngine(first, ids, last).activations(site).numpy(), 2, 3)

    def measured(lm: LoadedModel) -> tuple[dict[Any, np.ndarray], np.ndarray]:
        return captured(lm, ids, 4096), PatchEngine(lm, ids, last).sweep(site, values, n_conditions=6).kl

    for name in dtypes:
        dtype = getattr(torch, name)
        rounded = cast(copy.deepcopy(first.model), dtype)
        wide = from_parts(cast(copy.deepcopy(rounded), torch.float32))
        cast(wide.model, WIDER[name])
        reference, near = measured(wide), measured(from_parts(copy.deepcopy(rounded)))
        found = measured(from_parts(rounded.to(table.device)))
        limit, error = SLACK * row_error(near[0], reference[0]), row_error(found[0], reference[0])
        against = f"{limit:.2g}, {SLACK:g} × a CPU's"
        table.add("correct: captured rows", name, f"{error:.2g} relative", against, ok=error <= limit)
        rounding, error = (float(np.abs(kl - reference[1]).max()) for _, kl in (near, found))
        limit = SLACK * rounding
        against = f"{limit:.2g}, {SLACK:g} × a CPU's; KLs up to {reference[1].max():.2g}"
        table.add("correct: KL of patches", name, f"{error:.2g} nats", against, ok=error <= limit)


def throughput(table: Table, sizes: Sizes, name: str) -> None:
    """Capture, sweep and generation on a real shape, in one dtype."""
    device, rounds = table.device, sizes.rounds
    lm = model(sizes.large, getattr(torch, name), device)
    ids = prompts(sizes.prompts, sizes.longest, lm.taps.vocab)
    lengths = [len(i) for i in ids]
    plan = batches(lengths, sizes.batch_tokens)
    block = sum(p.numel() for p in lm.taps.layers[0].block.parameters())
    weights = sum(p.numel() for p in lm.model.parameters()) * lm.dtype.itemsize

    def bare() -> None:
        for batch in plan:
            forward_hidden(lm, [ids[i] for i in batch])

    bare_s = seconds(device, bare, rounds)
    took = seconds(device, lambda: captured(lm, ids, sizes.batch_tokens), rounds)
    flops = 2.0 * block * lm.taps.n_layers * padded_tokens(lengths, plan)
    kept = sum(rows.nbytes for rows in captured(lm, ids, sizes.batch_tokens).values())
    said = f"{sum(lengths) / took:,.0f} tokens/s, {kept / took / 1e9:.2g} GB/s kept"
    against = f"{took / bare_s:.2f} × bare passes; {table.share(flops, took, name)}"
    table.add(f"capture, {len(ids)} prompts", name, said, against)

    depth = lm.taps.n_layers // 2
    count, site = sizes.alphas * sizes.ranks, Site("resid_post", depth)
    engine = PatchEngine(lm, ids, [length - 1 for length in lengths])
    values = swaps(engine.activations(site).numpy(), sizes.alphas, sizes.ranks)
    took = seconds(device, lambda: engine.sweep(site, values, n_conditions=count), 1)
    rows = len(ids) * (count + 1)
    flops = 2.0 * rows * (block * (lm.taps.n_layers - 1 - depth) + lm.taps.vocab * lm.taps.d)
    said = f"{1e3 * took / count:.2f} ms a condition, {rows / took:,.0f} rows/s"
    table.add(f"sweep, {count} conditions at block {depth}", name, said, table.share(flops, took, name))

    few = ids[: max(4, sizes.prompts // 30)]
    edits = [
        None,
        *(replace_at(site, [len(i) - 1 for i in few], np.ones((len(few), lm.taps.d))) for _ in range(3)),
    ]
    took = seconds(device, lambda: generate(lm, few, edits, max_new_tokens=sizes.generated, stop=[]), 1)
    steps, made = sizes.generated, len(few) * len(edits) * sizes.generated
    rate = steps * weights / took
    said = f"{made / took:,.0f} tokens/s, {1e3 * took / steps:.1f} ms a step"
    against = f"{rate / 1e9:,.0f} GB/s of weights, {rate / table.bytes:.0%} of peak"
    table.add(f"generation, {len(few)} prompts × {len(edits)}", name, said, against)


@contextmanager
def short_of_memory(lm: LoadedModel, need: int, most: int) -> Iterator[None]:
    """Leaves the process `TIGHT` times the bytes that a run needed; simulated where no limit can be set.

    Args:
        need: bytes beside what is held now. most: tokens of a batch that a simulation refuses.
    """
    backend = torch.get_device_module(lm.device)
    if hasattr(backend, "set_per_process_memory_fraction") and hasattr(backend, "memory_reserved"):
        free()
        total = backend.get_device_properties(lm.device).total_memory
        backend.set_per_process_memory_fraction(
            (backend.memory_reserved(lm.device) + TIGHT * need) / total, lm.device
        )
        try:
            yield
        finally:
            backend.set_per_process_memory_fraction(1.0, lm.device)
        return

    def refuse(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].numel() >= most:
            raise torch.OutOfMemoryError("simulated: out of memory")

    handle = lm.taps.decoder.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def need_of(device: torch.device, task: Callable[[], Any]) -> tuple[Any, int]:
    """What a call returned, and the bytes that it needed beside what was held before."""
    backend = torch.get_device_module(device)
    if not hasattr(backend, "reset_peak_memory_stats"):
        return task(), 0
    free()
    backend.reset_peak_memory_stats(device)
    held = backend.memory_allocated(device)
    found = task()
    return found, int(backend.max_memory_allocated(device) - held)


def memory(table: Table, sizes: Sizes, name: str) -> None:
    """Capture and a sweep in half the memory that they took; smaller batches alone may change as much."""
    lm = model(sizes.large, getattr(torch, name), table.device)
    ids, eps = prompts(sizes.prompts, sizes.longest, lm.taps.vocab), torch.finfo(lm.dtype).eps
    tokens = len(ids) * max(map(len, ids))
    told: list[Any] = []

    whole, need = need_of(lm.device, lambda: captured(lm, ids, tokens))
    limit = SLACK * max(eps, row_error(captured(lm, ids, tokens // 8), whole))
    with short_of_memory(lm, need, tokens // 4):
        again = captured(lm, ids, tokens, lambda *halved: told.append(halved))
    error = row_error(again, whole)
    said, against = f"{len(told)} halvings", f"rows differ by {error:.2g}, limit {limit:.2g}"
    table.add(f"memory: capture, {need / 1e9:.2g} GB", name, said, against, ok=bool(told) and error <= limit)
    del whole, again

    if not hasattr(torch.get_device_module(lm.device), "set_per_process_memory_fraction"):
        return  # a sweep does not run the decoder, through which shortness is simulated
    site, last, count = Site("resid_post", 0), [len(i) - 1 for i in ids], sizes.alphas * sizes.ranks
    engine, small = (PatchEngine(lm, ids, last, batch_tokens=rows) for rows in (1 << 16, 1 << 12))
    values = swaps(engine.activations(site).numpy(), sizes.alphas, sizes.ranks)
    swept, need = need_of(lm.device, lambda: engine.sweep(site, values, n_conditions=count))
    limit = SLACK * max(eps, float(np.abs(small.sweep(site, values, n_conditions=count).kl - swept.kl).max()))
    with short_of_memory(lm, need, 0):
        found = engine.sweep(site, values, n_conditions=count)
    error = float(np.abs(found.kl - swept.kl).max())
    said, against = f"{found.halvings} halvings", f"KLs differ by {error:.2g} nats, limit {limit:.2g}"
    ok = found.halvings > 0 and error <= limit
    table.add(f"memory: sweep, {need / 1e9:.2g} GB", name, said, against, ok=ok)


def device_name(device: torch.device) -> str:
    """The card's own name, where there is one."""
    backend = torch.get_device_module(device)
    return str(backend.get_device_name(device)) if hasattr(backend, "get_device_name") else device.type


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--small", action="store_true", help="toy sizes; always on a CPU")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.device(chosen.device) if chosen.device != "auto" else found or torch.device("cpu")
    sizes = SMALL if chosen.small or device.type == "cpu" else FULL
    dtypes, start = chosen.dtypes.split(","), time.perf_counter()
    note = "" if sizes is FULL else " Toy sizes: this tests the script and says nothing about speed."
    title = f"{device_name(device)}, torch {torch.__version__}.{note}"
    print(f"{title}\n\n{HEAD}", flush=True)
    table = Table(device)
    parts = [partial(peaks, table, sizes, dtypes), partial(correct, table, sizes, dtypes)]
    parts += [partial(throughput, table, sizes, name) for name in dtypes]
    for part in [*parts, partial(memory, table, sizes, dtypes[-1])]:
        try:
            part()
        except Exception as error:  # the others are still worth their time on a borrowed device
            traceback.print_exc()
            table.add(
                part.func.__name__, "", f"{type(error).__name__}", " ".join(str(error).split())[:80], ok=False
            )
        free()
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    if chosen.markdown:
        chosen.markdown.write_text("\n".join([title, "", HEAD, *table.rows]) + "\n", encoding="utf-8")
    return int(table.failed)


if __name__ == "__main__":
    sys.exit(main())
