"""Weight steering at all amplitudes together, against plain models whose weights are W + αΔW."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny

from engine.errors import PatchError
from engine.models.loading import LoadedModel, from_parts
from engine.passes import branches
from engine.passes.branches import branches_fit, laid_out, tree_of
from engine.passes.generate import stop_tokens
from engine.weight_steering.together import Asked, Found, together
from engine.weights import steer_rows
from engine.weights.deltas import WeightDelta, weight_deltas
from engine.weights.steer import WeightShift
from engine.weights.steer_rows import RowShifts, by_rows

ALPHAS = (-1.0, 0.5, 2.0)
IDS = [random_tokens(1, n, seed=n)[0].tolist() for n in (5, 9, 9, 12)]
CONTINUATIONS = [[[7], [8, 9, 10], [8, 9, 11], [8, 12]], [], [[5, 6, 7, 8, 9]], [[3], [4]]]
MOST = 6
FAMILIES = ("qwen3", "llama", "gemma2", "gpt2", "opt", "olmo2", "cohere", "bloom")


def changed(base: Any, adapter: bool, seed: int = 1) -> Any:
    """A copy with rank-2 changes of two matrices of the last two blocks, or with every tensor changed."""
    tuned, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if adapter:
                late = any(f".{block}." in name for block in (1, 2))
                if parameter.ndim != 2 or not late or "norm" in name:
                    continue
                noise = noise[:, :2] @ noise[:2] / 2
            parameter.add_((0.4 if adapter else 0.15) * parameter.abs().mean() * noise)
    return tuned


def written(base: Any, deltas: list[WeightDelta], alpha: float) -> Any:
    """A copy of a model with W + αΔW."""
    model, known = copy.deepcopy(base), {delta.name: delta for delta in deltas}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in known:
                parameter.add_(alpha * torch.from_numpy(known[name].matrix()).to(parameter.dtype))
    return model


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


def answer(model: Any, ids: list[int], ends: frozenset[int]) -> list[int]:
    made: list[int] = []
    while len(made) < MOST:
        token = int(log_probs(model, [*ids, *made])[-1].argmax())
        if token in ends:
            break
        made.append(token)
    return made


def asked(answered: tuple[bool, ...] = (True, False, True, True)) -> Asked:
    text = np.array([True, True, False, True])
    return Asked(IDS, text, CONTINUATIONS, np.array(answered), None, MOST)


def check(found: Found, number: int, steered: Any, plain: Any, lm: LoadedModel, within: float) -> None:
    """Every number of one condition against one forward pass for each prompt and continuation."""
    for prompt, ids in enumerate(IDS):
        own, base = log_probs(steered, ids), log_probs(plain, ids)
        if asked().text[prompt]:
            kl = float((own[-1].exp() * (own[-1] - base[-1])).sum())
            assert found.kl[number, prompt] == pytest.approx(kl, abs=within)
            nll = -sum(float(own[t, token]) for t, token in enumerate(ids[1:]))
            assert found.nll[number, prompt] == pytest.approx(nll, abs=10 * within)
        else:
            assert np.isnan([found.kl[number, prompt], found.nll[number, prompt]]).all()
        for k, more in enumerate(CONTINUATIONS[prompt]):
            whole = log_probs(steered, [*ids, *more])
            wanted = [float(whole[len(ids) - 1 + t, token]) for t, token in enumerate(more)]
            np.testing.assert_allclose(found.log_probs[number][prompt][k], wanted, atol=within)
        tokens = found.answers.tokens[number][prompt]
        assert tokens == (answer(steered, ids, stop_tokens(lm)) if asked().answered[prompt] else [])


@pytest.mark.parametrize(
    ("family", "adapter"), [*((f, True) for f in FAMILIES), *((f, False) for f in FAMILIES if f != "opt")]
)
def test_numbers_are_those_of_written_weights(family: str, adapter: bool) -> None:
    plain = tiny(family)
    deltas = [list(weight_deltas(plain, changed(plain, adapter, seed))) for seed in (1, 2)]
    lm = from_parts(plain)
    shifts = [WeightShift(lm, each) for each in deltas]
    assert by_rows(lm, shifts)
    conditions = [(n, alpha) for n in (0, 1) for alpha in ALPHAS]
    found = together(lm, [(shifts[n], alpha) for n, alpha in conditions], asked())
    check(found, 0, plain, plain, lm, 1e-4)
    for number, (n, alpha) in enumerate(conditions, start=1):
        check(found, number, written(plain, deltas[n], alpha), plain, lm, 1e-4)
    assert np.nanmin(found.kl[1:]) > 1e-3


@pytest.mark.parametrize("merged", [0, 10**9])
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_dense_difference_by_either_product(
    family: str, merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steer_rows, "MERGED", merged)
    plain = tiny(family)
    deltas = list(weight_deltas(plain, changed(plain, adapter=False)))
    lm = from_parts(plain)
    shift = WeightShift(lm, deltas)
    found = together(lm, [(shift, alpha) for alpha in ALPHAS], asked())
    for number, alpha in enumerate(ALPHAS, start=1):
        check(found, number, written(plain, deltas, alpha), plain, lm, 1e-4)
    assert all("forward" not in module.__dict__ for module in plain.modules())


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", "phi3"])
def test_trees_give_what_continuations_behind_copies_give(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny(family)
    lm = from_parts(plain)
    assert branches_fit(lm)
    shift = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter=True))))
    trees = together(lm, [(shift, 1.0)], asked())
    monkeypatch.setattr("engine.weight_steering.together.branches_fit", lambda lm: False)
    copies = together(lm, [(shift, 1.0)], asked())
    np.testing.assert_allclose(trees.nll, copies.nll, atol=1e-4)
    assert trees.answers == copies.answers
    for one, two in zip(trees.log_probs, copies.log_probs, strict=True):
        for own, other in zip(one, two, strict=True):
            for left, right in zip(own, other, strict=True):
                np.testing.assert_allclose(left, right, atol=1e-4)


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_of_a_difference_is_exactly_the_unsteered_row(dtype: torch.dtype, adapter: bool) -> None:
    plain = tiny("qwen3").to(dtype)
    lm = from_parts(plain)
    shift = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter))))
    found = together(lm, [(shift, 0.0), (shift, 1.0)], asked())
    for name in ("kl", "nll"):
        np.testing.assert_array_equal(getattr(found, name)[1], getattr(found, name)[0])
    assert np.nanmax(np.abs(found.kl[0])) == 0.0
    assert found.answers.tokens[1] == found.answers.tokens[0]
    for own, other in zip(found.log_probs[1], found.log_probs[0], strict=True):
        for left, right in zip(own, other, strict=True):
            np.testing.assert_array_equal(left, right)
    assert np.nanmin(found.kl[2]) > 0.0


def test_half_precision_stays_within_its_rounding() -> None:
    plain = tiny("qwen3").to(torch.bfloat16)
    deltas = list(weight_deltas(plain, changed(plain, adapter=True)))
    lm = from_parts(plain)
    found = together(lm, [(WeightShift(lm, deltas), alpha) for alpha in ALPHAS], asked())
    wide = copy.deepcopy(plain).float()
    before = np.array([float(-log_probs(wide, ids)[range(len(ids) - 1), ids[1:]].sum()) for ids in IDS])
    for number, alpha in enumerate(ALPHAS, start=1):
        steered = written(wide, deltas, alpha)
        nll = np.array([float(-log_probs(steered, ids)[range(len(ids) - 1), ids[1:]].sum()) for ids in IDS])
        kept = asked().text
        apart = np.abs(found.nll[number] - nll)[kept]
        assert apart.max() < 0.2 * np.abs(nll - before)[kept].max()


def test_blocks_below_the_first_change_read_each_prompt_once() -> None:
    plain = tiny("qwen3")
    lm = from_parts(plain)
    shift = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter=True))))
    assert RowShifts(lm, [(shift, 1.0)]).first_block == 1
    rows: dict[int, list[int]] = {0: [], 2: []}
    handles = [
        lm.taps.layers[block].mlp.register_forward_hook(lambda _m, _a, out, own=own: own.append(len(out)))
        for block, own in rows.items()
    ]
    nothing = asked(answered=(False,) * 4)
    together(lm, [(shift, alpha) for alpha in ALPHAS], nothing)
    for handle in handles:
        handle.remove()
    assert sum(rows[0]) == len(IDS)
    assert sum(rows[2]) == len(IDS) * (1 + len(ALPHAS))  # what is shared stops below it
    full = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter=False))))
    assert RowShifts(lm, [(full, 1.0)]).first_block == 0


@pytest.mark.parametrize("most", [80, 30])
def test_what_does_not_fit_is_run_in_parts(most: int) -> None:
    """By a budget of tokens, and by a decoder without memory for more."""
    plain = tiny("qwen3")
    lm = from_parts(plain)
    shift = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter=True))))
    conditions = [(shift, alpha) for alpha in (-2.0, *ALPHAS)]
    whole = together(lm, conditions, asked())
    seen: list[int] = []

    def full(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs["input_ids"].numel())
        if seen[-1] > most:
            raise torch.OutOfMemoryError("no room")

    parts = together(lm, conditions, asked(), batch_tokens=most)
    handle = lm.taps.decoder.register_forward_pre_hook(full, with_kwargs=True)
    scarce = together(lm, conditions, asked())
    handle.remove()
    assert max(seen) > most
    for found in (parts, scarce):
        np.testing.assert_allclose(found.kl, whole.kl, atol=1e-5)
        np.testing.assert_allclose(found.nll, whole.nll, atol=1e-4)
        assert found.answers == whole.answers
        for one, two in zip(found.log_probs, whole.log_probs, strict=True):
            for own, other in zip(one, two, strict=True):
                for left, right in zip(own, other, strict=True):
                    np.testing.assert_allclose(left, right, atol=1e-4)


def test_not_even_one_steered_prompt_is_said() -> None:
    plain = tiny("qwen3")
    lm = from_parts(plain)
    shift = WeightShift(lm, list(weight_deltas(plain, changed(plain, adapter=True))))

    def full(_module: Any, _args: Any, _kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    handle = lm.taps.decoder.register_forward_pre_hook(full, with_kwargs=True)
    with pytest.raises(PatchError, match="One steered prompt does not fit"):
        together(lm, [(shift, 1.0), (shift, 2.0)], asked())
    handle.remove()


def test_a_tree_holds_each_beginning_once() -> None:
    tree = tree_of([[1], [2, 3, 4], [2, 3, 5, 6], [2, 7], [3, 3]])
    assert tree.tokens == (2, 3, 5, 3)
    assert tree.parents == (-1, 0, 1, -1)
    assert tree.ends == ((-1,), (-1, 0, 1), (-1, 0, 1, 2), (-1, 0), (-1, 3))
    made = laid_out([tree, tree_of([[9]])], torch.device("cpu"))
    assert made is not None
    assert made.depths.tolist() == [[0, 1, 2, 0], [0, 0, 0, 0]]
    assert made.seen[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
    assert branches.laid_out([tree_of([[9]])], torch.device("cpu")) is None


def test_rows_that_modules_cannot_tell_apart_are_not_taken_together() -> None:
    for family in ("lfm2", "qwen3_moe"):
        plain = tiny(family)
        lm = from_parts(plain)
        deltas = [
            d for d in weight_deltas(plain, changed(plain, False)) if not re.search("expert|conv", d.name)
        ]
        assert by_rows(lm, [WeightShift(lm, deltas)]) is False
    attention = [d for d in deltas if "o_proj" in d.name]
    assert by_rows(lm, [WeightShift(lm, attention)]) is True
