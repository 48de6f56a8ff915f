"""The benchmark of real shapes: its models, what it measures of a step, and which titles it refuses."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from app.build.plan_bytes import store_bytes
from app.build.prepare import Prepared
from engine.models.loading import load
from engine.study.study import ModelSpec, Study

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def shapes() -> Iterator[Any]:
    """The benchmark's modules by name."""
    sys.path.insert(0, str(FOLDER))
    yield lambda name: importlib.import_module(f"shapes.{name}")
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def study(shapes: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(
        shapes("study").write_study(tmp_path_factory.mktemp("shape") / "tiny", "tiny", 24, "bfloat16")
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("0.6b", 596_049_920), ("3b", 3_085_938_688), ("llama-8b", 8_030_261_248)],
)
def test_shapes_have_the_published_numbers_of_parameters(shapes: Any, name: str, parameters: int) -> None:
    """Of the checkpoints on the Hub: Qwen3-0.6B, Qwen2.5-3B and Llama-3.1-8B."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shapes("models").SHAPES[name].config())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_weights_are_complete_and_spread_as_initialised(shapes: Any, study: Path) -> None:
    lm = load(ModelSpec(path=study.parent / "base", dtype="bfloat16"), "base")  # refuses a missing tensor
    assert lm.model.lm_head.weight is lm.model.model.embed_tokens.weight
    assert float(lm.taps.embed.weight.float().std()) == pytest.approx(shapes("models").SPREAD, rel=0.02)
    assert (lm.model.model.norm.weight == 1).all()
    copied = load(ModelSpec(path=study.parent / "copy", dtype="bfloat16"), "copy")
    for a, b in zip(lm.model.parameters(), copied.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weights_are_written_a_shard_at_a_time(
    shapes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = shapes("models")
    tokenizer = models.demo_tokenizer()
    models.write_model(tmp_path / "one", models.SHAPES["tiny"], torch.float32, tokenizer)
    monkeypatch.setattr(models, "SHARD_BYTES", 30_000)
    models.write_model(tmp_path / "many", models.SHAPES["tiny"], torch.float32, tokenizer)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    largest = 768 * 32 * 4  # the embedding has a shard of its own
    assert len(files) > 3
    assert max(file.stat().st_size for file in files) < largest + 1000
    one, many = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many"))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_an_adapter_has_its_rank_and_a_small_share_of_the_weights(shapes: Any, study: Path) -> None:
    models, folder = shapes("models"), study.parent
    spec = {"path": folder / "base", "dtype": "float32"}
    base, tuned = load(ModelSpec(**spec), "base"), load(ModelSpec(adapter=folder / "tuned", **spec), "tuned")
    changed = {}
    for (name, a), b in zip(base.model.named_parameters(), tuned.model.parameters(), strict=True):
        if not torch.equal(a, b):
            changed[name] = float((b - a).norm() / a.norm())
            assert int(torch.linalg.matrix_rank((b - a).double(), rtol=1e-4)) == models.RANK
    assert set(changed) == {f"model.layers.1.{m}.weight" for m in ("self_attn.o_proj", "mlp.down_proj")}
    for share in changed.values():
        assert share == pytest.approx(models.SHARE, rel=0.35)


def test_prompts_come_in_pairs_from_all_categories(study: Path) -> None:
    rows = [json.loads(line) for line in (study.parent / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    pairs: dict[str, set[str]] = {}
    for row in rows:
        pairs.setdefault(row["pair_id"], set()).add(row["language"])
    assert all(languages == {"en", "zh"} for languages in pairs.values())
    assert len({row["category"] for row in rows}) >= 8
    assert list(Study.load(study).models) == ["base", "tuned", "second", "copy"]


def test_a_peer_has_another_vocabulary_and_width(shapes: Any, tmp_path: Path) -> None:
    file = shapes("study").write_study(tmp_path / "pair", "tiny-pair", 12, "float32")
    study = Study.load(file)
    base, peer = (load(spec, name) for name, spec in study.models.items())
    text = "There are 15 eggs in a box."
    pieces = [lm.tokenizer.tokenize(text) for lm in (base, peer)]
    assert pieces[0] != pieces[1]
    assert base.tokenizer.get_vocab() != peer.tokenizer.get_vocab()
    assert base.taps.d != peer.taps.d
    assert peer.tokenizer.decode(peer.tokenizer(text)["input_ids"]) == text


BUSY = """
import pathlib, sys, time
held = bytearray(300_000_000)
start = time.process_time()
while time.process_time() - start < 0.5:
    pass
