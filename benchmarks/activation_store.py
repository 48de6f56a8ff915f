"""Write and read speed of the activation store against a raw file and other Zarr pipelines.

    python benchmarks/activation_store.py            600 prompts, 33 states, 4 sites, d = 4096 (649 MB)
    python benchmarks/activation_store.py --quick     a tenth of it
    python benchmarks/activation_store.py --json store.json --markdown store.md

Everything runs in one process, and rounds of all contenders alternate. Medians are reported: CPU time of the
process with all its threads (on a busy machine the only steady measure; ratios are of it) and wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from store.bfloat16 import pack, widen
from store.layout import METADATA
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

Array = np.ndarray[Any, Any]
Action = Callable[[], Any]
PIPELINES = {
    "zarr default pipeline": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "zarrs pipeline": "zarrs.ZarrsCodecPipeline",
}
MODEL, POSITION = "base", "last_content"


@dataclass(frozen=True)
class Workload:
    """Sizes: prompts, blocks (states are one more), width, prompts per unit, rounds of each measurement."""

    prompts: int
    blocks: int
    d: int
    unit: int
    rounds: int

    @property
    def units(self) -> int:
        return -(-self.prompts // self.unit)

    def plan(self) -> StorePlan:
        model = ModelPlan(d=self.d, n_layers=self.blocks, n_heads=32, head_dim=self.d // 32)
        return StorePlan({MODEL: model}, {POSITION: PositionPlan()}, self.prompts, unit_prompts=self.unit)


def activations(work: Workload) -> tuple[Array, Array]:
    """One unit as uint16 bits of bfloat16: sites (3, states, unit, d) and head_z (blocks, unit, d).

    Columns have log-normal scales, as residual streams do; bits of pure noise would not compress.
    """
    rng = np.random.default_rng(0)
    scale = np.exp(rng.standard_normal(work.d)).astype(np.float32)
    planes = [
        pack(rng.standard_normal((work.unit, work.d), dtype=np.float32) * scale)
        for _ in range(3 * (work.blocks + 1) + work.blocks)
    ]
    sites = np.stack(planes[: 3 * (work.blocks + 1)]).reshape(3, work.blocks + 1, work.unit, work.d)
    return sites, np.stack(planes[3 * (work.blocks + 1) :])


def rows_of(work: Workload, unit: int) -> int:
    return min(work.unit, work.prompts - unit * work.unit)


def write_raw(folder: Path, work: Workload, unit: tuple[Array, Array], durable: bool) -> None:
    """The floor: the same planes, one plain file per unit."""
    for number in range(work.units):
        rows = rows_of(work, number)
        with open(folder / f"{number}.raw", "wb", buffering=0) as file:
            for block in unit:
                for plane in block.reshape(-1, work.unit, work.d):
                    file.write(plane[:rows].data)
            if durable:
                os.fsync(file.fileno())


def write_store(folder: Path, work: Workload, unit: tuple[Array, Array], durable: bool) -> None:
    with StoreWriter.create_or_resume(folder, work.plan(), {}, "0" * 64, durable=durable) as writer:
        for number in writer.pending(MODEL):
            rows = rows_of(work, number)
            values = {"sites": unit[0][:, :, :rows], "head_z": unit[1][:, :rows]}
            writer.commit(MODEL, number, {POSITION: values})
        writer.finish({})


def write_zarr(folder: Path, work: Workload, unit: tuple[Array, Array], durable: bool) -> None:
    """The same arrays through zarr's own writer, whole shards at a time (never flushed to the disk)."""
    del durable
    plan = work.plan()
    for leaf, block in zip(("sites", "head_z"), unit, strict=True):
        spec = plan.spec(MODEL, POSITION, leaf)
        (folder / spec.name).mkdir(parents=True)
        (folder / spec.name / METADATA).write_bytes(spec.metadata())
        array = zarr.open_array(folder / spec.name, mode="r+")
        for number in range(work.units):
            first, rows = number * work.unit, rows_of(work, number)
            if leaf == "sites":
                array[:, :, first : first + rows] = block[:, :, :rows]
            else:
                array[:, first : first + rows] = block[:, :rows].reshape(-1, rows, *spec.shape[2:])


@dataclass(frozen=True)
class Cost:
    """Median seconds of the process's CPU time and of wall time."""

    cpu: float
    wall: float


Costs = dict[str, Cost]


