"""Weight steering at all amplitudes together against a plain Hugging Face model merged anew for each α.

    python benchmarks/weight_steering.py            a random Llama of SmolLM2-135M's shape, bfloat16
    python benchmarks/weight_steering.py --full     every tensor changed in full instead of by adapters
    python benchmarks/weight_steering.py --dtype float32 --json steering.json

A rank-8 adapter on the output projections of blocks 10 to 20 and a random one, 8 amplitudes each: the KL of
the next token, the likelihood of the prompt's own text, log-probabilities of as many openings and forms as
behaviour is read by, and greedy answers to some prompts. One process, one thread, process CPU time. Ours is
the whole job. The others run a sample of its conditions and are counted at their mean per condition:

- merged: W + αΔW written into the model, then padded batches of plain forward passes: prompts, prompts with
  each continuation (all of a prompt in one batch), `generate`.
- one by one: this repository's own hooks at one α after the other, as runs were made before.

In float32 all numbers must be those of the merged model within 1e-3 nats, and answers the same.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from engine.models.loading import LoadedModel, from_parts
from engine.passes.continuations import score
from engine.passes.generate import generate
from engine.passes.wide import widen
from engine.weight_steering.effects import effects
from engine.weight_steering.spec import ALPHAS
from engine.weight_steering.together import Asked, Found, together
from engine.weights.deltas import WeightDelta, random_like, weight_deltas
from engine.weights.steer import WeightShift

PROMPTS, ANSWERED, NEW = 4, 2, 12
LENGTHS = (7, 1, 2, 7, 5, 3, 1, 2, 2, 3, 2, 1, 1, 1, 1)
"""Tokens of the continuations: five refusals, five other openings, forms of yes and no."""
SAMPLE = (1.0,)
TARGET = 3.0


@dataclass(frozen=True)
class Result:
    """A peer: CPU seconds of the job at its mean per condition, times ours, largest difference in nats."""

    name: str
    seconds: float
    ratio: float
    apart: float
    answers_differ: int


def model(dtype: torch.dtype) -> LoadedModel:
    """Random weights in SmolLM2-135M's shape."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    made = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.mul_(2.0)
    widen(made)
    return from_parts(made)


def changed(lm: LoadedModel, full: bool) -> list[WeightDelta]:
    """Rank 8 on the output projections of blocks 10 to 20, or a change of every matrix."""
    tuned = copy.deepcopy(lm.model).float()
    plain = copy.deepcopy(tuned)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            block = int(name.split(".")[2]) if ".layers." in name else -1
            adapted = 10 <= block <= 20 and ("o_proj" in name or "down_proj" in name)
            if parameter.ndim != 2 or not (full or adapted):
                continue
            change = torch.randn(parameter.shape, generator=generator)
            if not full:
                change = change[:, :8] @ change[:8] / 8**0.5
            parameter.add_(0.1 * parameter.std() * change)
    return list(weight_deltas(plain, tuned))


