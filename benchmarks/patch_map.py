"""A patch map, every block and token of one prompt with 20 donors, against Hugging Face hooks.

    python benchmarks/patch_map.py             45 tokens, 20 donors: 10,800 patched runs, about four minutes
    python benchmarks/patch_map.py --quick     20 tokens, 4 donors
    python benchmarks/patch_map.py --json map.json

The model of benchmarks/patching.py (Qwen2, 12 blocks, d = 512, random weights), resid_post; donors are the
states of other random prompts. One process, one thread, process CPU time. Ours is the whole map, the capture
included. The loops run whole blocks of a sample, one donor each, and must find the same KL: plain, a forward
pass a cell and logits of every token; tuned, a block's tokens as one batch, with logits of the last token.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from patching import BLOCKS, TOLERANCE, VOCAB, cpu_seconds, random_model
from torch import Tensor

from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine

SAMPLE = ((0, 0), (5, 1), (9, 2))
"""(block, donor) that the loops run."""


def states(model: Any, ids: list[int]) -> Tensor:
    """The stream behind every block, (blocks, tokens, d): each block's own output, by plain hooks."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _args, output: seen.append(output[0].clone()))
        for block in model.model.layers
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


def whole_map(lm: LoadedModel, ids: list[int], donors: Tensor) -> np.ndarray:
    """KL of every cell, (donors, blocks, tokens)."""
    engine = PatchEngine(lm, [ids] * len(ids), range(len(ids)), read_at="decision")
    found = [
        engine.sweep(Site("resid_post", block), donors[:, block], n_conditions=len(donors)).kl
        for block in range(BLOCKS)
    ]
    return np.stack(found, axis=1)


def by_hooks(model: Any, ids: list[int], block: int, donor: Tensor, tuned: bool) -> np.ndarray:
    """KL of a block's cells with one donor (tokens, d), a pass a cell or one batch."""
    inputs, count = torch.tensor([ids]), len(ids)
    given: dict[str, Any] = {"use_cache": False} | ({"logits_to_keep": 1} if tuned else {})

    def run(rows: int, tokens: list[int]) -> Tensor:
        def put(_module: Any, _args: Any, output: Tensor) -> Tensor:
            output[torch.arange(len(tokens)), tokens] = donor[tokens]
            return output

        hook = model.model.layers[block].register_forward_hook(put) if tokens else None
        with torch.no_grad():
            logits: Tensor = model(input_ids=inputs.expand(rows, -1), **given).logits[:, -1]
        if hook is not None:
            hook.remove()
        return logits.float().log_softmax(-1)

    plain = run(1, [])
    batches = [list(range(count))] if tuned else [[token] for token in range(count)]
    log_p = torch.cat([run(len(tokens), tokens) for tokens in batches])
    kl: np.ndarray = (log_p.exp() * (log_p - plain)).sum(-1).numpy()
    return kl


def measure(tokens: int, donors: int) -> dict[str, Any]:
    """Both sides on the same random model and prompts."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, VOCAB, tokens).tolist() for _ in range(1 + donors)]
    model = random_model()
    lm = from_parts(model)
    given = torch.stack([states(model, ids) for ids in prompts[1:]])
    seconds, kl = cpu_seconds(lambda: whole_map(lm, prompts[0], given))
    cells = kl.size
    found: dict[str, Any] = {"cells": cells, "seconds": seconds, "mean_kl": float(kl.mean()), "loops": {}}
    for name, tuned in (("Hugging Face hooks", False), ("tuned Hugging Face loop", True)):
        taken, apart = [], 0.0
        for block, donor in SAMPLE:
            took, own = cpu_seconds(
                lambda block=block, donor=donor, tuned=tuned: by_hooks(
                    model, prompts[0], block, given[donor, block], tuned
                )
            )
            taken.append(took / tokens)
            apart = max(apart, float(np.abs(own - kl[donor, block]).max()))
        each = min(taken)
        found["loops"][name] = {"seconds": each, "ratio": each / (seconds / cells), "difference": apart}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="20 tokens and 4 donors")
    parser.add_argument("--json", type=Path, help="also write all numbers here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(*((20, 4) if options.quick else (45, 20)))
    each = 1e3 * found["seconds"] / found["cells"]
    print(f"{found['cells']} cells: {found['seconds']:.1f} s CPU, {each:.1f} ms each")
    for name, loop in found["loops"].items():
        print(
            f"{name}: {1e3 * loop['seconds']:.0f} ms a cell, {loop['ratio']:.1f}×; "
            f"largest difference {loop['difference']:.1e} nats"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    worst = max(loop["difference"] for loop in found["loops"].values())
    assert worst <= TOLERANCE, f"a loop finds another KL: {worst:.2g} nats"


if __name__ == "__main__":
    main()
