"""The study of a shape: its models' folders, prompts of the demo, and the file that names them."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from shapes.models import (
    DEMO,
    SHAPES,
    demo_tokenizer,
    other_tokenizer,
    write_adapter,
    write_copy,
    write_model,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PERSONAS = """
[subspaces]
deltas = ["tuned"]
positive = ["You are a kind friend.", "You are a young student."]
negative = ["You are a strict teacher.", "You are a careful doctor."]
fit = {some}
evaluate = {some}
"""


def write_study(folder: Path, name: str, prompts: int, dtype: str, copy: bool = True) -> Path:
    """Writes everything a study of a shape needs; returns its file.

    Args:
        prompts: about this many, half problems and half questions of agreement, in pairs of languages.
        copy: whether an identical copy of the first model takes part, in which nothing can be found.
    """
    folder.mkdir(parents=True)
    shape, texts = SHAPES[name], _write_prompts(folder / "prompts.jsonl", prompts)
    write_model(folder / "base", shape, DTYPES[dtype], demo_tokenizer())
    models = {"base": 'path = "base"'}
    more = ""
    if shape.peer is not None:
        write_model(folder / "peer", SHAPES[shape.peer], DTYPES[dtype], other_tokenizer(texts), seed=1)
        models["peer"] = 'path = "peer"'
    else:
        for seed, adapter in enumerate(("tuned", "second"), 1):
            write_adapter(folder / adapter, shape, folder / "base", seed)
            models[adapter] = f'path = "base"\nadapter = "{adapter}"'
        more = '\n[contrasts]\nbetween = { plus = "tuned", minus = "second" }\n'
        more += PERSONAS.format(some=max(8, prompts // 3))
    if copy and shape.peer is None:
        write_copy(folder / "copy", folder / "base")
        models["copy"] = 'path = "copy"'
    blocks = [f'[models.{model}]\n{place}\ndtype = "{dtype}"\n' for model, place in models.items()]
    text = f'name = "shape-{name.replace(".", "-")}"\nseed = 0\n\n' + "\n".join(blocks)
    text += (
        '\n[prompts]\nfiles = ["prompts.jsonl"]\ntemplate = "chat"\nvalidation = 0.35\n'
        '\n[capture]\ncomponents = ["resid", "attn_out", "mlp_out", "head_z"]\n'
        f'positions = ["last_content", "decision"]\nlayers = "all"\ndtype = "bfloat16"\n{more}'
    )
    file = folder / "study.toml"
    file.write_text(text)
    return file


def _write_prompts(file: Path, count: int) -> list[str]:
    """Pairs of an English and a Chinese prompt, evenly from all categories; returns their lines."""
    lines: list[str] = []
    for source, share in (("problems", count - count // 2), ("agreement", count // 2)):
        known = (DEMO / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
        pairs = [known[i : i + 2] for i in range(0, len(known), 2)]
        wanted = min(len(pairs), -(-share // 2))
        lines += [line for i in range(wanted) for line in pairs[i * len(pairs) // wanted]]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the study of a shape.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("prompts", type=int)
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--without-copy", action="store_true")
    given = parser.parse_args()
    write_study(given.folder, given.shape, given.prompts, given.dtype, copy=not given.without_copy)
