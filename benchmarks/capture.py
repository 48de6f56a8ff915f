"""Capture against the bare forward passes of the same length-bucketed batches, in one process.

    python benchmarks/capture.py [--quick]

Prints process CPU time of capturing every site of every layer at three positions, over that of running the
same batches through the model without keeping anything. The floor is 1: a capture runs the forward passes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from engine.models.loading import from_parts
from engine.passes.batching import batches, capture_order
from engine.passes.capture import capture_unit, forward_hidden
from engine.prompts.positions import Positions


def cpu_seconds(task: Callable[[], object]) -> float:
    start = time.process_time()
    task()
    return time.process_time() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    options.add_argument("--quick", action="store_true", help="a quarter of the prompts")
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=32_000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    lm = from_parts(Qwen2ForCausalLM(config))
    generator = np.random.default_rng(0)
    n = 40 if chosen.quick else 150
    token_ids = [generator.integers(3, 32_000, size=k).tolist() for k in generator.integers(15, 61, size=n)]
    order = capture_order([[len(ids) for ids in token_ids]])
    token_ids = [token_ids[i] for i in order]
    lengths = [len(ids) for ids in token_ids]
    last = tuple(np.array([length - 1]) for length in lengths)
    pooled = tuple(np.arange(length // 4, length - 2) for length in lengths)
    positions = {
        "decision": Positions("decision", "one", last, {}),
        "last_content": Positions("last_content", "one", tuple(i - 2 for i in last), {}),
        "mean": Positions("mean", "mean", pooled, {}),
    }
    plan = batches(lengths, 4096)

    def bare() -> None:
        for batch in plan:
            forward_hidden(lm, [token_ids[i] for i in batch])

    def capture() -> None:
        capture_unit(
            lm,
            token_ids,
            range(n),
            positions,
            components=("resid", "attn_out", "mlp_out", "head_z"),
            batch_tokens=4096,
        )

    bare()
    rounds = [(cpu_seconds(capture), cpu_seconds(bare)) for _ in range(chosen.rounds)]
    ratios = sorted(a / b for a, b in rounds)
    result = {
        "prompts": n,
        "tokens": sum(lengths),
        "batches": len(plan),
        "capture_cpu_s": float(np.median([a for a, _ in rounds])),
        "bare_cpu_s": float(np.median([b for _, b in rounds])),
        "ratio_median": ratios[len(ratios) // 2],
        "ratio_range": [ratios[0], ratios[-1]],
    }
    print("| prompts | bare forward, CPU s | capture, CPU s | ratio (range) |\n|---|---|---|---|")
    print(
        f"| {n} | {result['bare_cpu_s']:.2f} | {result['capture_cpu_s']:.2f} "
        f"| {result['ratio_median']:.3f} ({ratios[0]:.3f}–{ratios[-1]:.3f}) |"
    )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
