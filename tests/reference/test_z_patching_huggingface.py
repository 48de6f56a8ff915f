"""Every kind of Z-patch against Hugging Face's own `generate` with one plain hook; transport against POT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from tiny_models import random_tokens, tiny
from torch import Tensor

from engine.models.loading import LoadedModel, from_parts
from engine.passes.generate import stop_tokens
from engine.z_patching import vectors as z_vectors
from engine.z_patching.bases import Bases
from engine.z_patching.run import every_answer
from engine.z_patching.spec import Patch, ZPatching
from engine.z_patching.vectors import Put, puts, token_states, transported

pytestmark = pytest.mark.reference

LENGTHS, SOURCE_LENGTHS, NEW, K = (9, 12, 7), (6, 11, 8), 6, 6
TIE = 1e-4
"""Two tokens whose logits are this close may swap: sums run in another order."""
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"site": "resid_pre"},
    {"mode": "shift"},
    {"scope": "all"},
    {"mode": "shift", "scope": "all"},
    {"vectors": "transport"},
)


def experiment(**changes: Any) -> ZPatching:
    given = {"model": "tiny", "target_language": "en", "source_language": "zh", "layers": (1, 2), "ks": (K,)}
    return ZPatching(**{**given, "draws": 2, "max_new_tokens": NEW, **changes})


def projector(basis: Tensor, part: str) -> Tensor:
    """The (d, d) matrix, as the definition writes it."""
    inside = basis @ basis.T
    return inside if part == "Z" else torch.eye(len(inside)) - inside


@contextmanager
def plain_hook(
    lm: LoadedModel, run: ZPatching, patch: Patch, put: Any, length: int, basis: Any
) -> Iterator[None]:
    """h_t ← (1 − P) h_t + P z_t ("replace"), h_t + P δ ("shift"), for one prompt; put is (d,) or (T, d)."""
    block = lm.taps.layers[patch.layer].block
    p = torch.eye(lm.taps.d) if basis is None else projector(basis, patch.part)

    def changed(own: Tensor) -> Tensor:
        last = own.shape[1] if run.scope == "all" else length
        new = own.clone()
        here = own[:, :last]
        new[:, :last] = here + put @ p if run.mode == "shift" else here - here @ p + put @ p
        return new

    def before(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def after(_module: Any, _args: Any, output: Any) -> Any:
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    if run.site == "resid_pre":
        handle = block.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = block.register_forward_hook(after)
    yield
    handle.remove()


def theirs(lm: LoadedModel, ids: list[int]) -> tuple[list[int], list[float]]:
    """Tokens up to the stop, and how far the best stood from the second; the whole sequence at every step."""
    stop = sorted(stop_tokens(lm))
    out = lm.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=False,
        use_cache=False,
        max_new_tokens=NEW,
        eos_token_id=stop,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    made = out.sequences[0, len(ids) :].tolist()
    gaps = [float(top[0] - top[1]) for top in (row[0].float().topk(2).values for row in out.logits)]
    return made[: next((i for i, token in enumerate(made) if token in stop), len(made))], gaps


CASES = (
    [("qwen3", one) for one in SETTINGS]
    + [("gemma2", one) for one in SETTINGS[::2]]
    + [("gpt2", SETTINGS[4])]
)
"""Gemma 2 has post-norms and windows, GPT-2 learnt positions and blocks without rotary embeddings."""


@pytest.mark.parametrize(("family", "changes"), CASES, ids=str)
def test_tokens_are_those_of_a_plain_hook(family: str, changes: dict[str, Any]) -> None:
    lm, run = from_parts(tiny(family), name="tiny"), experiment(**changes)
    ids = [random_tokens(1, length, seed=i)[0].tolist() for i, length in enumerate(LENGTHS)]
    other = [random_tokens(1, length, seed=9 + i)[0].tolist() for i, length in enumerate(SOURCE_LENGTHS)]
    own, source = (token_states(lm, side, run.site, run.layers) for side in (ids, other))
    given = {layer: puts(run, own[layer], source[layer], (1, 2, 0)) for layer in run.layers}
    # Random weights move a logit little: vectors are made larger, the same for both ways.
    given = {layer: {name: louder(put) for name, put in one.items()} for layer, one in given.items()}
    bases = some_bases(lm.taps.d, run)
    patches = run.patches()
    found: list[list[list[int]]] = [[] for _ in range(len(patches) + 1)]
    for _, made in every_answer(run, lm, ids, given, bases):
        for condition, tokens in enumerate(made.tokens):
            found[condition] += tokens
    ties = altered = 0
    for number, patch in enumerate(patches):
        if patch.draw is not None or (patch.layer == 2 and patch.source != "pair"):
            continue
        put = given[patch.layer][patch.source]
        for prompt, tokens in enumerate(ids):
            vector = put.means[prompt] if put.tokens is None else put.tokens[prompt]
            with plain_hook(lm, run, patch, vector, len(tokens), bases.of(patch)):
                wanted, gaps = theirs(lm, tokens)
            mine = found[number + 1][prompt]
            altered += wanted != found[0][prompt]
            if mine != wanted:
                pairs = enumerate(zip(mine, wanted, strict=False))
                apart = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(wanted)))
                assert gaps[apart] < TIE, (
                    f"{patch}: parted at token {apart}, where the gap is {gaps[apart]:.2g}"
                )
                ties += 1
    assert ties <= 1, "more near-ties than random logits have"
    assert altered >= 4, "many patches must change the text, or nothing is tested"


def louder(put: Put) -> Put:
    tokens = None if put.tokens is None else [4 * one for one in put.tokens]
    return Put(4 * put.means, tokens)


def some_bases(d: int, run: ZPatching) -> Bases:
    def basis(seed: int) -> Tensor:
        noise = torch.randn(d, K, generator=torch.Generator().manual_seed(seed))
        return torch.linalg.qr(noise)[0]

    z = {(layer, K): basis(layer) for layer in run.layers}
    return Bases(z, {(layer, K, draw): basis(10 + layer + draw) for layer in run.layers for draw in range(2)})


def test_transport_is_pots_and_an_assignment_between_equal_lengths() -> None:
    rng = np.random.default_rng(0)
    source, own = rng.standard_normal((6, 5)), rng.standard_normal((6, 5))
    cost = ((source[:, None] - own[None]) ** 2).sum(-1)
    rows, columns = linear_sum_assignment(cost)  # uniform marginals of equal size: a permutation is optimal
    wanted = np.empty_like(own)
    wanted[columns] = source[rows]
    np.testing.assert_allclose(transported(source, own), wanted, atol=1e-9)
    short = rng.standard_normal((4, 5))
    cost = ((short[:, None] - own[None]) ** 2).sum(-1)
    plan = ot.emd(np.full(4, 1 / 4), np.full(6, 1 / 6), cost)
    loop = np.stack([sum(plan[s, t] * short[s] for s in range(4)) * 6 for t in range(6)])
    np.testing.assert_allclose(transported(short, own), loop, atol=1e-9)


def test_transport_between_long_prompts_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    source = rng.standard_normal((8, 6)) * 3
    own = source[rng.permutation(8)] + 0.01 * rng.standard_normal((8, 6))
    exact = transported(source, own)
    monkeypatch.setattr(z_vectors, "EXACT_CELLS", 1)
    # Far-apart tokens: entropy of 0.01 of the largest cost leaves 1e-2 of a state.
    assert np.abs(transported(source, own) - exact).max() < 0.05
    np.testing.assert_allclose(exact, source[np.argmin(((own[:, None] - source) ** 2).sum(-1), axis=1)])
