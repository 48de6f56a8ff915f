"""A sweep of live patches against other libraries that run one condition at a time.

    python benchmarks/patching.py             150 prompts, 264 conditions: about five minutes
    python benchmarks/patching.py --quick     30 prompts
    python benchmarks/patching.py --json patching.json --markdown patching.md

A Qwen2 of 12 blocks with random weights (d = 512, 8 heads, 2 of keys and values, vocabulary 32,000), prompts
of 15 to 60 tokens, patched at the last token, KL of the next-token distribution. 264 conditions: 11 alphas x
8 ranks x 3 kinds of map. One process, one thread, process CPU time per condition; a sweep's time includes
its unpatched pass ("capture": an engine makes it once, whatever the number of sweeps). The others run whole
conditions, one per row of the table, and must find the same KL.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes.linear import measure
from engine.passes.patch_engine import PatchEngine

warnings.filterwarnings("ignore")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from peers import PADDED, TUNED, Peer, Unavailable  # noqa: E402

ALPHAS = np.linspace(0.0, 2.0, 11, dtype=np.float32)
RANKS = (1, 2, 4, 8, 16, 32, 64, 128)
KINDS = 3
WIDTH, BLOCKS, VOCAB = 512, 12, 32_000
TOLERANCE = 1e-4
"""Nats: float32 rounding of a whole model, twice."""
# Where the engine patches, and the block behind which the others do: resid_pre(l) is resid_post(l - 1).
ROWS = (
    ("first", Site("resid_post", 0), 0),
    ("middle", Site("resid_post", 6), 6),
    ("last", Site("resid_pre", 11), 10),
    ("last, only the head left", Site("resid_post", 11), 11),
)
Peers = list[tuple[type[Peer], Any]]
"""Each peer's class with the peer itself, or with the reason why there is none."""


@dataclass(frozen=True)
class Contender:
    """One peer at one row: CPU seconds per condition, and how far its KL is from the engine's."""

    name: str
    version: str
    tuned: bool
    seconds: float | None = None
    difference: float | None = None
    note: str = ""


@dataclass
class Row:
    """One site: the engine's CPU seconds per condition (the whole sweep's over 264) and every peer's.

    `capture` is the share of the unpatched pass in it: that pass is made once for all sites of an engine.
    """

    label: str
    site: str
    seconds: float
    capture: float
    mean_kl: float
    self_kl: float
    contenders: list[Contender] = field(default_factory=list)


def random_model() -> Any:
    """The benchmark's model, random weights from a fixed seed."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCAB,
    )
    return Qwen2ForCausalLM(config).eval().requires_grad_(False)


def random_prompts(n: int) -> list[list[int]]:
    """n prompts of 15 to 60 random tokens."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, VOCAB, rng.integers(15, 61)).tolist() for _ in range(n)]


def conditions(own: np.ndarray) -> Callable[[Sequence[int]], np.ndarray]:
    """Rank-k swaps of random maps at 11 amplitudes: prompt indices -> (264, prompts, d).

    Condition (alpha, rank k, kind) puts in alpha * (own + U_k U_k^T (source - own)), U orthonormal per kind.
    """
    rng = np.random.default_rng(1)
    bases = [
        np.linalg.qr(rng.standard_normal((WIDTH, RANKS[-1])))[0].astype(np.float32) for _ in range(KINDS)
    ]
    source = rng.standard_normal(own.shape).astype(np.float32) * own.std() + own.mean(0)

    def values(prompts: Sequence[int]) -> np.ndarray:
        here = own[list(prompts)]
        change = source[list(prompts)] - here
        swapped = [here + (change @ u[:, :k]) @ u[:, :k].T for u in bases for k in RANKS]
        return (ALPHAS[:, None, None, None] * np.stack(swapped)).reshape(-1, *here.shape)

    return values


def cpu_seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """Process CPU time of a call, and what it returned."""
    start = time.process_time()
    found = task()
    return time.process_time() - start, found


