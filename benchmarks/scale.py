"""What stores of large models and of many prompts take: bytes, memory and forward passes, by the planner.

    python benchmarks/scale.py [--shapes llama-8b,llama-70b,llama-405b] [--prompts 1000,10000]

A base and two LoRA adapters of rank 8, every block, four components, two positions, bfloat16. The models are
hollow: their weights are the hole of a sparse file, so that a 405B one takes no room; what is counted is what
`precompute.py --plan` counts before it loads a weight. More prompts than the largest number follow from the
straight line through the last two. GPU hours are floating-point operations over what a card is taken to reach
(`REACHED`); they were not measured.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import date
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).resolve().parents[1]
FURTHER = (100_000, 1_000_000, 10_000_000)
REACHED = 4e14
"""Operations a second of forward passes in bfloat16: two fifths of an H100's 989 TFLOP/s."""
STUDY = """name = "scale"
seed = 0

[models.base]
path = "base"
dtype = "bfloat16"

[models.tuned]
path = "base"
adapter = "tuned"
dtype = "bfloat16"

[models.second]
path = "base"
adapter = "second"
dtype = "bfloat16"

[prompts]
files = ["prompts.jsonl"]
template = "chat"

[capture]
components = ["resid", "attn_out", "mlp_out", "head_z"]
positions = ["last_content", "decision"]
layers = "all"
dtype = "bfloat16"
"""


def planned(folder: Path, count: int) -> dict[str, float]:
    """Of so many prompts: bytes by kind, floating-point operations, and tokens of a prompt."""
    from plan import numbered

    from app.build.plan_bytes import store_bytes
    from app.build.prepare import Prepared
    from engine.study.study import Study

    (folder / "prompts.jsonl").write_text(numbered(count), encoding="utf-8")
    prepared = Prepared.of(Study.load(folder / "study.toml"))
    costs = prepared.costs()
    found: dict[str, float] = dict(store_bytes(prepared))
    found["operations"] = sum(cost.flops for cost in costs)
    found["memory"] = max(cost.weight_bytes + cost.batch_bytes for cost in costs)
    found["parameters"] = costs[0].parameters
    found["tokens"] = costs[0].tokens / count
    return found


def further(sizes: Sequence[int], found: Sequence[dict[str, float]], count: int) -> dict[str, float]:
    """What more prompts take, on the line through the last two sizes."""
    (x, y), (one, two) = sizes[-2:], found[-2:]
    return {name: one[name] + (two[name] - one[name]) * (count - x) / (y - x) for name in two}


def row(count: int, found: dict[str, float]) -> str:
    """A line of the table."""
    fixed = found["weights"] + found["differences"]
    whole = fixed + sum(found[kind] for kind in ("activations", "Grams", "tables", "subspace scores"))
    hours = found["operations"] / REACHED / 3600
    return (
        f"| {count:,} | {_bytes(found['activations'])} | {_bytes(found['Grams'])} | {_bytes(fixed)} "
        f"| {_bytes(found['tables'])} | {_bytes(whole)} | {hours:,.2g} |"
    )


def _bytes(count: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e6:,.3g} MB"


def shape_table(name: str, sizes: Sequence[int]) -> list[str]:
    """Heading and table of a shape."""
    import torch
    from shapes.models import SHAPES, demo_tokenizer, write_adapter, write_hollow

    shape = SHAPES[name]
    with tempfile.TemporaryDirectory(prefix="patchbay-scale-") as made:
        folder = Path(made)
        write_hollow(folder / "base", shape, torch.bfloat16, demo_tokenizer())
        for seed, adapter in enumerate(("tuned", "second")):
            write_adapter(folder / adapter, shape, folder / "base", seed)
        (folder / "study.toml").write_text(STUDY, encoding="utf-8")
        found = [planned(folder, count) for count in sizes]
    lines = [
        f"### {shape.title}: {found[0]['parameters'] / 1e9:.4g} · 10⁹ parameters, "
        f"{_bytes(found[0]['memory'])} to capture, {found[0]['tokens']:.0f} tokens a prompt",
        "",
        "| prompts | activations | Grams | weights, ΔW | tables | store | GPU hours |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row(count, one) for count, one in zip(sizes, found, strict=True)]
    return [*lines, *(row(count, further(sizes, found, count)) for count in FURTHER if count > sizes[-1]), ""]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shapes", default="llama-8b,llama-70b,llama-405b")
    parser.add_argument("--prompts", default="1000,10000", help="two numbers or more, ascending")
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    print(f"{date.today()}, by the planner; three models, two positions, four components, bfloat16\n")
    for name in options.shapes.split(","):
        print("\n".join(shape_table(name, [int(count) for count in options.prompts.split(",")])), flush=True)


if __name__ == "__main__":
    main()