def inputs() -> Asked:
    """Prompts of 41 to 57 tokens with as many continuations as behaviour asks for; the first are answered."""
    generator = torch.Generator().manual_seed(2)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 49_152, (count,), generator=generator).tolist()

    ids = [draw(41 + 16 * n // PROMPTS) for n in range(PROMPTS)]
    forms = [draw(length) for length in LENGTHS]
    answered = np.arange(PROMPTS) < ANSWERED
    return Asked(ids, np.ones(PROMPTS, dtype=bool), [forms] * PROMPTS, answered, None, NEW)


def padded(rows: Sequence[Sequence[int]], left: bool = False) -> dict[str, Tensor]:
    """Token ids and mask of a batch."""
    longest = max(map(len, rows))
    space = [[0] * (longest - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, space, strict=True)]
    real = [
        [*gap, *[1] * len(row)] if left else [*[1] * len(row), *gap]
        for row, gap in zip(rows, space, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(real)}


Numbers = tuple[list[np.ndarray], list[list[np.ndarray]], list[list[int]]]
"""Of one condition: log-probabilities of each prompt's own tokens, of its continuations' tokens; answers."""


def plainly(lm: LoadedModel, asked: Asked) -> Numbers:
    """What a script on plain transformers does with a merged model."""

    def log_probs(rows: list[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
        logits = lm.model(**padded(rows)).logits.float().log_softmax(-1)
        places = [range(start - 1, len(row) - 1) for row, start in zip(rows, starts, strict=True)]
        return [
            logits[n, list(place), row[place.start + 1 :]].double().numpy()
            for n, (row, place) in enumerate(zip(rows, places, strict=True))
        ]

    with torch.inference_mode():
        own = log_probs([list(row) for row in asked.ids], [1] * len(asked.ids))
        forms = [
            log_probs([[*row, *more] for more in forms], [len(row)] * len(forms))
            for row, forms in zip(asked.ids, asked.continuations, strict=True)
        ]
        some = [list(row) for row, wanted in zip(asked.ids, asked.answered, strict=True) if wanted]
        given = padded(some, left=True)
        made = lm.model.generate(**given, do_sample=False, max_new_tokens=asked.most, pad_token_id=0)
    answers = [row[given["input_ids"].shape[1] :].tolist() for row in made]
    return own, forms, [row[: row.index(2)] if 2 in row else row for row in answers]


def merged(lm: LoadedModel, deltas: Sequence[WeightDelta], alpha: float, asked: Asked) -> Numbers:
    """W + αΔW, written and taken back."""
    parameters = dict(lm.model.named_parameters())
    before = {delta.name: parameters[delta.name].data.clone() for delta in deltas}
    for delta in deltas:
        own = parameters[delta.name].data
        own.copy_((own.float() + alpha * torch.from_numpy(delta.matrix())).to(own.dtype))
    found = plainly(lm, asked)
    for name, own in before.items():
        parameters[name].data.copy_(own)
    return found


def one_by_one(lm: LoadedModel, shift: WeightShift, alpha: float, asked: Asked) -> Numbers:
    """One condition with hooks: a pass for the texts, one for the continuations, one for the answers."""
    ids = [list(row) for row in asked.ids]
    nll = effects(lm, ids, [(shift, alpha)]).nll[0]
    with shift.at(alpha):
        forms = score(lm, ids, asked.continuations).log_probs[0]
        some = [row for row, wanted in zip(ids, asked.answered, strict=True) if wanted]
        answers = generate(lm, some, max_new_tokens=asked.most).tokens[0]
    return [np.array([-total]) for total in nll], forms, answers


def compare(found: Found, number: int, other: Numbers) -> tuple[float, int]:
    """Largest difference of a log-probability of a continuation, nats; answers that differ."""
    apart = max(
        float(np.abs(left - right).max())
        for own, theirs in zip(found.log_probs[number], other[1], strict=True)
        for left, right in zip(own, theirs, strict=True)
    )
    nll = np.array([-own.sum() for own in other[0]])
    apart = max(apart, float(np.abs(found.nll[number] - nll).max()) / 50)
    mine = [
        tokens
        for tokens, wanted in zip(found.answers.tokens[number], found_rows(found), strict=True)
        if wanted
    ]
    return apart, sum(a != b for a, b in zip(mine, other[2], strict=True))


def found_rows(found: Found) -> list[bool]:
    """Which prompts were answered."""
    return [n < ANSWERED for n in range(len(found.answers.tokens[0]))]


def cpu_seconds(task: Callable[[], Any]) -> tuple[float, Any]:
    """Process CPU time of a call, and what it returned."""
    start = time.process_time()
    found = task()
    return time.process_time() - start, found


def run(dtype: torch.dtype, full: bool) -> tuple[float, list[Result]]:
    """CPU seconds of the whole job, and the peers."""
    torch.set_num_threads(1)
    lm, asked = model(dtype), inputs()
    deltas = changed(lm, full)
    shifts = [WeightShift(lm, deltas)] + ([] if full else [WeightShift(lm, list(random_like(deltas, 1)))])
    conditions = [(shift, alpha) for shift in shifts for alpha in ALPHAS]
    ours, found = cpu_seconds(lambda: together(lm, conditions, asked))
    print(
        f"together: {ours:.1f} s of CPU for {len(found.kl)} conditions on {PROMPTS} prompts, {dtype}",
        flush=True,
    )
    results = []
    peers: dict[str, Callable[[float], Numbers]] = {
        "one by one": lambda alpha: one_by_one(lm, shifts[0], alpha, asked),
        "merged": lambda alpha: merged(lm, deltas, alpha, asked),
    }
    for name, peer in peers.items():
        seconds, apart, differ = 0.0, 0.0, 0
        for alpha in SAMPLE:
            took, numbers = cpu_seconds(lambda alpha=alpha, peer=peer: peer(alpha))  # type: ignore[misc]
            seconds += took / len(SAMPLE) * (1 + len(conditions))
            more, answers = compare(found, 1 + ALPHAS.index(alpha), numbers)
            apart, differ = max(apart, more), differ + answers
        results.append(Result(name, seconds, seconds / ours, apart, differ))
    return ours, results


def main() -> None:
    """Prints the table; fails below the target, or where float32 numbers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ours, results = run(getattr(torch, options.dtype), options.full)
    for one in results:
        print(
            f"{one.name:12} {one.seconds:8.1f} s  {one.ratio:5.1f} ×  apart {one.apart:.2g} nats, "
            f"{one.answers_differ} answers differ"
        )
    if options.json:
        options.json.write_text(
            json.dumps({"ours": ours, "peers": [asdict(one) for one in results]}, indent=1)
        )
    if options.dtype == "float32" and any(one.apart > 1e-3 or one.answers_differ for one in results):
        raise SystemExit("the numbers differ from those of the merged model")
    if not options.full and min(one.ratio for one in results) < TARGET:
        raise SystemExit(f"less than {TARGET} times faster")


if __name__ == "__main__":
    main()