def timed(action: Action) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def medians(actions: dict[str, Action], rounds: int, before: Action = lambda: None) -> Costs:
    """Costs of each action over alternating rounds; the first round only warms up."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            before()
            cost = timed(action)
            if number:
                samples[name].append(cost)
    return {
        name: Cost(*(statistics.median(column) for column in zip(*values, strict=True)))
        for name, values in samples.items()
    }


def measure_writes(root: Path, work: Workload, durable: bool) -> Costs:
    unit = activations(work)

    def fresh(write: Callable[..., None], pipeline: str | None = None) -> Action:
        def action() -> None:
            with zarr.config.set({"codec_pipeline.path": pipeline} if pipeline else {}):
                write(root / "write", work, unit, durable)

        return action

    def clear() -> None:
        shutil.rmtree(root / "write", ignore_errors=True)
        (root / "write").mkdir()
        os.sync()

    actions: dict[str, Action] = {"raw file": fresh(write_raw), "store": fresh(write_store)}
    if not durable:
        actions |= {name: fresh(write_zarr, path) for name, path in PIPELINES.items()}
    result = medians(actions, max(2, work.rounds // 10), clear)
    clear()
    return result


def tensorstore_array(path: Path) -> Any | None:
    try:
        import tensorstore
    except ImportError:
        return None
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    return tensorstore.open(spec, open=True, read=True).result()


def measure_reads(root: Path, work: Workload) -> tuple[Costs, Costs]:
    """(bits, float32): seconds to read one (site, state) of all prompts, warm."""
    unit = activations(work)
    write_store(root / "store", work, unit, False)
    sites = 3 * (work.blocks + 1)
    raw = root / "raw.bin"
    with open(raw, "wb", buffering=0) as file:
        for plane in unit[0].reshape(sites, work.unit, work.d):
            for number in range(work.units):
                file.write(plane[: rows_of(work, number)].data)
    mapped = np.memmap(raw, np.uint16, "r", shape=(sites, work.prompts, work.d))
    handle, size = os.open(raw, os.O_RDONLY), work.prompts * work.d * 2
    state = iter(range(10**9))

    def pick() -> int:
        return next(state) * 7 % work.blocks  # another slice each time

    def pread() -> Array:
        return np.frombuffer(os.pread(handle, size, pick() * size), np.uint16).reshape(-1, work.d)

    def zarr_slice(array: Any) -> Action:
        # Slices only: an integer index sends zarrs back to zarr's own, slower pipeline.
        def action() -> Array:
            state = pick()
            return np.asarray(array[0:1, state : state + 1])

        return action

    store, name = Store(root / "store"), work.plan().spec(MODEL, POSITION, "sites").name
    bits: dict[str, Action] = {
        "memmap": lambda: np.array(mapped[pick()]),
        "pread": pread,
        "store": lambda: store.activations(MODEL, "resid", pick(), stored=True),
    }
    for label, path in PIPELINES.items():
        with zarr.config.set({"codec_pipeline.path": path}):
            array = zarr.open_array(root / "store" / name, mode="r")
        bits[label] = zarr_slice(array)
    foreign = tensorstore_array(root / "store" / name)
    if foreign is not None:
        bits["tensorstore"] = lambda: foreign[0, pick()].read().result()
    wide: dict[str, Action] = {
        "memmap": lambda: widen(mapped[pick()]),
        "pread": lambda: widen(pread()),
        "store": lambda: store.activations(MODEL, "resid", pick()),
    }
    expected = mapped[3]
    if not np.array_equal(store.activations(MODEL, "resid", 3, stored=True), expected):
        raise SystemExit("the store does not return what was written")
    result = medians(bits, work.rounds), medians(wide, work.rounds)
    os.close(handle)
    return result


def table(title: str, costs: Costs, baselines: tuple[str, ...]) -> list[str]:
    """A Markdown table: milliseconds, and ratios of CPU time to the baselines."""
    head = " | ".join(f"× {name}" for name in baselines)
    lines = [f"| {title} | CPU ms | {head} | wall ms |", "|---|" + "---:|" * (2 + len(baselines))]
    for name, cost in costs.items():
        ratios = " | ".join(f"{cost.cpu / costs[b].cpu:.2f}" for b in baselines)
        lines.append(f"| {name} | {cost.cpu * 1e3:.2f} | {ratios} | {cost.wall * 1e3:.2f} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the data")
    parser.add_argument("--prompts", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--markdown", type=Path, default=None)
    options = parser.parse_args()
    prompts = options.prompts or (192 if options.quick else 600)
    work = Workload(prompts, 8 if options.quick else 32, 4096, 64, options.rounds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        writes = measure_writes(root, work, durable=False)
        durable = measure_writes(root, work, durable=True)
        bits, wide = measure_reads(root, work)
        use = Store(root / "store").disk_use()
    ratio = use["activations"] / use["raw"]
    lines = [
        f"{work.prompts} prompts, {work.blocks + 1} states, 4 sites, d = {work.d}: "
        f"{use['raw'] / 1e6:.0f} MB as bfloat16; size on disk {ratio:.3f} of that; {os.cpu_count()} cores.",
        "",
        *table("write", writes, ("raw file",)),
        *table("write, flushed to the disk", durable, ("raw file",)),
        *table("read one (site, state), bits", bits, ("memmap", "pread")),
        *table("read one (site, state), float32", wide, ("memmap", "pread")),
    ]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines))
    if options.json:
        tables = {"write": writes, "write_durable": durable, "read_bits": bits, "read_float32": wide}
        seconds = {t: {name: asdict(cost) for name, cost in costs.items()} for t, costs in tables.items()}
        report = {"workload": asdict(work), "size_ratio": ratio, "seconds": seconds}
        options.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
