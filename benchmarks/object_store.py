"""Opening, a first page's reads and verifying on an S3 server of this machine, against a local folder.

    python benchmarks/object_store.py            two models of 16 blocks, 600 prompts, d = 256, Grams
    python benchmarks/object_store.py --quick    a tenth of the prompts

The server (moto's) is a process of its own. Given are wall time and CPU time of this process, medians of some
rounds; the first time of each in a process stands apart, since what was read is kept in memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from store.manifest import verify
from store.reader import Store
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

MODELS, BLOCKS, WIDTH, UNIT = ("base", "tuned"), 16, 256, 16
Place = str | Path


def write(place: Place, prompts: int) -> None:
    """A store of random numbers with pieces of weights, as precompute lays one out."""
    rng = np.random.default_rng(0)
    model = ModelPlan(d=WIDTH, n_layers=BLOCKS, n_heads=4, head_dim=WIDTH // 4)
    positions = {name: PositionPlan() for name in ("last_content", "decision")}
    plan = StorePlan(dict.fromkeys(MODELS, model), positions, prompts, unit_prompts=UNIT)
    with StoreWriter.create_or_resume(place, plan, {"name": "bench"}, "ab" * 32, durable=False) as writer:
        writer.write_table("prompts", pl.DataFrame({"id": [f"p{i}" for i in range(prompts)], "text": "text"}))
        for name in MODELS:
            for unit in writer.pending(name):
                rows = len(plan.prompts_of(unit))
                values = {}
                for position in positions:
                    sites = rng.standard_normal((3, BLOCKS + 1, rows, WIDTH), dtype=np.float32)
                    heads = rng.standard_normal((BLOCKS, rows, WIDTH), dtype=np.float32)
                    values[position] = {"sites": sites, "head_z": heads}
                writer.commit(name, unit, values)
            for component, layers in (("resid", BLOCKS + 1), ("attn_out", BLOCKS)):
                few = min(prompts, 100)
                grams = rng.standard_normal((layers, few, few), dtype=np.float32)
                writer.write_grams(name, "last_content", component, grams)
            for block in range(BLOCKS * 8):
                piece = rng.standard_normal((64, 64), dtype=np.float32)
                writer.write_array(f"weights/{name}/piece-{block}", piece, ("row", "column"))
        writer.finish({"self_checks": []})


def opening(place: Place) -> None:
    """What a server does before it shows anything."""
    store = Store(place)
    assert store.prompts.height == store.n_prompts


def first_page(place: Place) -> None:
    """Facts, sizes of everything, a slice of each site, and the Grams of a component."""
    store = Store(place)
    store.self_checks(), store.array_names(), store.disk_use(), store.prompts
    for model in store.models:
        for component in ("resid_post", "attn_out", "mlp_out", "head_z"):
            store.activations(model, component, BLOCKS // 2)
        store.array(f"grams/{model}/last_content/resid")


def verified(place: Place) -> None:
    """Every byte."""
    assert verify(place) == []


def timed(action: Callable[[Place], None], place: Place) -> tuple[float, float]:
    """(wall, CPU) milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    action(place)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


@contextmanager
def server() -> Iterator[str]:
    """A bucket's name, on a server that ends behind the block."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    address = f"http://127.0.0.1:{port}"
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}
    os.environ |= {"AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true"}
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/bench", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield "bench"
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the prompts")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    prompts = 60 if options.quick else 600
    folder = Path(tempfile.mkdtemp(prefix="patchbay-objects-"))
    try:
        with server() as bucket:
            places: dict[str, Place] = {"local": folder / "store", "s3": f"s3://{bucket}/store"}
            wrote = {name: timed(partial(write, prompts=prompts), place) for name, place in places.items()}
            files = sum(path.is_file() for path in (folder / "store").rglob("*"))
            print(f"{files} files, load {os.getloadavg()[0]:.1f}; milliseconds: wall (CPU of this process)\n")
            print("| what | local | s3 | × wall | × CPU |\n|---|---:|---:|---:|---:|")
            line("writing", wrote["local"], wrote["s3"])
            for action in (opening, first_page, verified):
                first = {name: timed(action, place) for name, place in places.items()}
                line(f"{action.__name__}, first time", first["local"], first["s3"])
                rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in places}
                for _ in range(options.rounds):
                    for name, place in places.items():
                        rounds[name].append(timed(action, place))
                line(f"{action.__name__}, afterwards", median(rounds["local"]), median(rounds["s3"]))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def median(rounds: list[tuple[float, float]]) -> tuple[float, float]:
    walls, cpus = zip(*rounds, strict=True)
    return statistics.median(walls), statistics.median(cpus)


def line(what: str, local: tuple[float, float], remote: tuple[float, float]) -> None:
    told = " | ".join(f"{wall:.0f} ({cpu:.0f})" for wall, cpu in (local, remote))
    ratios = f"{remote[0] / local[0]:.1f} | {remote[1] / local[1]:.1f}"
    print(f"| {what.replace('_', ' ')} | {told} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
