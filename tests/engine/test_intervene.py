"""The patch engine's promises besides its numbers: batches, callbacks, memory, errors, leaving no trace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny, tiny_config
from transformers import AutoModelForCausalLM

from engine.errors import JobError, PatchError, SiteError
from engine.models.loading import LoadedModel, from_parts
from engine.models.sites import Site
from engine.passes import patch_engine as intervene
from engine.passes.packed import capture_pack
from engine.passes.patch_engine import JobCancelled, PatchEngine
from engine.passes.resume import own_values, resume

LENGTHS = (9, 14, 5, 12, 14, 7)
POSITIONS = (6, 13, 2, 4, 9, 6)
CONDITIONS = 7
SITES = [Site("resid_post", 0), Site("attn_out", 1), Site("head_z", 1, (0, 3)), Site("resid_post", 2)]


def prompts() -> list[list[int]]:
    return [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]


def noise(own: torch.Tensor, conditions: int = CONDITIONS) -> np.ndarray[Any, Any]:
    drawn = torch.randn((conditions, *own.shape), generator=torch.Generator().manual_seed(5))
    return (own + drawn * own.std()).numpy()


def close(left: Any, right: Any) -> None:
    # float32 through three blocks.
    np.testing.assert_allclose(left, right, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def lm() -> LoadedModel:
    return from_parts(tiny("qwen3"))


def fingerprint(model: torch.nn.Module) -> dict[str, Any]:
    """Everything of a model that a patch run could leave changed."""
    return {
        "config": {
            name: id(m.__dict__["config"]) for name, m in model.named_modules() if "config" in m.__dict__
        },
        "attention": model.config._attn_implementation,  # type: ignore[union-attr]
        "forwards": [name for name, m in model.named_modules() if "forward" in m.__dict__],
        "hooks": [
            name for name, m in model.named_modules() if len(m._forward_hooks) + len(m._forward_pre_hooks) > 0
        ],
        "weights": {name: float(p.double().sum()) for name, p in model.named_parameters()},
        "training": [m.training for m in model.modules()],
    }


@pytest.mark.parametrize("site", SITES, ids=str)
@pytest.mark.parametrize("read_at", ["patched", "decision"])
def test_batch_size_does_not_matter(lm: LoadedModel, site: Site, read_at: Any) -> None:
    results = []
    for batch_tokens in (2, 11, 40, 5000):
        engine = PatchEngine(lm, prompts(), POSITIONS, read_at=read_at, batch_tokens=batch_tokens)
        vectors = noise(engine.activations(site))
        results.append(engine.sweep(site, vectors, n_conditions=CONDITIONS, top_k=3))
    for other in results[1:]:
        # float32: other shapes of the same products.
        np.testing.assert_allclose(other.kl, results[0].kl, rtol=0, atol=1e-5)
        close(other.top_log_probs, results[0].top_log_probs)
        np.testing.assert_array_equal(other.unpatched_top_ids, results[0].unpatched_top_ids)
    assert results[0].kl.mean() > 1e-2


def test_callable_gives_what_the_array_gives(lm: LoadedModel) -> None:
    site = Site("mlp_out", 1)
    engine = PatchEngine(lm, prompts(), POSITIONS, batch_tokens=16)
    vectors = noise(engine.activations(site))
    asked: list[list[int]] = []

    def values(indices: Sequence[int]) -> np.ndarray[Any, Any]:
        asked.append(list(indices))
        return vectors[:, list(indices)]

    from_array = engine.sweep(site, vectors, n_conditions=CONDITIONS)
    from_callable = engine.sweep(site, values, n_conditions=CONDITIONS)
    np.testing.assert_array_equal(from_array.kl, from_callable.kl)
    assert sorted(p for block in asked for p in block) == list(range(len(LENGTHS))), "each prompt asked once"
    assert len(asked) > 1, "never all at once when the batch is small"


def test_own_activation_changes_nothing_and_other_conditions_do(lm: LoadedModel) -> None:
    engine = PatchEngine(lm, prompts(), POSITIONS)
    for site in SITES:
        own = engine.activations(site)
        vectors = np.concatenate([own.numpy()[None], noise(own, 2)])
        found = engine.sweep(site, vectors, n_conditions=3)
        assert np.abs(found.kl[0]).max() <= 1e-6
        assert found.self_kl.max() <= 1e-6
        assert found.kl[1:].mean() > 1e-3
        again = engine.sweep(site, vectors, n_conditions=3)
        np.testing.assert_array_equal(again.self_kl, found.self_kl)


def test_half_precision_reference_takes_the_patched_path() -> None:
    model = tiny("qwen3").to(torch.bfloat16)
    engine = PatchEngine(from_parts(model), prompts(), POSITIONS)
    site = Site("resid_post", 0)
    own = engine.activations(site)
    found = engine.sweep(site, np.stack([own.numpy()] * 5), n_conditions=5)
    # The same rows in one product round alike: without a reference on the same path this is some 1e-4 nats.
    assert np.abs(found.kl).max() <= 1e-6
    assert found.self_kl.max() == 0
    assert 0 <= found.path_kl.max() <= 1e-3


def test_both_directions_and_top_tokens_follow_the_definition(lm: LoadedModel) -> None:
    site = Site("resid_pre", 1)
    engine = PatchEngine(lm, prompts(), POSITIONS)
    vectors = noise(engine.activations(site), 2)
    full = engine.sweep(site, vectors, n_conditions=2, top_k=10_000)
    assert full.top_ids is not None
    assert full.top_log_probs is not None
    patched = torch.empty(2, len(LENGTHS), lm.taps.vocab, dtype=torch.float64)
    patched.scatter_(-1, torch.tensor(full.top_ids), torch.tensor(full.top_log_probs).double())
    plain = engine.log_probs().double()
    forward = (patched.exp() * (patched - plain)).sum(-1)
    backward = (plain.exp() * (plain - patched)).sum(-1)
    np.testing.assert_allclose(full.kl, forward.numpy(), atol=1e-5)
    reverse = engine.sweep(site, vectors, n_conditions=2, reverse_kl=True, top_k=4)
    assert reverse.reverse_kl
    np.testing.assert_allclose(reverse.kl, backward.numpy(), atol=1e-5)
    assert np.abs(full.kl - reverse.kl).max() > 1e-3, "the directions differ here"
    expected = patched.topk(4, dim=-1)
    np.testing.assert_array_equal(reverse.top_ids, expected.indices.numpy())
    close(reverse.unpatched_top_log_probs, plain.topk(4).values.numpy())
    np.testing.assert_array_equal(reverse.unpatched_top_ids, plain.topk(4).indices.numpy())


def test_progress_and_cancellation(lm: LoadedModel) -> None:
    site = Site("resid_post", 0)
    engine = PatchEngine(lm, prompts(), POSITIONS, batch_tokens=8)
    vectors = noise(engine.activations(site))
    seen: list[tuple[int, int]] = []
    engine.sweep(site, vectors, n_conditions=CONDITIONS, on_progress=lambda *at: seen.append(at))
    total = CONDITIONS * len(LENGTHS)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen}), "strictly growing"
    calls = 0

    def stop_at_third() -> bool:
        nonlocal calls
        calls += 1
        return calls == 3

    before = fingerprint(lm.model)
    with pytest.raises(JobCancelled, match=f"cancelled after .* of {total} patched runs") as caught:
        engine.sweep(site, vectors, n_conditions=CONDITIONS, should_stop=stop_at_third)
    assert isinstance(caught.value, JobError)
    assert calls == 3
    assert fingerprint(lm.model) == before
    assert not lm.lock.locked()


def test_out_of_memory_halves_the_batch(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("resid_post", 0)
    engine = PatchEngine(lm, prompts(), POSITIONS, batch_tokens=64)
    vectors = noise(engine.activations(site))
    expected = engine.sweep(site, vectors, n_conditions=CONDITIONS)
    assert expected.halvings == 0
    monkeypatch.setattr(intervene, "resume", _fails_above(9, torch.OutOfMemoryError("no room")))
    found = engine.sweep(site, vectors, n_conditions=CONDITIONS)
    # 48 rows at once, then 24, then 12, which is one prompt's 7 conditions and its reference.
    assert (found.halvings, found.batch_tokens) == (2, 12)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=0, atol=1e-5)
    cpu = RuntimeError(
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    )
    monkeypatch.setattr(intervene, "resume", _fails_above(0, cpu))
    with pytest.raises(PatchError, match="Not even one patched run") as caught:
        engine.sweep(site, vectors, n_conditions=CONDITIONS)
    assert "smaller dtype" in str(caught.value)
    assert not lm.lock.locked()


def _fails_above(rows: int, error: Exception) -> Callable[..., Any]:
    def fails(*args: Any) -> Any:
        block = args[4]
        if len(block.members) * block.variants * block.tail > rows:
            raise error
        return resume(*args)

    return fails


def test_other_errors_are_not_mistaken_for_memory(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PatchEngine(lm, prompts(), POSITIONS)
    monkeypatch.setattr(intervene, "resume", _fails_above(0, RuntimeError("mat1 and mat2 shapes")))
    with pytest.raises(RuntimeError, match="mat1"):
        engine.sweep(Site("resid_post", 0), noise(engine.activations(Site("resid_post", 0))), n_conditions=7)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2"])
def test_model_is_as_before_after_an_error_inside_it(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = from_parts(tiny(family))
    engine = PatchEngine(lm, prompts(), POSITIONS)
    own = {site: engine.activations(site) for site in (Site("attn_out", 1), Site("head_z", 0))}
    before = fingerprint(lm.model)
    logits = lm.model(input_ids=random_tokens(1, 8)).logits
    for site, values in own.items():
        with monkeypatch.context() as patch:
            patch.setattr(lm.taps.layers[1].mlp, "forward", _broken)
            with pytest.raises(ZeroDivisionError):
                engine.sweep(site, noise(values), n_conditions=CONDITIONS)
        assert fingerprint(lm.model) == before
        engine.sweep(site, noise(values), n_conditions=CONDITIONS)
    assert fingerprint(lm.model) == before
    torch.testing.assert_close(lm.model(input_ids=random_tokens(1, 8)).logits, logits, rtol=0, atol=0)


def _broken(*_args: Any, **_kwargs: Any) -> None:
    raise ZeroDivisionError


def test_two_threads_and_a_shared_config_keep_their_results() -> None:
    config = tiny_config("llama")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(from_parts(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")))
    site, ids = Site("resid_post", 0), prompts()
    engines = [PatchEngine(lm, ids, POSITIONS, batch_tokens=8) for lm in models]
    jobs = [
        (engine, noise(engine.activations(site), 20 + i)) for i, engine in enumerate((*engines, engines[0]))
    ]
    alone = [engine.sweep(site, vectors, n_conditions=len(vectors)).kl for engine, vectors in jobs]
    together: list[Any] = [None] * len(jobs)
    plain = models[1].model(input_ids=random_tokens(2, 9)).logits
    disturbed: list[float] = []

    def work(slot: int) -> None:
        engine, vectors = jobs[slot]
        together[slot] = engine.sweep(site, vectors, n_conditions=len(vectors)).kl

    threads = [threading.Thread(target=work, args=(slot,)) for slot in (0, 2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        # The other model shares the config object of the one that is being patched.
        disturbed.append(float((models[1].model(input_ids=random_tokens(2, 9)).logits - plain).abs().max()))
    for thread in threads:
        thread.join()
    assert max(disturbed) == 0
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[2], alone[2])


def test_dropped_prompts_are_captured_again(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site("resid_post", 1)
    monkeypatch.setattr(
        intervene, "group_prompts", lambda lengths, *_rest: [[p] for p in range(len(lengths))]
    )
    roomy = PatchEngine(lm, prompts(), POSITIONS)
    vectors = noise(roomy.activations(site))
    expected = roomy.sweep(site, vectors, n_conditions=CONDITIONS)
    assert len(roomy._packs) == len(LENGTHS)
    monkeypatch.setattr(intervene, "MEMORY_SHARE", 0.0)
    tight = PatchEngine(lm, prompts(), POSITIONS)
    found = tight.sweep(site, vectors, n_conditions=CONDITIONS)
    assert len(tight._packs) == 1
    np.testing.assert_array_equal(found.kl, expected.kl)


def test_what_comes_after_the_read_token_does_not_matter(lm: LoadedModel) -> None:
    site = Site("mlp_out", 0)
    ids = prompts()
    changed = [row[: position + 1] + [7] * 5 for row, position in zip(ids, POSITIONS, strict=True)]
    engines = [PatchEngine(lm, rows, POSITIONS) for rows in (ids, changed)]
    vectors = noise(engines[0].activations(site))
    kls = [engine.sweep(site, vectors, n_conditions=CONDITIONS).kl for engine in engines]
    np.testing.assert_array_equal(kls[0], kls[1])


@pytest.mark.parametrize(
    ("ids", "positions", "message"),
    [
        ([], [], "at least one prompt"),
        ([[3, 4]], [0, 1], "1 prompts, 2 positions"),
        ([[3, 4]], [2], "prompt 0 is not in the prompt. Expected: 0 to 1. Given: 2"),
        ([[3, 4], []], [0, 0], "prompt 1 is not in the prompt. Expected: a prompt with at least one token"),
        ([[3, 4]], [-1], "Given: -1"),
    ],
)
def test_unusable_prompts_are_refused(lm: LoadedModel, ids: Any, positions: Any, message: str) -> None:
    with pytest.raises(PatchError, match=message):
        PatchEngine(lm, ids, positions)


def test_unusable_requests_are_refused(lm: LoadedModel) -> None:
    engine = PatchEngine(lm, prompts(), POSITIONS)
    n, d = len(LENGTHS), lm.taps.d
    right = np.zeros((2, n, d), dtype=np.float32)

    def sweep(site: Site, values: Any, n_conditions: int = 2, **kwargs: Any) -> None:
        engine.sweep(site, values, n_conditions=n_conditions, **kwargs)

    with pytest.raises(SiteError, match=r"Layer 3 is out of range\. Expected: 0 to 2"):
        sweep(Site("resid_post", 3), right)
    with pytest.raises(SiteError, match="Head 4 is out of range"):
        engine.activations(Site("head_z", 0, (4,)))
    with pytest.raises(
        PatchError, match=r"resid_post@1 have the wrong shape.*= \(2, 6, 32\)\. Given: \(2, 6, 31\)"
    ):
        sweep(Site("resid_post", 1), right[..., 1:])
    with pytest.raises(PatchError, match=r"head_z@1:0,2 .*= \(2, 6, 32\)"):
        sweep(Site("head_z", 1, (0, 2)), np.zeros((2, n, 64), dtype=np.float32))
    with pytest.raises(PatchError, match=r"Given: \(1, 6, 32\)"):
        sweep(Site("resid_post", 1), lambda rows: right[:1, list(rows)])
    with pytest.raises(PatchError, match="at least one condition"):
        sweep(Site("resid_post", 1), right[:0], 0)
    right[1, 2, 3] = np.nan
    with pytest.raises(PatchError, match="not finite"):
        sweep(Site("resid_post", 1), right)
    with pytest.raises(PatchError, match="patched or decision"):
        PatchEngine(lm, prompts(), POSITIONS, read_at="last")  # type: ignore[arg-type]


def test_head_out_is_refused_behind_a_post_norm() -> None:
    engine = PatchEngine(from_parts(tiny("olmo2")), prompts(), POSITIONS)
    with pytest.raises(SiteError, match="head_out does not exist here"):
        engine.activations(Site("head_out", 0))


def test_a_packed_run_that_disagrees_with_the_model_is_refused(
    lm: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(taps: Any, modules: Any, ids: Any, positions: Any, reads: Any) -> Any:
        return capture_pack(taps, modules, [[3, *rest[1:]] for rest in ids], positions, reads)

    monkeypatch.setattr(intervene, "capture_pack", forgetful)
    with pytest.raises(PatchError, match="differs from its own forward pass"):
        PatchEngine(lm, prompts(), POSITIONS)


def test_a_sweep_whose_self_check_fails_is_refused(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PatchEngine(lm, prompts(), POSITIONS)
    site = Site("resid_post", 0)
    vectors = noise(engine.activations(site), 1)
    monkeypatch.setattr(intervene, "own_values", lambda *args: own_values(*args) * 1.1)
    with pytest.raises(
        PatchError,
        match=r"resumed at resid_post@0 of the model differs from its own forward pass.*at prompt \d",
    ):
        engine.sweep(site, vectors, n_conditions=1)


def test_a_self_check_that_is_not_a_number_is_refused(lm: LoadedModel) -> None:
    engine = PatchEngine(lm, prompts(), POSITIONS)
    kl = np.zeros(len(LENGTHS))
    kl[3] = np.nan
    with pytest.raises(PatchError, match=r"Given: nan at prompt 3"):
        engine._check_self(Site("resid_post", 0), kl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_that_round_apart_are_no_self_patch(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In half precision the own activation goes through the batch once more, and must come out alike."""
    engine = PatchEngine(from_parts(tiny("qwen3").to(dtype)), prompts(), POSITIONS)
    site = Site("resid_post", 0)
    vectors = noise(engine.activations(site), 1)
    real = intervene.resume

    def uneven(*args: Any) -> Any:
        final, direct = real(*args)
        final = final.clone()
        final[:, -1] *= 1.05
        return final, direct

    monkeypatch.setattr(intervene, "resume", uneven)
    with pytest.raises(PatchError, match=r"own activation back at resid_post@0 changes its output"):
        engine.sweep(site, vectors, n_conditions=1)
