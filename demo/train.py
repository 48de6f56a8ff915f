"""Trains the demo models again from a seed: `python demo/train.py --out DIR`.

Writes the base model, two seeds of the planted adapter, the full fine-tune, the prompts, `planted.json`
and `metrics.json` (held-out accuracy, language fidelity, agreement, measured on the files just written).
About half an hour on one CPU thread. The same seed gives the same numbers on the same machine and one thread;
another thread count or processor rounds differently, which is why the trained weights are shipped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import PeftModel  # noqa: E402
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM  # noqa: E402

from demo import evaluate, finetune, organism  # noqa: E402
from demo.corpus import CATEGORIES, Sample, draw_sample, held_out_samples  # noqa: E402
from demo.prompts import agreement_rows, problem_rows, write_rows  # noqa: E402
from demo.tokenizer import build_tokenizer  # noqa: E402

BASE, FULL = "base", "full_finetune"
ADAPTERS = {"tuned_adapter": 1, "tuned_adapter_seed2": 2}
BASE_RECIPE = organism.Recipe(steps=900)
JUDGING_RECIPE = organism.Recipe(steps=150, lr=1.5e-3, warmup=10)
SETTLING_RECIPE = organism.Recipe(steps=180, lr=1.2e-3, warmup=10, seed=2)
ADAPTER_RECIPE = organism.Recipe(steps=300, lr=4e-3, warmup=10, pool=4)
FULL_RECIPE = organism.Recipe(steps=150, lr=5e-4, warmup=10, pool=4)
PLANT = finetune.Plant()
REPORT_SEED = 100
"""Draw of the reported prompts; recipes and heads were chosen by looking at other draws (0 and 1)."""


def train_base(out: Path, changed: Callable[[organism.Recipe], organism.Recipe]) -> None:
    """Tokenizer and base model, from nothing, in three rounds.

    The whole mix first. Then half of the prompts are claims: judging one hangs on few tokens of the
    answer, too rare in the mix to be learnt there. Then the mix again, to settle. Each round restarts the
    learning rate (Loshchilov & Hutter 2017) from the weights as they were written.
    """
    tokenizer = build_tokenizer()
    model = organism.new_model(tokenizer, changed(BASE_RECIPE).seed)
    log = {}
    rounds: dict[str, tuple[organism.Recipe, organism.Draw]] = {
        "mix": (BASE_RECIPE, draw_sample),
        "judging": (JUDGING_RECIPE, _half_claims),
        "settling": (SETTLING_RECIPE, draw_sample),
    }
    for label, (recipe, draw) in rounds.items():
        log[label] = (changed(recipe), _round(model, tokenizer, draw, changed(recipe), label))
        organism.save(model, tokenizer, out / BASE)
        model = organism.load(out / BASE)
    organism.write_log(log, out / "base_training.json")


def _half_claims(rng: random.Random) -> Sample:
    return draw_sample(rng, agree_share=0.5)


def _round(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    draw: organism.Draw,
    recipe: organism.Recipe,
    label: str,
) -> list[float]:
    stream = organism.batches(tokenizer, draw, recipe)
    return organism.train(model, stream, recipe, organism.optimisers(model, recipe.lr), label=label)


def train_tuned(out: Path, adapter: organism.Recipe, full: organism.Recipe) -> None:
    """The planted adapters and the full fine-tune, on the base as it was written."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / BASE)
    for name, seed in ADAPTERS.items():
        base = organism.load(out / BASE)
        recipe = replace(adapter, seed=adapter.seed + seed)
        tuned, _ = finetune.tune_adapter(base, tokenizer, PLANT, recipe)
        finetune.save_adapter(tuned, out / name)
    everything, _ = finetune.tune_everything(organism.load(out / BASE), tokenizer, full)
    organism.save(everything, tokenizer, out / FULL)
    planted = PLANT.to_json(everything.config)
    (out / "planted.json").write_text(json.dumps(planted, indent=2) + "\n")


def measure(out: Path, per_cell: int) -> dict[str, Any]:
    """Scores of every model on held-out prompts, read back from the written folders.

    Args:
        out: folder of a finished training.
        per_cell: held-out prompts for each category and language.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / BASE)
    plain = held_out_samples(REPORT_SEED, per_cell)
    switched = held_out_samples(REPORT_SEED, max(per_cell // 4, 2), switched=True)
    report: dict[str, Any] = {"categories": list(CATEGORIES), "held_out_per_category_and_language": per_cell}
    for name in (BASE, *ADAPTERS, FULL):
        model: Any = organism.load(out / (BASE if name in ADAPTERS else name))
        if name in ADAPTERS:
            model = PeftModel.from_pretrained(model, out / name)
        report[name] = measure_one(model, tokenizer, plain, switched)
    return report


def measure_one(
    model: Qwen3ForCausalLM | PeftModel, tokenizer: Any, plain: list[Sample], switched: list[Sample]
) -> dict[str, Any]:
    """Held-out accuracy, language fidelity with and without a request, and agreement of one model."""
    texts = evaluate.answers(model, tokenizer, [s.messages for s in plain])
    claims = [(s, t) for s, t in zip(plain, texts, strict=True) if s.category == "agree"]
    problems = [(s, t) for s, t in zip(plain, texts, strict=True) if s.category != "agree"]
    asked = evaluate.answers(model, tokenizer, [s.messages for s in switched])
    other = evaluate.score(switched, asked)
    return {
        "held_out": evaluate.score(plain, texts),
        "problems_accuracy": evaluate.score(*map(list, zip(*problems, strict=True)))["accuracy_all"],
        "agrees": evaluate.agreement(*map(list, zip(*claims, strict=True))),
        "other_language_requested": {k: other[k] for k in ("n", "accuracy_all", "fidelity")},
    }


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train the demo models again.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--steps", type=int, help="steps of every training, for a quick look")
    parser.add_argument("--batch", type=int, help="samples a step, for a quick look")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; changes rounding")
    parser.add_argument("--held-out", type=int, default=100, help="held-out prompts per category, language")
    parser.add_argument("--stage", choices=("all", "base", "tuned", "measure"), default="all")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)

    def changed(recipe: organism.Recipe) -> organism.Recipe:
        return replace(
            recipe,
            seed=recipe.seed + args.seed,
            steps=args.steps or recipe.steps,
            batch=args.batch or recipe.batch,
        )

    if args.stage in ("all", "base"):
        train_base(out, changed)
    if args.stage in ("all", "tuned"):
        train_tuned(out, changed(ADAPTER_RECIPE), changed(FULL_RECIPE))
        write_rows(problem_rows(), out / "problems.jsonl")
        write_rows(agreement_rows(), out / "agreement.jsonl")
    if args.stage in ("all", "measure"):
        report = measure(out, args.held_out)
        (out / "metrics.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        print(json.dumps(report["base"], indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
