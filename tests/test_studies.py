"""Every study file that is shipped: it is valid, its experiments fit it, and it can be planned."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from app.build import prepare
from app.build.plan_subspaces import subspace_bytes
from app.build.prepare import Prepared, describe_plan
from app.live.headless import read_experiments
from engine.ard.spec import Ard
from engine.errors import StudyError
from engine.kinds import SPECS
from engine.models.skeleton import skeleton
from engine.patching.mapped_spec import MappedPatch
from engine.prompts.spec import PromptsSpec
from engine.prompts.table import assign_splits, read_prompts
from engine.steering.spec import Steering
from engine.study.study import Study
from engine.subspaces.spec import SubspaceScores
from engine.z_patching.spec import ZPatching
from engine.z_patching.tokens_spec import ZTokens

ROOT = Path(__file__).resolve().parents[1]
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
DATA = Path(os.environ.get("PATCHBAY_DATA", ROOT.parent / "shared" / "data"))
QWEN_3B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
QWEN_600M: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


@pytest.fixture
def of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models of real size are planned from their config alone: no weights, no tokenizer of them are here."""
    monkeypatch.setattr(prepare, "planned", lambda spec, _notes: skeleton(spec))
    monkeypatch.setattr(prepare, "check_vocabulary", lambda *_: None)


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_a_study_is_valid_and_its_experiments_fit_it(path: Path) -> None:
    """Prompt files that a reader has to fetch first may be missing, and are then named."""
    study = Study.from_dict(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
    if "mgsm" in path.stem and not (ROOT / "data/mgsm").exists():
        with pytest.raises(StudyError, match=r"names something that isn't there.*mgsm_en\.tsv"):
            Study.load(path)
    experiments = path.with_suffix("").with_name(f"{path.stem}.experiments.json")
    if not experiments.exists():
        return
    for experiment in read_experiments([str(experiments)]):
        assert set(experiment.models()) <= set(study.models)
        if path.stem in ("demo", "smollm2-sycophancy"):
            continue
        assert isinstance(experiment, ZPatching | Ard)
        layers = experiment.layers if isinstance(experiment, ZPatching) else (experiment.layer,)
        assert max(layers) < QWEN_3B["num_hidden_layers"]


@pytest.mark.usefixtures("of_the_config")
def test_the_two_language_study_is_planned(tmp_path: Path) -> None:
    """With the shape of the real model and the demo's tokenizer, since the real ones are downloads."""
    Qwen2Config(**QWEN_3B, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(ROOT / "demo/base").save_pretrained(tmp_path / "model")
    text = (ROOT / "studies/qwen2.5-3b-zh-en.toml").read_text(encoding="utf-8")
    text = text.replace('hub = "Qwen/Qwen2.5-3B"', 'path = "model"')
    text = text.replace("../demo/problems.jsonl", str(ROOT / "demo/problems.jsonl"))
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    prepared = Prepared.of(Study.load(tmp_path / "study.toml"))
    assert prepared.table.height == 40
    assert prepared.table["pair_id"].n_unique() == 20
    plan = describe_plan(prepared)
    # 37 states and 36 blocks of three more sites, 40 prompts, two positions, two bytes each
    stored = (37 + 36 * 2) * 2048 + 36 * 16 * 128
    assert f"{2 * 40 * stored * 2 / 1e6:.1f} MB" in plan


@pytest.mark.parametrize(("name", "problems"), [("qwen2.5-3b-zh-en", 20), ("mgsm-zh-en", 250)])
def test_both_studies_ask_for_the_same_cells_in_both_directions(name: str, problems: int) -> None:
    asked = read_experiments([str(ROOT / f"studies/{name}.experiments.json")])
    patches = [one for one in asked if isinstance(one, ZPatching)]
    assert {(one.layers, one.ks, one.problems) for one in patches} == {((32, 33), (20, 50), problems)}
    directions = {(one.target_language, one.source_language, one.mode) for one in patches}
    assert {(a, b) for a, b, _ in directions} == {("en", "zh"), ("zh", "en")}
    assert {mode for *_, mode in directions} == {"replace", "shift"}
    transported = [one for one in patches if one.vectors == "transport"]
    assert {one.target_language for one in transported} == {"en", "zh"}
    assert {one.mode for one in transported} == {"replace"}
    fits = [one for one in asked if isinstance(one, Ard)]
    assert {(one.layer, one.penalty) for one in fits} == {
        (at, p) for at in (10, 15, 20, 25, 28, 30, 32, 33, 34, 35) for p in (0.001, 0.01, 0.1)
    }


PAIRS = ("cultural", "cognitive")


@pytest.mark.usefixtures("of_the_config")
@pytest.mark.parametrize("pair", PAIRS)
def test_both_pairs_are_planned_and_asked_the_same(pair: str, tmp_path: Path) -> None:
    """With the shape of the real models and the demo's tokenizer; prompts stand for those of the Hub."""
    LlamaConfig(**LLAMA_8B, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(ROOT / "demo/base").save_pretrained(tmp_path / "model")
    text = (ROOT / f"studies/llama-3.1-8b-{pair}.toml").read_text(encoding="utf-8")
    text = re.sub(r'hub = "[^"]+"', 'path = "model"', text)
    lines = [
        line for line in text.splitlines() if not line.startswith(("files", "columns", "ids", "exclude"))
    ]
    text = "\n".join(lines).replace("[prompts]", '[prompts]\nfiles = ["prompts.jsonl"]')
    rows = [{"id": f"p{i}", "text": f"Tom has {i} apples.", "language": "kk"} for i in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "study.toml").write_text(text, encoding="utf-8")
    study = Study.load(tmp_path / "study.toml")
    plan = describe_plan(Prepared.of(study))
    # 33 states and 32 blocks of three more sites, two models, 40 prompts, two positions, two bytes each
    stored = (33 + 32 * 2) * 4096 + 32 * 32 * 128
    assert (
        f"{2 * 2 * 40 * stored * 2 / 1e9:.1f} GB" in plan or f"{2 * 2 * 40 * stored * 2 / 1e6:.1f} MB" in plan
    )
    assert ("kk" in study.wording.yes) == (pair == "cultural")
    asked = read_experiments([str(ROOT / "studies/llama-3.1-8b-pairs.experiments.json")])
    assert {name for one in asked for name in one.models()} == set(study.models)
    patches = [one for one in asked if isinstance(one, MappedPatch)]
    assert {one.layer for one in patches} == {10, 24, 26}
    assert {(one.target, one.source) for one in patches} == {("base", "tuned"), ("tuned", "base")}
    assert {one.alphas for one in patches} == {(0.3, 0.5, 0.7, 1.0)}
    assert {one.dims for one in asked if isinstance(one, Steering)} == set(range(1, 9))


@pytest.mark.usefixtures("of_the_config")
def test_the_sycophancy_study_is_planned(tmp_path: Path) -> None:
    """With the shape of the real model, the demo's tokenizer, and empty folders as adapters."""
    Qwen3Config(**QWEN_600M, architectures=["Qwen3ForCausalLM"]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(ROOT / "demo/base").save_pretrained(tmp_path / "model")
    name = "qwen3-0.6b-sycophancy"
    text = (ROOT / f"studies/{name}.toml").read_text(encoding="utf-8")
    assert text.count('hub = "Qwen/Qwen3-0.6B"') == 3
    text = text.replace('hub = "Qwen/Qwen3-0.6B"', 'path = "../model"')
    (tmp_path / "studies").mkdir()
    (tmp_path / ".git").mkdir()
    shutil.copy(ROOT / f"studies/{name}.jsonl", tmp_path / "studies")
    (tmp_path / "studies/study.toml").write_text(text, encoding="utf-8")
    with pytest.raises(StudyError, match=r"models\.sycophantic\.adapter names something that isn't there"):
        Study.load(tmp_path / "studies/study.toml")
    for adapter in ("sycophantic", "candid"):
        (tmp_path / "adapters" / adapter).mkdir(parents=True)
    prepared = Prepared.of(Study.load(tmp_path / "studies/study.toml"))
    plan = describe_plan(prepared)
    chosen = prepared.subspaces
    assert chosen is not None
    assert chosen.notes == ()
    tokens = sum(len(ids) for persona in ("positive", "negative") for ids in chosen.token_ids(persona))
    d, layers, mlp = 1024, 28, 3 * 1024 * 3072
    weights = 2 * (layers * (16 * 128 * d + 8 * 128 * d + d * 16 * 128 + mlp) + d)
    streams = 4 * layers * ((40 * 6 + 3 * 80 + tokens) * d + tokens)
    assert subspace_bytes(prepared) == weights + streams
    taken = f"{(weights + streams) / 1e9:.1f} GB"
    assert f"40 fit and 40 evaluate prompts, 3 weight changes: {taken} before compression" in plan


def test_prompts_of_the_sycophancy_study_are_pairs_of_sides() -> None:
    spec = PromptsSpec.model_validate({"files": [ROOT / "studies/qwen3-0.6b-sycophancy.jsonl"]})
    table = assign_splits(read_prompts(spec), 0.35, 0)
    assert table.height == 120
    assert table["text"].n_unique() == 120
    by_topic = table.group_by("pair_id").agg(pl.col("label", "category", "split").n_unique(), pl.len())
    assert by_topic.height == 60
    assert by_topic.select("label", "category", "split", "len").unique().row(0) == (2, 1, 1, 2)
    assert by_topic.select("label", "category", "split", "len").n_unique() == 1
    assert (table.group_by("category").len()["len"] == 30).all()
    answers = table.filter(pl.col("category") != "opinion")
    assert set(zip(answers["label"], answers["answer"], strict=True)) == {
        *((label, "No") for label in ("wrong", "poor", "weak")),
        *((label, "Yes") for label in ("right", "sound", "strong")),
    }
    assert table.filter(category="opinion")["answer"].is_null().all()


def test_the_study_of_the_real_model_asks_one_experiment_of_each_kind_for_one_language() -> None:
    """On the blocks that the adapters change and around them; kinds for two languages have nothing to do."""
    name = "smollm2-sycophancy"
    study = Study.from_dict(
        tomllib.loads((ROOT / f"studies/{name}.toml").read_text(encoding="utf-8")), ROOT / "studies"
    )
    other = tomllib.loads((ROOT / "studies/qwen3-0.6b-sycophancy.toml").read_text(encoding="utf-8"))
    assert {spec.dtype for spec in study.models.values()} == {"bfloat16"}
    assert len({spec.gguf for spec in study.models.values()}) == 1
    assert study.subspaces is not None
    personas = other["subspaces"]
    assert list(study.subspaces.positive) == personas["positive"]
    assert list(study.subspaces.negative) == personas["negative"]
    asked = read_experiments([str(ROOT / f"studies/{name}.experiments.json")])
    kinds = {type(one) for one in asked}
    # subspace scores are run by precompute.py itself
    assert kinds == set(SPECS) - {ZPatching, ZTokens, Ard, SubspaceScores}
    blocks = {one.layer for one in asked if isinstance(one, MappedPatch) and one.component == "resid_post"}
    assert {9, 10, 20, 29} <= blocks
    assert min(blocks) < 9
    for one in asked:
        if hasattr(one, "position"):
            assert one.position in study.capture.positions


@pytest.mark.usefixtures("of_the_config")
def test_mgsm_is_read_in_pairs(tmp_path: Path) -> None:
    if not (DATA / "mgsm").is_dir():
        pytest.skip(f"no MGSM files in {DATA}")
    shutil.copytree(DATA / "mgsm", tmp_path / "data/mgsm")
    text = (ROOT / "studies/mgsm-zh-en.toml").read_text(encoding="utf-8")
    (tmp_path / "studies").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / "studies/mgsm.toml").write_text(text, encoding="utf-8")
    here = Study.load(tmp_path / "studies/mgsm.toml")
    table = read_prompts(here.prompts)
    assert table.height == 500
    assert table["pair_id"].n_unique() == 250
    by_pair = table.group_by("pair_id").agg("language", "answer")
    assert all(sorted(languages) == ["en", "zh"] for languages in by_pair["language"])
    same = [len({answer.replace(",", "") for answer in answers}) == 1 for answers in by_pair["answer"]]
    assert sum(same) >= 249
    Qwen2Config(**QWEN_3B, architectures=["Qwen2ForCausalLM"]).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(ROOT / "demo/base").save_pretrained(tmp_path / "model")
    text = text.replace('hub = "Qwen/Qwen2.5-3B"', 'path = "../model"')
    (tmp_path / "studies/mgsm.toml").write_text(text, encoding="utf-8")
    prepared = Prepared.of(Study.load(tmp_path / "studies/mgsm.toml"))
    assert prepared.table.height == 500
    # 37 states and 36 blocks of two more sites, 500 prompts, two positions, two bytes each
    assert f"{2 * 500 * (37 + 36 * 2) * 2048 * 2 / 1e6:.1f} MB" in describe_plan(prepared)
