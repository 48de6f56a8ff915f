"""CPU seconds of `precompute.py --plan` on many short prompts with the demo's models, behind a plan of few.

    python benchmarks/plan.py [--prompts 10000] [--profile]

The prompts are the demo's word problems, numbered up to what is asked for, rendered by its chat template
for its four models. `--profile` prints the functions that took the time.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

ROOT = Path(__file__).resolve().parents[1]


def numbered(count: int) -> str:
    """So many lines of prompts: the demo's word problems over and over, each with its number before it."""
    rows = [json.loads(line) for line in (ROOT / "demo/problems.jsonl").read_text("utf-8").splitlines()]
    lines = []
    for i in range(count):
        row = rows[i % len(rows)]
        row = row | {"id": f"{row['id']}-{i}", "pair_id": f"{row['pair_id']}-{i // len(rows)}"}
        lines.append(json.dumps(row | {"text": f"{i}: {row['text']}"}, ensure_ascii=False))
    return "\n".join(lines)


def write_study(folder: Path, count: int) -> Path:
    """The demo's study on so many prompts, in pairs."""
    (folder / f"{count}.jsonl").write_text(numbered(count), encoding="utf-8")
    text = (ROOT / "studies/demo.toml").read_text("utf-8").replace('"../demo/', f'"{ROOT}/demo/')
    head, _, tail = text.partition("[prompts]")
    tail = tail.partition("template")[2]
    tail = tail.partition("where = ")[0] + "fit = 40\nevaluate = 24\n"
    study = folder / f"{count}.toml"
    study.write_text(f'{head}[prompts]\nfiles = ["{count}.jsonl"]\ntemplate{tail}', encoding="utf-8")
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import precompute

    with tempfile.TemporaryDirectory(prefix="patchbay-plan-") as name:
        few, many = (write_study(Path(name), count) for count in (200, options.prompts))
        precompute.main([str(few), "--plan"])
        first = time.process_time()
        clock = cProfile.Profile()
        if options.profile:
            clock.enable()
        precompute.main([str(many), "--plan"])
        clock.disable()
    spent = time.process_time() - first
    if options.profile:
        pstats.Stats(clock).sort_stats("cumulative").print_stats(45)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"200 prompts, libraries and rates: {first:.1f} s of CPU time")
    print(f"{options.prompts} prompts after that: {spent:.1f} s; {peak:.2f} GB at most")


if __name__ == "__main__":
    main()