pathlib.Path(sys.argv[1], "file").write_bytes(bytes(1234))
print("not JSON: {")
print('{"found": 7}')
print("the end", file=sys.stderr)
sys.exit(3)
"""


MEASURE = """
import json, pathlib, sys
from shapes import steps
busy, folder = sys.argv[1:]
step = steps.run("busy", ["-c", busy, folder], pathlib.Path(folder))
print(json.dumps(step.__dict__ | {"row": step.row()}))
idle = steps.run("idle", ["-c", "import os; print(os.environ['OMP_NUM_THREADS'])"], pathlib.Path(folder))
print(json.dumps(idle.__dict__))
"""


def test_a_step_is_measured_alone(tmp_path: Path) -> None:
    """From a process without torch, as the command has it: a child's peak starts from its parent's."""
    (tmp_path / "old").write_bytes(bytes(99))
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, BUSY, str(tmp_path)]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    busy, idle = map(json.loads, printed.splitlines())
    assert busy["code"] == 3
    assert busy["found"] == {"found": 7}
    assert "the end" in busy["said"]
    assert busy["written"] == 1234
    assert 0.3e9 < busy["peak"] < 0.35e9
    assert 0.5 <= busy["cpu"] < 5
    assert busy["wall"] >= 0.5
    assert "**failed (3)**" in busy["row"]
    assert (idle["code"], idle["written"], idle["found"], idle["said"]) == (0, 0, None, "1")
    assert idle["peak"] < 0.05e9


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("similarity-1-cka", "copy leaves base at block 3"),
        ("similarity-2-cka-language", "base and copy differ more in zh"),
        (
            "mapped-1-patch-grid",
            "copy ← base: the map saves 12 % at resid_post of block 3, the first on train",
        ),
        ("mapped-4-patch-cosine", "Prompts that are mapped closer gain more: Spearman 0.98 (0.84 to 1.00)"),
        ("patching-2-patch", "base's activation moves copy by 0.2 nats"),
        ("rank-2-rank-map", "Rank 4 of 16 is enough"),
        ("heads-4-heads-map", "Heads 3.1 and 5.0 carry 80 % of what all heads do"),
        ("behaviour-2-behaviour", "log p(Yes) − log p(No): base −0.05 nats, copy is higher"),
        ("weights-1-weights", "copy changes blocks 2 to 4 of base"),
        ("heads-9-a-new-panel", "Whatever nobody has written yet"),
    ],
)
def test_titles_that_find_something_between_copies_are_refused(shapes: Any, name: str, title: str) -> None:
    assert shapes("titles").false_claims([{"name": name, "title": title}]) == [f"{name}: {title}"]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("similarity-1-cka", "base and copy have the same geometry at resid_post in every block"),
        (
            "mapped-1-patch-grid",
            "copy ← base: the map is not shown to save anything at any site that was run",
        ),
        ("patching-2-patch", "base's activation is not told from rounding in copy: 4e-8 nats, limit 0.02"),
        ("rank-5-rank-spectrum-difference", "13 directions of 16 hold 99 % of the squared difference"),
        ("heads-5-heads-map-nats", "No head of any block moves copy beyond rounding"),
        ("behaviour-2-behaviour", "log p(Yes) − log p(No): base −0.05 nats (−0.06 to −0.04)"),
        ("transport-1-map-scores", "base → copy: the map predicts new prompts: R² 0.95"),
        ("updates-3-updates-split", "base, block 2: attention's output lies more in Z than the MLP's"),
    ],
)
def test_titles_that_find_nothing_or_speak_of_one_model_pass(shapes: Any, name: str, title: str) -> None:
    assert not shapes("titles").is_false(name, title)


def test_a_failed_step_fails_the_run(shapes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes("steps")
    command = importlib.import_module("real_shapes")
    (tmp_path / "tiny").mkdir()
    given = ["--shapes", "tiny", "--folder", str(tmp_path), "--markdown", str(tmp_path / "table.md")]
    assert command.main([*given, "--steps", "plan"]) == 1
    printed = capsys.readouterr()
    assert "| plan | **failed (1)** |" in printed.out
    assert "study.toml" in printed.err, "what the step said"
    assert "| plan | **failed (1)** |" in (tmp_path / "table.md").read_text()


def test_precompute_against_bare_passes(shapes: Any) -> None:
    steps, command = shapes("steps"), importlib.import_module("real_shapes")
    found = {"loading": 10.0, "bare": 90.0, "subspaces": 0.0, "models": 3, "tokens": 5000, "stages": []}
    cases = ((240.0, 6e8, 120, 0), (260.0, 6e8, 120, 1), (260.0, 1e6, 120, 0), (260.0, 6e8, 24, 0))
    for build, parameters, prompts, code in cases:
        measured = found | {"build": build, "parameters": parameters, "prompts": prompts}
        step = command._against_bare(steps.Step("precompute", 1.0, 1.0, 1, 1, 0, "", measured))
        assert step.code == code
        assert f"{build / 100:.2f} ×" in step.note


def test_a_hollow_model_is_planned_as_the_real_one(shapes: Any, study: Path, tmp_path: Path) -> None:
    """And takes no room; the planner looks at names, shapes and sizes alone."""
    module = shapes("models")
    text = study.read_text().split("[prompts]")[1].split("[contrasts]")[0]
    own = tmp_path / "study.toml"
    own.write_text(f'name = "s"\n[models.base]\npath = "base"\ndtype = "bfloat16"\n[prompts]{text}')
    (tmp_path / "prompts.jsonl").write_bytes((study.parent / "prompts.jsonl").read_bytes())
    module.write_hollow(tmp_path / "base", module.SHAPES["tiny"], torch.bfloat16, module.demo_tokenizer())
    weights = tmp_path / "base" / "model-00000.safetensors"
    assert weights.stat().st_blocks * 512 < weights.stat().st_size / 2
    hollow = Prepared.of(Study.load(own))
    (tmp_path / "base").rename(tmp_path / "hollow")
    shutil.copytree(study.parent / "base", tmp_path / "base")
    real = Prepared.of(Study.load(own))
    assert store_bytes(real) == store_bytes(hollow)
    assert [one.parameters for one in real.costs()] == [one.parameters for one in hollow.costs()]
