"""The steering vector to take away: its values by another way, each format read back by its own reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from live_study import CHANGED, make_store
from safetensors import safe_open

from app.frame.opened import Opened, read_facts
from app.live.jobs import JobResult
from app.live.run import run_live
from app.steering import take
from engine.errors import AnalysisError
from engine.steering.spec import Steering
from store.reader import Store

LAYER = CHANGED + 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("steering"))


@pytest.fixture(scope="module")
def opened(store: Path) -> Opened:
    found = Store(store)
    return Opened(str(store), found, read_facts(found))


@pytest.fixture(scope="module")
def result(store: Path) -> JobResult:
    spec = Steering(
        target="base",
        source="tuned",
        component="resid_post",
        layer=LAYER,
        position="decision",
        wanted=("1",),
        against=("2",),
        alphas=(0.1, 0.2),
        draws=2,
        budget=100.0,
    )
    _, found = run_live(str(store), spec)
    return JobResult(spec.to_json(), found.summary, found.tables)


def test_the_vector_is_the_mean_difference_at_the_chosen_amplitude(opened: Opened, result: JobResult) -> None:
    vector = take.vector_of(opened, result)
    assert vector is not None
    assert vector.chosen
    train = np.flatnonzero(opened.store.prompts["split"].to_numpy() == "train")
    own, other = (
        opened.store.activations(model, "resid_post", LAYER, "decision", rows=train).astype(np.float64)
        for model in ("base", "tuned")
    )
    mean = (other - own).mean(axis=0)
    size = result.summary["chosen"] * np.linalg.norm(own, axis=1).mean()
    assert np.allclose(vector.values, size * mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(vector.unit) == pytest.approx(1, abs=1e-6)


def test_safetensors_hold_both_and_say_of_what(opened: Opened, result: JobResult, tmp_path: Path) -> None:
    vector = take.vector_of(opened, result)
    assert vector is not None
    (tmp_path / "v.safetensors").write_bytes(take.safetensors_bytes(vector))
    with safe_open(tmp_path / "v.safetensors", "np") as held:
        assert np.array_equal(held.get_tensor("vector"), vector.values)
        assert np.array_equal(held.get_tensor("unit"), vector.unit)
        facts = held.metadata()
    assert (facts["target"], facts["component"], facts["layer"]) == ("base", "resid_post", str(LAYER))
    assert float(facts["alpha"]) == vector.alpha


@pytest.mark.parametrize(
    ("component", "layer", "place"), [("resid_post", LAYER, LAYER), ("resid_pre", LAYER, LAYER - 1)]
)
def test_a_control_vector_is_read_back(
    opened: Opened, result: JobResult, tmp_path: Path, component: str, layer: int, place: int
) -> None:
    gguf = pytest.importorskip("gguf")
    vector = take.vector_of(opened, result)
    assert vector is not None
    moved = dataclasses.replace(
        vector, condition=dict(result.condition) | {"component": component, "layer": layer}, family="qwen3"
    )
    (tmp_path / "v.gguf").write_bytes(take.control_vector(moved))
    read = gguf.GGUFReader(tmp_path / "v.gguf")
    assert {tensor.name: tensor.data.tolist() for tensor in read.tensors} == {
        f"direction.{place}": vector.values.tolist()
    }
    assert read.get_field("general.architecture").contents() == "controlvector"
    assert read.get_field("controlvector.model_hint").contents() == "qwen3"


@pytest.mark.parametrize(("component", "layer"), [("attn_out", 2), ("resid_post", 0), ("resid_pre", 1)])
def test_what_the_format_cannot_say_is_refused(
    opened: Opened, result: JobResult, component: str, layer: int
) -> None:
    vector = take.vector_of(opened, result)
    assert vector is not None
    moved = dataclasses.replace(
        vector, condition=dict(result.condition) | {"component": component, "layer": layer}
    )
    with pytest.raises(AnalysisError, match="no place for this site"):
        take.control_vector(moved)


def test_lines_name_the_hook_and_older_runs_have_no_vector(opened: Opened, result: JobResult) -> None:
    vector = take.vector_of(opened, result)
    assert vector is not None
    assert f'"blocks.{LAYER}.hook_resid_post"' in take.lines(vector)
    compile(take.lines(vector), "lines", "exec")
    older = dataclasses.replace(result, tables={k: v for k, v in result.tables.items() if k != "vector"})
    assert take.vector_of(opened, older) is None
