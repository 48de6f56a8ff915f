"""Weight changes that subspace scores can't put on: left out, unless the study asks for them by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_study import save_model, write_study
from transformers import AutoModelForCausalLM, AutoTokenizer

from app.build.build import build
from app.live.subspaces import deltas_of
from engine.errors import ModelError
from engine.study.study import Study

SECTION = """
[subspaces]
positive = "You are kind and agree."
negative = "You check."
where = { language = "en" }
fit = 4
evaluate = 4
"""


def test_a_change_that_cannot_be_steered_costs_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless the study names that change, the capture goes on without it."""
    folder = tmp_path / "study"
    save_model(folder / "base", "gemma3")
    for name, part in (("tuned", "mm_input_projection_weight"), ("written", "self_attn.o_proj.weight")):
        model = AutoModelForCausalLM.from_pretrained(folder / "base")
        with torch.no_grad():
            for tensor, parameter in model.named_parameters():
                if tensor.endswith(part):
                    parameter.mul_(1.01)
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / name)
    file = write_study(folder, pairs=20, positions=["decision"], components=["resid"], extra=SECTION)
    file.write_text(file.read_text().replace("[prompts]", '[models.written]\npath = "written"\n[prompts]'))
    store = build(Study.load(file), tmp_path / "store", quiet=True)
    assert deltas_of(store) == ("written",)
    assert "leave out tuned" in caplog.text
    assert "Projector" in caplog.text
    file.write_text(file.read_text().replace("[subspaces]", '[subspaces]\ndeltas = ["tuned"]'))
    with pytest.raises(ModelError, match="can't be steered"):
        build(Study.load(file), tmp_path / "named", quiet=True)
