"""Checks that a loaded model and the code around it agree, measured on a handful of real prompts.

Each returns its worst deviation beside the limit it must stay under. A limit is a multiple of the model's
own rounding noise, measured on the same prompts (`engine.passes.rounding`); a deviation is the relative L2 of
a row, which a few massive dimensions don't dominate, or the KL of the next token. They run at precompute, are
kept with the store and are shown on every page; identities of the residual stream and of the heads come
from `engine.models.loading.check_identities`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.errors import ModelError
from engine.models.check import SelfCheck
from engine.models.loading import LoadedModel
from engine.models.sites import Site, record
from engine.passes.batching import sides
from engine.passes.capture import Activations, capture_batch
from engine.passes.patch_engine import SELF_LIMIT, PatchEngine
from engine.passes.rounding import (
    COMPONENTS,
    LAST,
    MULTIPLE,
    Noise,
    divergence,
    kl_limit,
    last_tokens,
    relative_rows,
)
from engine.weights.deltas import WeightDelta
from engine.weights.steer import WeightShift

__all__ = [
    "AFFECTS",
    "check_begins",
    "check_capture",
    "check_engine",
    "check_later_tokens",
    "check_self_patch",
    "check_stored",
    "check_weight_shift",
    "worst_site",
]

AFFECTS = {
    "prompts begin once": "everything",
    "later tokens change nothing": "everything",
    "batched = single prompt": "everything read from stored activations",
    "left padding = right padding": "generated answers and behaviour",
    "patch engine = plain forward pass": "all live patching: patches, ranks, heads, steering, behaviour",
    "logits = plain forward pass": "all live patching: patches, ranks, heads, steering, behaviour",
    "self-patch KL = 0": "all live patching: patches, ranks, heads, steering, behaviour",
    "stored = recomputed": "everything read from stored activations",
    "steering at α = 0 is a no-op": "weight steering",
    "subspace scores: stored = plain forward pass": "subspace scores",
    "subspace scores: label = merged weights": "subspace scores",
}
"""Which numbers a failed check puts in doubt."""
BFLOAT16 = 2.0**-8
"""Relative L2 that keeping a row in bfloat16 adds at most (8 significant bits)."""


def check_capture(lm: LoadedModel, token_ids: Sequence[Sequence[int]], noise: Noise) -> list[SelfCheck]:
    """Batched = single prompt, and right padding = left padding, at every site's last token.

    Args:
        noise: measured on these prompts, here and below.
    """
    last = {LAST: last_tokens(token_ids)}

    # `capture_unit` never puts prompts of very different lengths together: nothing would be padded
    apart = sides([len(ids) for ids in token_ids], lm.taps.rotary_switch)
    batched = [capture_batch(lm, token_ids, part, last, COMPONENTS)[LAST] for part in apart]
    left = [_left_padded(lm, [token_ids[prompt] for prompt in part]) for part in apart]
    back = np.argsort(np.concatenate(apart))
    right, other = (
        {key: np.concatenate([part[key] for part in parts])[back] for key in parts[0]}
        for parts in (batched, left)
    )
    return [
        _within("batched = single prompt", {LAST: right}, {LAST: noise.plain}, noise),
        _within("left padding = right padding", {LAST: other}, {LAST: right}, noise),
    ]


def check_later_tokens(noise: Noise) -> SelfCheck:
    """Tokens behind a prompt change none of its own: the model is causal, at the positions it is given."""
    name = "later tokens change nothing"
    if not noise.later:
        return SelfCheck.of(name, float("nan"), 0.0, "no prompt could be lengthened")
    return worst_site(name, {key: (value, MULTIPLE * noise.sites[key]) for key, value in noise.later.items()})


def check_engine(engine: PatchEngine, noise: Noise) -> list[SelfCheck]:
    """The patch engine's unpatched run = the model's own forward pass: every site, and the next token.

    Args:
        engine: on the prompts of `noise`, at their last tokens.
    """
    blocks = range(engine.taps.n_layers)
    stream = {("resid", layer): engine.activations(Site("resid_pre", layer)).numpy() for layer in blocks}
    own: Activations = stream | {
        (component, layer): engine.activations(Site(component, layer)).numpy()
        for component in ("attn_out", "mlp_out", "head_z")
        for layer in blocks
        if component != "head_z" or engine.taps.layers[layer].has_heads
    }
    plain = {LAST: {key: noise.plain[key] for key in own}}
    rows = zip(noise.log_probs, engine.log_probs().double(), strict=True)
    kl = float(np.max([divergence(one, other) for one, other in rows]))
    told = f"KL in nats, worst of {engine.n_prompts} prompts; rounding makes {noise.kl.max():.2g}"
    return [
        _within("patch engine = plain forward pass", {LAST: own}, plain, noise),
        SelfCheck.of("logits = plain forward pass", kl, kl_limit(float(noise.kl.max())), told),
    ]


def check_self_patch(engine: PatchEngine) -> SelfCheck:
    """Patching an activation with itself must leave the next-token distribution alone, in any dtype.

    The run with the own activation goes through the same products as the one it is compared with, so that
    rounding is the same in both. First, middle and last block, every component.
    """
    worst, where, blocks = 0.0, "", engine.taps.n_layers
    for layer in sorted({0, blocks // 2, blocks - 1}):
        for component in ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"):
            site = Site(component, layer)
            if component == "head_z" and not engine.taps.layers[layer].has_heads:
                continue
            kl = float(np.abs(engine.sweep(site, engine.activations(site)[None], n_conditions=1).kl).max())
            if not kl < worst:
                worst, where = kl, str(site)
            if np.isnan(kl):
                break
    detail = f"nats, {engine.n_prompts} prompts, worst at {where}"
    return SelfCheck.of("self-patch KL = 0", worst, SELF_LIMIT, detail)


def check_begins(tokenizer: Any, token_ids: Sequence[Sequence[int]]) -> list[SelfCheck]:
    """No prompt begins with the tokenizer's beginning of text twice; empty where it has none."""
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        return []
    twice = sum(list(ids[:2]) == [bos, bos] for ids in token_ids)
    detail = f"of {len(token_ids)} prompts, those that begin with {tokenizer.bos_token!r} more than once"
    return [SelfCheck.of("prompts begin once", twice, 0.0, detail)]


