"""Every step of a study on random-weight models of real shapes: time, peak memory and bytes of each.

    python benchmarks/real_shapes.py                    Qwen3-0.6B's and Qwen2.5-3B's shape, 24 prompts
    python benchmarks/real_shapes.py --shapes 0.6b --prompts 120 --without-copy --steps models,precompute
    python benchmarks/real_shapes.py --shapes llama-8b  with a peer of another tokenizer and width

Each step runs in a process of its own: models are written (tensor by tensor, so that memory stays small),
then plan, precompute, verify, one experiment of each kind, every page, the report. A base, two random LoRA
adapters of rank 8 and an identical copy take part; between base and copy no title may claim a finding. Exit
status 1 when a step failed or a title did. Precompute is also set against the bare forward passes of the
same batches and loading, measured first in the same process.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path

from shapes import steps
from shapes.steps import Step
from shapes.titles import claims, false_claims

STEPS = ("models", "plan", "precompute", "verify", "experiments", "pages", "report")
LIMIT = 2.5
"""CPU time of precompute over that of loading and the bare forward passes, where that can be asked:"""
LARGE, MANY = 500_000_000, 100
"""at this many parameters and prompts; on few prompts the checks run about as often as they do on many."""


def run_shape(shape: str, folder: Path, chosen: argparse.Namespace) -> Iterator[Step]:
    """Runs the chosen steps of one shape in order; after a failed one only what does not need it."""
    study, store = str(folder / "study.toml"), folder / "store"
    wanted = set(chosen.steps)
    if "models" in wanted:
        shutil.rmtree(folder, ignore_errors=True)
        arguments = ["-m", "shapes.study", str(folder), shape, str(chosen.prompts), chosen.dtype]
        made = steps.run("models", [*arguments, *(["--without-copy"] if chosen.without_copy else [])], store)
        yield _noted(made, f"{steps.size_of(folder) / 1e9:.2f} GB of files")
        if made.code:
            return
    if "plan" in wanted:
        yield steps.run("plan", ["precompute.py", study, "--plan"], store)
    if "precompute" in wanted:
        child = _child("profile" if chosen.profile else "precompute")
        yield _against_bare(steps.run("precompute", [*child, study, str(store)], store))
    if "verify" in wanted:
        yield steps.run("verify", ["precompute.py", study, "--store", str(store), "--verify"], store)
    if "experiments" in wanted:
        listed = steps.run("list of experiments", [*_child("experiments"), study, str(store)], store)
        if listed.code:
            yield listed
        for experiment in listed.found or []:
            text = json.dumps(experiment)
            arguments = ["precompute.py", "run", str(store), "--condition", text]
            yield steps.run(f"run: {_kind(experiment)}", arguments, store)
    if "pages" in wanted:
        yield _pages(steps.run("pages", [*_child("pages"), study, str(store)], store))
    if "report" in wanted:
        yield _titles(
            steps.run("report", [*_child("titles"), study, str(store)], store), not chosen.without_copy
        )


def _child(step: str) -> list[str]:
    return ["-m", "shapes.children", step]


def _kind(experiment: dict[str, str]) -> str:
    behind = f" of {experiment['model']}" if experiment["job"] == "behaviour" else ""
    return experiment["job"].replace("_", " ") + behind


def _noted(step: Step, note: str, code: int | None = None, said: str = "") -> Step:
    changes = {"note": note, "code": step.code if code is None else code, "said": said or step.said}
    return Step(**{**step.__dict__, **changes})


def _against_bare(step: Step) -> Step:
    """Precompute without subspace scores against loading and bare passes in CPU time; too much fails."""
    found = step.found
    if not isinstance(found, dict):
        return step
    least = found["loading"] + found["bare"]
    ratio = found["build"] / least
    note = (
        f"{found['models']} models × {found['prompts']} prompts ({found['tokens']:,} tokens each): "
        f"{found['build']:,.0f} s of CPU are {ratio:.2f} × ({found['loading']:,.0f} s loading + "
        f"{found['bare']:,.0f} s bare passes); subspace scores {found['subspaces']:,.0f} s more"
    )
    over = found["parameters"] >= LARGE and found["prompts"] >= MANY and ratio > LIMIT
    said = "\n".join(f"{seconds:8.1f} s  {name}" for seconds, name in found["stages"])
    if over:
        said += f"\nprecompute takes {ratio:.2f} times loading and bare passes, more than {LIMIT}"
    return _noted(step, note, step.code or int(over), f"{step.said}\n{said}" if step.code else said)


def _pages(step: Step) -> Step:
    """Fails when a page showed an error."""
    opened = step.found or []
    wrong = [f"{page['name']}: {text}" for page in opened for text in page["wrong"]]
    slow = max(opened, key=lambda page: page["seconds"], default={"name": "none", "seconds": 0.0})
    titles = sum(len(page["titles"]) for page in opened)
    note = f"{len(opened)} pages, {titles} titles; the slowest is {slow['name']}, {slow['seconds']:.1f} s"
    return _noted(step, note, step.code or int(bool(wrong)), "\n".join(wrong))


def _titles(step: Step, copies: bool) -> Step:
    """Fails when a title about two identical models claims a finding."""
    panels = step.found or []
    wrong = false_claims(panels) if copies else []
    note = f"{len(panels)} panels; {len(wrong)} false findings between identical models"
    read = "\n".join(f"  {line}" for line in claims(panels))
    said = "\n".join(["Found where nothing is:", *wrong]) if wrong else f"Said of random weights:\n{read}"
    return _noted(step, note if copies else f"{len(panels)} panels", step.code or int(bool(wrong)), said)


def machine() -> str:
    """Date and kind of machine."""
    return f"{date.today().isoformat()}, {platform.system()} {platform.machine()}, {_processor()}, one thread"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{len(names)} × {names[0].split(':', 1)[1].strip()}" if names else platform.processor()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default="0.6b,3b", help="0.6b, 3b, llama-8b, or the toys tiny, tiny-pair")
    parser.add_argument("--prompts", type=int, default=24, help="about this many, at most 280")
    parser.add_argument("--steps", default=",".join(STEPS), help="in order; without models, name a --folder")
    parser.add_argument("--dtype", default="bfloat16", help="of the models: bfloat16, float32 or float16")
    parser.add_argument("--without-copy", action="store_true", help="base and adapters alone")
    parser.add_argument("--profile", action="store_true", help="print which functions precompute spends on")
    parser.add_argument("--folder", type=Path, help="keep models and store here, one folder a shape")
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    chosen = parser.parse_args(arguments)
    chosen.steps = [step for step in chosen.steps.split(",") if step]
    unknown = set(chosen.steps) - set(STEPS)
    if unknown or ("models" not in chosen.steps and chosen.folder is None):
        parser.error(f"unknown steps {sorted(unknown)}" if unknown else "without models, --folder says where")
    tables, failed = [f"{machine()}; {chosen.prompts} prompts, {chosen.dtype}.\n"], False
    print(tables[0], flush=True)
    with tempfile.TemporaryDirectory(prefix="shapes-") as temporary:
        for shape in chosen.shapes.split(","):
            lines = [f"\n### {shape}\n", steps.HEAD]
            print("\n".join(lines), flush=True)
            for step in run_shape(shape, (chosen.folder or Path(temporary)) / shape, chosen):
                lines.append(step.row())
                print(lines[-1], flush=True)
                failed |= step.code != 0
                told = step.name == "report" or (step.name == "precompute" and chosen.profile)
                if step.code or told:
                    print(f"\n{step.name}:\n{step.said}\n", file=sys.stderr, flush=True)
            tables += lines
    if chosen.markdown:
        chosen.markdown.write_text("\n".join(tables) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
