"""A place of a difference lens over a real vocabulary, against a plain PyTorch loop over the draws.

    python benchmarks/difference_lens.py             V = 49,152 and 151,936, d = 576 and 2048, 120 units
    python benchmarks/difference_lens.py --quick     V = 8,192
    python benchmarks/difference_lens.py --json lens.json

399 sign flips and 399 resamples of whole units, random numbers for differences and unembedding; one process,
one thread, process CPU time. The loop does what the formulas say: it flips (or draws) the differences, takes
each token's t over all tokens, and keeps the largest; it runs a sample of the draws, is scaled to all of
them, and must find the same numbers.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.difference_lens.numbers import flips, resamples, t_of
from engine.difference_lens.scan import Draws, Place, Readout

UNITS, DRAWS, SAMPLE = 120, 399, 4
SIZES = ((49_152, 576), (151_936, 2048))
TOLERANCE = 2e-3
"""Relative: float32 sums in another order."""


def random_readout(vocab: int, width: int) -> Readout:
    """A random unembedding."""
    rows = torch.randn(vocab, width, generator=torch.Generator().manual_seed(0))
    rows -= rows.mean(dim=0)
    return Readout(rows, torch.nn.Identity(), torch.ones(width), rows.norm(dim=1).double().numpy())


def loop(rows: Tensor, units: Tensor, signs: Tensor, counts: Tensor) -> Tensor:
    """The largest |t| of each flip, the smallest and the largest t* of each resample, one draw at a time."""
    size, found = len(units), []
    logits = units @ rows.T
    middle = logits.mean(dim=0)
    for sign, count in zip(signs, counts, strict=True):
        flipped = sign[:, None] * units @ rows.T
        t = flipped.mean(dim=0) / flipped.std(dim=0) * size**0.5
        drawn = logits[torch.repeat_interleave(torch.arange(size), count.long())]
        own = (drawn.mean(dim=0) - middle) / drawn.std(dim=0, correction=0) * (size - 1) ** 0.5
        found.append(torch.stack([t.abs().max(), own.min(), own.max()]))
    return torch.stack(found)


def measure(vocab: int, width: int) -> dict[str, Any]:
    """Both on the same numbers."""
    readout = random_readout(vocab, width)
    units = np.random.default_rng(1).normal(0.1, 1, (UNITS, width))
    signs, counts = flips(UNITS, DRAWS, 0), resamples(UNITS, DRAWS, 0)
    draws = Draws.of(signs, counts, "cpu")
    start = time.process_time()
    place = Place.of(readout, units, UNITS, draws)
    ours = time.process_time() - start
    start = time.process_time()
    with torch.no_grad():
        plain = loop(
            readout.rows, torch.as_tensor(units).float(), draws.flips[:SAMPLE], draws.counts[:SAMPLE]
        ).numpy()
    theirs = (time.process_time() - start) * DRAWS / SAMPLE
    shares = [t_of(share, UNITS) for share in place.share[:SAMPLE]]
    own = np.stack([shares, place.low[:SAMPLE], place.high[:SAMPLE]], axis=1)
    apart = float(np.abs(own / plain - 1).max())
    return {
        "vocab": vocab,
        "d": width,
        "seconds": ours,
        "loop": theirs,
        "ratio": theirs / ours,
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="8,192 tokens")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [measure(*size) for size in (((8192, 256),) if options.quick else SIZES)]
    for one in found:
        print(
            f"V = {one['vocab']:,}, d = {one['d']}: {one['seconds']:.2f} s CPU a place; loop over {DRAWS} "
            f"draws {one['loop']:.0f} s (from {SAMPLE}), {one['ratio']:.0f}×; apart {one['apart']:.0e}"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    worst = max(one["apart"] for one in found)
    assert worst <= TOLERANCE, f"the loop finds other numbers: {worst:.2g}"


if __name__ == "__main__":
    main()