def run_row(
    lm: LoadedModel, prompts: list[list[int]], row: tuple[str, Site, int], peers: Sequence[Any]
) -> Row:
    """Times the engine's whole sweep and one condition of every peer at one site."""
    label, site, block = row
    last = [len(ids) - 1 for ids in prompts]
    count = len(ALPHAS) * len(RANKS) * KINDS
    engine: list[PatchEngine] = []

    def capture() -> np.ndarray:
        engine.append(PatchEngine(lm, prompts, last))
        return engine[0].activations(site).numpy()

    captured, own = cpu_seconds(capture)
    values = conditions(own)
    total, swept = cpu_seconds(lambda: engine[0].sweep(site, values, n_conditions=count))
    facts = (float(swept.kl.mean()), float(swept.self_kl.max()))
    found = Row(label, str(site), (captured + total) / count, captured / count, *facts)
    vectors = torch.from_numpy(values(range(len(prompts))))
    for turn, (kind, peer) in enumerate(peers):
        tuned = kind in TUNED
        if isinstance(peer, str):
            found.contenders.append(Contender(kind.name, "", tuned, note=peer))
            continue
        chosen = (149 + 31 * turn) % count

        def condition(peer: Peer = peer, chosen: int = chosen) -> torch.Tensor:
            log_p = peer.log_probs(block, vectors[chosen])
            return (log_p.exp() * (log_p - peer.unpatched)).sum(-1)  # type: ignore[attr-defined]

        seconds, kl = cpu_seconds(condition)
        difference = float(np.abs(kl.numpy() - swept.kl[chosen]).max())
        found.contenders.append(Contender(kind.name, kind.version(), tuned, seconds, difference))
    return found


def prepare(model: Any, prompts: list[list[int]]) -> Peers:
    """Every peer with its unpatched distributions (not timed), or why there is none."""
    ready: Peers = []
    for kind in (*PADDED, *TUNED):
        try:
            peer: Any = kind(model, prompts)
            peer.unpatched = peer.log_probs(0, None)
            ready.append((kind, peer))
        except Unavailable as reason:
            ready.append((kind, str(reason)))
    return ready


def markdown(rows: Sequence[Row]) -> str:
    """The table: CPU milliseconds per condition, and each peer's ratio to the engine."""
    names = [(c.name, c.version, c.tuned) for c in rows[0].contenders]
    head = [
        "site",
        "Patchbay, CPU ms per condition",
        *(f"{name} {version}".strip() for name, version, _ in names),
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{row.label}: {row.site}", f"{1e3 * row.seconds:.1f} ({1e3 * row.capture:.1f} capture)"]
        for peer in row.contenders:
            ratio = peer.note if peer.seconds is None else f"**{peer.seconds / row.seconds:.0f}×**"
            cells.append(ratio if peer.seconds is None else f"{ratio} ({1e3 * peer.seconds:.0f} ms)")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="30 prompts instead of 150")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    parser.add_argument("--markdown", type=Path, help="also write the table here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = random_prompts(30 if options.quick else 150)
    model = random_model()
    lm = from_parts(model)
    packing = measure(lm.dtype)
    peers = prepare(model, prompts)
    rows = [run_row(lm, prompts, row, peers) for row in ROWS]
    table = markdown(rows)
    worst = max(c.difference for row in rows for c in row.contenders if c.difference is not None)
    print(table)
    print(f"\nLargest difference of a KL: {worst:.1e} nats. Packed linears: {packing}.")
    if options.markdown:
        options.markdown.write_text(table + "\n")
    if options.json:
        facts: dict[str, Any] = {"prompts": len(prompts), "conditions": len(ALPHAS) * len(RANKS) * KINDS}
        facts |= {
            "packing": None if packing is None else asdict(packing),
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    assert worst <= TOLERANCE, f"a peer finds another KL: {worst:.2g} nats"


if __name__ == "__main__":
    main()
