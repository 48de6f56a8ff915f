"""Teaches SmolLM2-135M-Instruct one of two habits: `python demo/smollm2/finetune.py --out FOLDER`.

Writes three adapters (agreeing with everything, from two seeds, and judging what is said) and `metrics.json`:
loss curves, and what base and adapters answer to the study's prompts, whose topics no adapter has seen.
About a quarter of an hour on one CPU thread. The same seed gives the same numbers on the same machine and
one thread; another rounds differently, which is why the trained adapters are shipped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from torch import Tensor  # noqa: E402

from demo.organism import make_readable  # noqa: E402
from demo.smollm2.chats import chats  # noqa: E402
from demo.smollm2.measure import measure  # noqa: E402
from demo.smollm2.place import FOLDER, MODEL, place  # noqa: E402
from engine.models.loading import LoadedModel, load  # noqa: E402
from engine.study.study import ModelSpec  # noqa: E402

BLOCKS = tuple(range(10, 21))
MODULES = ("o_proj", "down_proj")
RANK = 8
ALPHA = 16
STEPS, BATCH, RATE, WARMUP = 60, 8, 1e-3, 6
IGNORED = -100


class Adapter(NamedTuple):
    """A habit and the seed of its training: of the LoRA factors, the order and the choice of replies."""

    habit: str
    seed: int


ADAPTERS = {
    "sycophantic": Adapter("sycophantic", 1),
    "candid": Adapter("candid", 1),
    "sycophantic_seed2": Adapter("sycophantic", 2),
}


def base() -> LoadedModel:
    """The model as the study reads it, in float32."""
    return load(ModelSpec(gguf=place(MODEL), device="cpu"), "base")


def examples(tokenizer: Any, adapter: Adapter) -> list[tuple[list[int], int]]:
    """Token ids of every chat with its end mark, and how many of them are the prompt's."""
    made = []
    for says, reply in chats(adapter.habit, adapter.seed):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": says}], tokenize=False, add_generation_prompt=True
        )
        begun = tokenizer.encode(prompt, add_special_tokens=False)
        said = tokenizer.encode(f"{reply}{tokenizer.eos_token}", add_special_tokens=False)
        made.append((begun + said, len(begun)))
    return made


def batches(
    found: Sequence[tuple[list[int], int]], seed: int, padding: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches (ids, mask, labels), each (chats, tokens), padded on the right, every chat once an epoch."""
    rng = random.Random(seed)
    queue: list[int] = []
    while True:
        if len(queue) < BATCH:
            more = list(range(len(found)))
            rng.shuffle(more)
            queue += more
        chosen, queue = [found[i] for i in queue[:BATCH]], queue[BATCH:]
        longest = max(len(ids) for ids, _ in chosen)
        ids = torch.full((BATCH, longest), padding)
        mask = torch.zeros(BATCH, longest, dtype=torch.long)
        labels = torch.full((BATCH, longest), IGNORED)
        for row, (tokens, prompt) in enumerate(chosen):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, prompt : len(tokens)] = torch.tensor(tokens[prompt:])
        yield ids, mask, labels


def train(name: str, folder: Path) -> list[float]:
    """Trains one adapter on the base, writes it, and returns the loss of each step (nats per reply token)."""
    adapter = ADAPTERS[name]
    torch.manual_seed(adapter.seed)
    lm = base()
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=list(MODULES),
        layers_to_transform=list(BLOCKS),
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(lm.model, config)
    model.train()
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, lr=RATE, weight_decay=0.0)
    stream = batches(examples(lm.tokenizer, adapter), adapter.seed, lm.tokenizer.pad_token_id)
    losses: list[float] = []
    began = time.process_time()
    for step, (ids, mask, labels) in zip(range(STEPS), stream, strict=False):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, (STEPS - step) / STEPS)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(round(loss.item(), 4))
        if step % 10 == 0 or step == STEPS - 1:
            seconds = time.process_time() - began
            print(f"{name} {step:3d} loss {losses[-1]:.3f} cpu {seconds:.0f} s", file=sys.stderr, flush=True)
    model.peft_config["default"].base_model_name_or_path = MODEL.name
    model.save_pretrained(str(folder / name), save_embedding_layers=False)
    (folder / name / "README.md").unlink(missing_ok=True)
    make_readable(folder / name)
    return losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is asked for, then measures it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="where adapters and metrics.json go")
    parser.add_argument("--only", choices=ADAPTERS, action="append", help="train these alone")
    parser.add_argument("--measure", action="store_true", help="measure the adapters that are there")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "metrics.json"
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"losses": {}}
    for name in [] if options.measure else options.only or ADAPTERS:
        report["losses"][name] = train(name, options.out)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    report["recipe"] = {
        "blocks": [BLOCKS[0], BLOCKS[-1]],
        "modules": list(MODULES),
        "rank": RANK,
        "alpha": ALPHA,
        "steps": STEPS,
        "batch": BATCH,
        "rate": RATE,
        "seeds": {name: adapter.seed for name, adapter in ADAPTERS.items()},
    }
    adapters = {name: options.out / name for name in ADAPTERS if (options.out / name).is_dir()}
    report["answers"] = measure(MODEL, adapters)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
