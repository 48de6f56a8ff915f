"""Conditions run on tiny models whose difference is planted, against plain forward passes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from tiny_models import tiny

from engine.errors import JobError, PatchError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes.patch_engine import PatchEngine
from engine.patching.run import ConditionResult, run_condition
from engine.patching.spec import Condition
from engine.stats.means import bootstrap_mean

CHANGED = 2  # the only block in which base and tuned differ (its MLP)
LAYERS = 4


@pytest.fixture(scope="module")
def pair() -> dict[str, LoadedModel]:
    """base and tuned: equal but for the MLP of one block."""
    base = tiny("qwen3", seed=3, num_hidden_layers=LAYERS)
    tuned = copy.deepcopy(base)
    weight = tuned.model.layers[CHANGED].mlp.down_proj.weight
    with torch.no_grad():
        weight.add_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return {"base": from_parts(base, name="base"), "tuned": from_parts(tuned, name="tuned")}


@pytest.fixture(scope="module")
def token_ids() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 101, size=rng.integers(5, 13)).tolist() for _ in range(14)]


@pytest.fixture(scope="module")
def places(token_ids: list[list[int]]) -> list[int]:
    return [len(ids) - 1 - (i % 3) for i, ids in enumerate(token_ids)]


Run = Any


@pytest.fixture(scope="module")
def run(pair: dict[str, LoadedModel], token_ids: list[list[int]], places: list[int]) -> Iterator[Run]:
    """run(target, source, component, layer, **condition): the last 8 prompts reported, the first 6 train."""
    engines: dict[tuple[str, str, int], PatchEngine] = {}

    def engine(name: str, read_at: str, first: int, last: int) -> PatchEngine:
        key = (name, read_at, first)
        if key not in engines:
            engines[key] = PatchEngine(pair[name], token_ids[first:last], places[first:last], read_at=read_at)
        return engines[key]

    def go(target: str, source: str, component: str, layer: int, **changes: Any) -> ConditionResult:
        callbacks = {k: changes.pop(k) for k in ("on_progress", "on_partial", "should_stop") if k in changes}
        table = changes.pop("prompts", pl.DataFrame({"id": [f"p{i}" for i in range(8)]}))
        condition = Condition(target=target, source=source, component=component, layer=layer, **changes)
        site = Site(component, layer, condition.heads)
        read = condition.read_at
        return run_condition(
            condition,
            engine(target, read, 6, 14),
            table,
            source=engine(source, read, 6, 14).activations(site).numpy(),
            source_train=engine(source, read, 0, 6).activations(site).numpy(),
            target_train=engine(target, read, 0, 6).activations(site).numpy(),
            **callbacks,
        )

    yield go
    engines.clear()


def next_tokens(lm: LoadedModel, token_ids: list[list[int]], reads: list[int]) -> np.ndarray:
    """Log-probabilities of plain forward passes, one prompt at a time, float64."""
    rows = []
    with torch.inference_mode():
        for ids, read in zip(token_ids, reads, strict=True):
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, read]
            rows.append(logits.double().log_softmax(-1).numpy())
    return np.stack(rows)


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (np.exp(p) * (p - q)).sum(-1)


UPSTREAM = [
    ("resid_pre", 0),
    ("resid_post", 1),
    ("resid_pre", CHANGED),
    ("attn_out", CHANGED),
    ("mlp_out", 1),
    ("head_z", CHANGED),
    ("head_out", 1),
]


@pytest.mark.parametrize("read_at", ["patched", "decision"])
@pytest.mark.parametrize(("component", "layer"), UPSTREAM)
@pytest.mark.parametrize(("target", "source"), [("tuned", "base"), ("base", "tuned")])
def test_upstream_of_the_change_a_literal_patch_does_nothing(
    run: Run, component: str, layer: int, target: str, source: str, read_at: str
) -> None:
    """What enters the changed block is the same in both models, so swapping it changes no output."""
    result = run(target, source, component, layer, kind="literal", read_at=read_at)
    # float32: the engines of two models round the same sums the same way, up to 1e-7 relative
    assert np.abs(result.kl).max() <= 1e-6
    assert result.self_check.passed


@pytest.mark.parametrize(("component", "layer"), [("resid_post", CHANGED), ("mlp_out", CHANGED)])
@pytest.mark.parametrize("kind", ["literal", "raw"])
def test_at_the_change_the_patch_is_felt(run: Run, component: str, layer: int, kind: str) -> None:
    result = run("tuned", "base", component, layer, kind=kind)
    assert result.kl.min() > 1e-4
    assert result.intervals[0].low > 1e-3


def test_raw_upstream_of_the_change_is_the_identity(run: Run) -> None:
    """Equal activations have equal moments, so matching them returns them."""
    assert np.abs(run("tuned", "base", "resid_post", 1, kind="raw").kl).max() <= 1e-6


def test_the_last_state_of_the_source_gives_the_sources_own_prediction(
    run: Run, pair: dict[str, LoadedModel], token_ids: list[list[int]], places: list[int]
) -> None:
    """Behind the last block only norm and unembedding follow, which both models share."""
    ids, reads = token_ids[6:], places[6:]
    base, tuned = (next_tokens(pair[name], ids, reads) for name in ("base", "tuned"))
    result = run("tuned", "base", "resid_post", LAYERS - 1, kind="literal", top_k=3)
    # float32 log-probabilities are good to 1e-6; KL sums 101 of their differences times p
    np.testing.assert_allclose(result.kl[0], kl(base, tuned), rtol=1e-4, atol=1e-6)
    best = np.argsort(-base, axis=1)[:, :3]
    assert result.table["top_after"].to_list() == [[f"#{t}" for t in row] for row in best]
    before = np.argsort(-tuned, axis=1)[:, :3]
    assert result.table["top_before"].to_list() == [[f"#{t}" for t in row] for row in before]
    np.testing.assert_allclose(
        np.array(result.table["p_before"].to_list()), np.exp(np.take_along_axis(tuned, before, 1)), rtol=1e-4
    )
    np.testing.assert_allclose(
        np.array(result.table["p_after"].to_list()), np.exp(np.take_along_axis(base, best, 1)), rtol=1e-4
    )
    changed = [bool(a != b) for a, b in zip(before[:, 0], best[:, 0], strict=True)]
    assert result.table["top1_changed"].to_list() == changed


def test_the_two_directions_differ_and_the_reverse_kl_is_the_other_one(run: Run) -> None:
    """At the last state: tuned <- base gives KL(base || tuned), base <- tuned KL(tuned || base)."""
    last = ("resid_post", LAYERS - 1)
    forward = run("tuned", "base", *last, kind="literal").kl[0]
    backward = run("base", "tuned", *last, kind="literal").kl[0]
    assert np.abs(forward - backward).max() > 1e-3
    reverse = run("tuned", "base", *last, kind="literal", reverse_kl=True).kl[0]
    np.testing.assert_allclose(reverse, backward, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("component", "heads"),
    [("resid_pre", None), ("attn_out", None), ("mlp_out", None), ("head_z", (0, 2)), ("head_out", (1,))],
)
@pytest.mark.parametrize("scale", ["vector", "deviation"])
def test_a_self_patch_changes_nothing(run: Run, component: str, heads: Any, scale: str) -> None:
    result = run("tuned", "base", component, 1, kind="self", heads=heads, scale=scale, alphas=(0.5, 1.0))
    assert np.abs(result.kl[1]).max() <= 1e-6
    assert result.kl[0].max() > 1e-6  # at half its size the own activation is another one
    assert result.self_check.value <= 1e-6
    assert result.source_origin == "not needed"


def test_a_self_patch_of_a_bfloat16_model_is_exact(token_ids: list[list[int]], places: list[int]) -> None:
    """The unpatched reference goes through the same batch as the patched run, so they round alike."""
    half = from_parts(tiny("qwen3", seed=3, num_hidden_layers=LAYERS).to(torch.bfloat16), name="half")
    condition = Condition(target="half", source="half", component="mlp_out", layer=1, kind="self")
    prompts = pl.DataFrame({"id": [str(i) for i in range(len(token_ids))]})
    result = run_condition(condition, PatchEngine(half, token_ids, places), prompts)
    assert np.abs(result.kl).max() <= 1e-6
    assert "bfloat16" in result.self_check.detail


@pytest.mark.parametrize("kind", ["raw", "literal", "self"])
def test_no_deviation_is_the_mean_control(run: Run, kind: str) -> None:
    none = run("tuned", "base", "resid_post", 2, kind=kind, scale="deviation", alphas=(0.0, 1.0))
    mean = run("tuned", "base", "resid_post", 2, kind="mean")
    # float32 states of another batch shape: some processors sum a product's rows in an order of their own
    np.testing.assert_allclose(none.kl[0], mean.kl[0], rtol=2e-6, atol=1e-7)
    assert mean.kl.min() > 1e-4


def test_a_sweep_is_its_single_amplitudes(run: Run) -> None:
    swept = run("tuned", "base", "mlp_out", 2, alphas=(0.0, 0.5, 2.0))
    for a, alpha in enumerate((0.0, 0.5, 2.0)):
        alone = run("tuned", "base", "mlp_out", 2, alphas=(alpha,))
        # another batch shape: float32 rounding of the matrix products
        np.testing.assert_allclose(swept.kl[a], alone.kl[0], rtol=1e-4, atol=1e-6)
    assert swept.curve()["alpha"].to_list() == [0.0, 0.5, 2.0]
    assert swept.table.height == 3 * 8
    by_alpha = swept.table.filter(pl.col("alpha") == 0.5)["kl"].to_numpy()
    np.testing.assert_array_equal(by_alpha, swept.kl[1])


def test_intervals_resample_pairs(run: Run) -> None:
    pairs = ["a", "a", "b", "b", "c", "c", "d", "d"]
    table = pl.DataFrame({"id": [f"p{i}" for i in range(8)], "pair_id": pairs})
    result = run("tuned", "base", "resid_post", 3, prompts=table, n_boot=500, seed=4, level=0.9)
    groups = np.repeat(np.arange(4), 2)
    expected = bootstrap_mean(result.kl[0], groups=groups, n_boot=500, level=0.9, seed=4)
    found = result.intervals[0]
    assert (found.estimate, found.low, found.high) == (expected.estimate, expected.low, expected.high)
    assert found.estimate == pytest.approx(result.kl[0].mean())
    summary = result.summary
    assert summary["interval"]["unit"] == "pair"
    assert summary["interval"]["level"] == 0.9
    assert (summary["n_prompts"], summary["curve"][0]["n_groups"]) == (8, 4)
    unpaired = run("tuned", "base", "resid_post", 3, n_boot=500, seed=4, level=0.9)
    assert unpaired.summary["interval"]["unit"] == "prompt"


def test_progress_and_cancelling_pass_through(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    partial: list[np.ndarray] = []
    result = run(
        "tuned",
        "base",
        "resid_post",
        3,
        on_progress=lambda done, total: seen.append((done, total)),
        on_partial=lambda so_far: partial.append(so_far.copy()),
    )
    assert seen[-1] == (8, 8)
    assert [int(np.isfinite(p).sum()) for p in partial] == [done for done, _ in seen]
    np.testing.assert_array_equal(partial[-1], result.kl)
    with pytest.raises(JobError, match="cancelled after 0 of 8"):
        run("tuned", "base", "resid_post", 3, should_stop=lambda: True)


def test_prompts_that_do_not_belong_to_the_engine_are_refused(run: Run) -> None:
    with pytest.raises(PatchError, match=r"same prompts.*8 rows.*Given: 2 rows"):
        run("tuned", "base", "resid_post", 3, prompts=pl.DataFrame({"id": ["a", "b"]}))


def test_positions_and_vocabularies_may_differ_between_the_models(
    pair: dict[str, LoadedModel], token_ids: list[list[int]], places: list[int]
) -> None:
    """A source with another vocabulary, longer prompts and its own positions, against a plain hook."""
    other = from_parts(tiny("llama", seed=5, num_hidden_layers=LAYERS, vocab_size=140), name="other")
    rng = np.random.default_rng(7)
    source_ids = [rng.integers(100, 140, size=rng.integers(8, 20)).tolist() for _ in token_ids]
    source_places = [len(ids) - 2 for ids in source_ids]
    site = Site("resid_post", 1)
    source = PatchEngine(other, source_ids, source_places)
    condition = Condition(
        target="tuned", source="other", component="resid_post", layer=1, kind="literal", read_at="decision"
    )
    result = run_condition(
        condition,
        PatchEngine(pair["tuned"], token_ids, places, read_at="decision"),
        pl.DataFrame({"id": [str(i) for i in range(len(token_ids))]}),
        source=source.activations(site).numpy(),
    )
    lm, expected = pair["tuned"], []
    plain = next_tokens(lm, token_ids, [len(ids) - 1 for ids in token_ids])
    for ids, place, s_ids, s_place in zip(token_ids, places, source_ids, source_places, strict=True):
        with torch.inference_mode():
            states = other.model(input_ids=torch.tensor([s_ids]), output_hidden_states=True).hidden_states

        def put(
            _module: Any, _args: Any, out: torch.Tensor, place: int = place, v: Any = states[2][0, s_place]
        ) -> Any:
            out = out.clone()
            out[0, place] = v  # state 2 leaves block 1
            return out

        handle = lm.taps.layers[1].block.register_forward_hook(put)
        expected.append(next_tokens(lm, [ids], [len(ids) - 1])[0])
        handle.remove()
    np.testing.assert_allclose(result.kl[0], kl(np.stack(expected), plain), rtol=1e-4, atol=1e-6)
    assert result.kl[0].min() > 1e-4
