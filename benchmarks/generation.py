"""A whole Z-patching job against Hugging Face's `generate` with hooks, one condition after another.

    python benchmarks/generation.py                the demo's base model, 20 problems, 63 conditions
    python benchmarks/generation.py --json generation.json

20 problems in English answered by the demo's base model with the Chinese prompt's mean put in: two blocks,
two dimensions, Z, Z⊥ and everything, with random subspaces, another problem's source and the own mean; at
most 100 new tokens; float32. One process, one thread, process CPU time. Ours is every condition of every
problem.
The peers run a sample of the conditions, at batch 1 and with all problems in one left-padded batch, and are
counted at their mean time per condition. Their tokens must be ours.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.models.loading import LoadedModel, load
from engine.models.pieces import model_pieces
from engine.passes.generate import stop_tokens
from engine.study.study import ModelSpec
from engine.z_patching.bases import Bases, make_bases
from engine.z_patching.run import every_answer
from engine.z_patching.spec import Patch, ZPatching
from engine.z_patching.vectors import Put, puts, token_states

DEMO = Path(__file__).resolve().parents[1] / "demo"
PROBLEMS, SAMPLE, ALONE = 20, 6, 4
"""Problems; conditions that the batched peer runs; problems of each that the peer at batch 1 runs."""
TARGETS = {"batch 1": 10.0, "batched": 2.5}


@dataclass(frozen=True)
class Result:
    """A peer: CPU seconds of the whole job at its mean per condition, times ours, rows that differ."""

    name: str
    seconds: float
    ratio: float
    compared: int
    differing: int


class Weights:
    """What `make_bases` asks of a lab."""

    def __init__(self, lm: LoadedModel) -> None:
        self.arrays = {
            f"weights/{lm.name}/{piece.name}": piece.values
            for piece in model_pieces(lm.taps)
            if piece.name.startswith("kernel")
        }
        self.width = lm.taps.d

    def sizes(self, model: str) -> dict[str, int]:
        return {"d": self.width}

    def array(self, name: str, first: int | None = None) -> Any:
        return self.arrays[name] if first is None else self.arrays[name][first]


def problems(lm: LoadedModel) -> dict[str, list[list[int]]]:
    """Token ids of the first problems of every other category, by language."""
    lines = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()]
    step = len(lines) // 2 // PROBLEMS
    found = {}
    for language in ("en", "zh"):
        own = [line for line in lines if line["language"] == language][::step][:PROBLEMS]
        turns = [[{"role": "user", "content": line["text"]}] for line in own]
        texts = [
            lm.tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns
        ]
        found[language] = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return found


@contextmanager
def hooked(lm: LoadedModel, patch: Patch, vectors: Tensor, bases: Bases) -> Any:
    """A plain hook on the block: the mean in the place of the part of every prompt token."""
    basis = bases.of(patch)

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        own = output[0] if isinstance(output, tuple) else output
        if own.shape[1] == 1:
            return None
        new = vectors[:, None].expand_as(own)
        if basis is not None:
            inside = ((new - own) @ basis) @ basis.T
            new = own + (inside if patch.part == "Z" else (new - own) - inside)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = lm.taps.layers[patch.layer].block.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def theirs(lm: LoadedModel, ids: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
    """Hugging Face's greedy tokens, up to the one that ends an answer."""
    longest = max(map(len, ids))
    padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    stop = sorted(stop_tokens(lm))
    with torch.inference_mode():
        out = lm.model.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=stop,
            pad_token_id=0,
        )
    rows = [row[longest:].tolist() for row in out]
    return [row[: next((i for i, t in enumerate(row) if t in stop), len(row))] for row in rows]


def cpu_seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """Process CPU time of a call, and what it returned."""
    start = time.process_time()
    found = task()
    return time.process_time() - start, found


def ours(
    experiment: ZPatching,
    lm: LoadedModel,
    ids: list[list[int]],
    given: dict[int, dict[str, Put]],
    bases: Bases,
) -> list[list[list[int]]]:
    """tokens[condition][problem] of the whole job."""
    found: list[list[list[int]]] = [[] for _ in range(len(experiment.patches()) + 1)]
    for _, made in every_answer(experiment, lm, ids, given, bases):
        for condition, tokens in enumerate(made.tokens):
            found[condition] += tokens
    return found


def run() -> tuple[dict[str, Any], list[Result]]:
    """Times the job and its peers."""
    torch.set_num_threads(1)
    lm = load(ModelSpec(path=DEMO / "base", device="cpu", dtype="float32"), "base")
    ids = problems(lm)
    experiment = ZPatching(
        model="base", target_language="en", source_language="zh", layers=(4, 5), ks=(8, 16), basis="blocks"
    )
    states = {lang: token_states(lm, own, experiment.site, experiment.layers) for lang, own in ids.items()}
    others = [(i + 1) % PROBLEMS for i in range(PROBLEMS)]
    given = {
        layer: puts(experiment, states["en"][layer], states["zh"][layer], others)
        for layer in experiment.layers
    }
    bases = make_bases(experiment, Weights(lm), list)  # type: ignore[arg-type]
    ours(experiment, lm, ids["en"][:1], given, bases)
    seconds, found = min(
        (cpu_seconds(lambda: ours(experiment, lm, ids["en"], given, bases)) for _ in range(3)),
        key=lambda pair: pair[0],
    )
    patches = experiment.patches()
    sample = [patches[i * (len(patches) - 1) // (SAMPLE - 1)] for i in range(SAMPLE)]
    limit, results = experiment.max_new_tokens, []
    for name in TARGETS:
        spent, compared, differing = [], 0, 0
        for patch in sample:
            vectors = given[patch.layer][patch.source].means
            batches = (
                [[i] for i in range(0, PROBLEMS, PROBLEMS // ALONE)]
                if name == "batch 1"
                else [list(range(PROBLEMS))]
            )
            for batch in batches:
                with hooked(lm, patch, vectors[batch], bases):
                    cost, made = cpu_seconds(
                        lambda batch=batch: theirs(lm, [ids["en"][i] for i in batch], limit)
                    )
                spent.append(cost / len(batch))
                mine = [found[1 + patches.index(patch)][i] for i in batch]
                compared += len(batch)
                differing += sum(a != b for a, b in zip(mine, made, strict=True))
        whole = sum(spent) / len(spent) * PROBLEMS * (len(patches) + 1)
        results.append(Result(name, whole, whole / seconds, compared, differing))
    facts = {
        "conditions": len(patches) + 1,
        "problems": PROBLEMS,
        "ours": seconds,
        "tokens": sum(len(row) for condition in found for row in condition),
    }
    return facts, results


def main() -> None:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    facts, results = run()
    print(
        f"{facts['conditions']} conditions x {facts['problems']} problems, {facts['tokens']} new tokens: "
        f"{facts['ours']:.2f} s CPU"
    )
    for one in results:
        print(
            f"generate with hooks, {one.name:8} {one.seconds:8.1f} s  {one.ratio:5.1f} x  "
            f"(wanted {TARGETS[one.name]:g} x)  {one.differing} of {one.compared} texts differ"
        )
    if chosen.json:
        chosen.json.write_text(json.dumps({**facts, "peers": [asdict(one) for one in results]}, indent=1))


if __name__ == "__main__":
    main()