def check_weight_shift(
    lm: LoadedModel, deltas: Iterable[WeightDelta], token_ids: Sequence[Sequence[int]]
) -> list[SelfCheck]:
    """Steering the weights by 0·ΔW changes no bit, and nothing of ΔW stays behind after steering by it.

    None where a changed tensor can't be steered at all (`WeightShift` says which).
    """
    try:
        shift = WeightShift(lm, deltas)
    except ModelError:
        return []
    worst = 0.0
    for ids in token_ids:
        before = _plain_logits(lm, ids)
        with shift.at(0.0):
            during = _plain_logits(lm, ids)
        with shift.at(1.0):
            _plain_logits(lm, ids)
        for again in (during, _plain_logits(lm, ids)):
            worst = max(worst, 0.0 if torch.equal(again, before) else float((again - before).abs().max()))
    detail = f"logits of {len(token_ids)} prompts, {lm.name} with 0·ΔW and after 1·ΔW"
    return [SelfCheck.of("steering at α = 0 is a no-op", worst, 0.0, detail)]


def _plain_logits(lm: LoadedModel, ids: Sequence[int]) -> torch.Tensor:
    with lm.lock, torch.inference_mode():
        logits: torch.Tensor = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device)).logits[0]
    return logits


def check_stored(
    stored: Mapping[str, Activations], recomputed: Mapping[str, Activations], noise: Noise, bfloat16: bool
) -> SelfCheck:
    """Rows read back from the store = the same prompts run again.

    Args:
        stored, recomputed: per position. With nothing to compare the check does not pass.
        noise: at these positions. bfloat16: the store keeps rows rounded to it.
    """
    return _within("stored = recomputed", recomputed, stored, noise, BFLOAT16 if bfloat16 else 0.0)


def _left_padded(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> Activations:
    longest = max(map(len, token_ids))
    ids = torch.zeros(len(token_ids), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(token_ids):
        ids[row, longest - len(prompt) :] = torch.as_tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    select = record(lm.taps, COMPONENTS, None, select=lambda hidden: hidden[:, -1].float())
    with select as recording, torch.inference_mode():
        lm.taps.decoder(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            position_ids=places.to(lm.device),
            use_cache=False,
        )
    return {key: value.cpu().numpy() for key, value in recording.items()}


def _within(
    name: str,
    found: Mapping[str, Activations],
    expected: Mapping[str, Activations],
    noise: Noise,
    more: float = 0.0,
) -> SelfCheck:
    """Whether rows agree within the noise of their site, and `more` beside it."""
    measured = {}
    for position, sites in expected.items():
        for (component, layer), rows in sites.items():
            apart = float(relative_rows(found[position][component, layer], rows).max())
            measured[position, component, layer] = (
                apart,
                MULTIPLE * noise.sites[position, component, layer] + more,
            )
    return worst_site(name, measured)


def worst_site(
    name: str, measured: Mapping[tuple[str, str, int], tuple[float, float]], told: str = ""
) -> SelfCheck:
    """The check of many sites: the one that comes closest to its limit, or is furthest beyond it; NaN first.

    Args:
        measured: (position, component, layer) -> (relative L2 of a row, its limit).
        told: more for the detail.
    """
    if not measured:
        return SelfCheck.of(name, float("nan"), 0.0, "nothing was compared")
    key = max(measured, key=lambda site: _rank(*measured[site]))
    value, limit = measured[key]
    position, component, layer = key
    where = f"{component} {layer}" + ("" if position == LAST else f", {position}")
    detail = f"relative L2 of a row, worst at {where}; limit {MULTIPLE:g} × rounding noise{told}"
    return SelfCheck.of(name, value, limit, detail)


def _rank(value: float, limit: float) -> float:
    return float("inf") if np.isnan(value) else value / max(limit, float(np.finfo(np.float64).tiny))
