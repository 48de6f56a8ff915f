"""Checks that a loaded model and the code around it agree, measured on a handful of real prompts.

Each returns its worst deviation beside the limit it must stay under. They run at precompute, are kept
with the store and are shown on every page; identities of the residual stream and of the heads come
from `engine.model.check_identities`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from engine.capture import Activations, capture_batch, capture_unit
from engine.deltas import WeightDelta
from engine.errors import ModelError
from engine.intervene import SELF_LIMIT, SELF_LIMIT_HALF, PatchEngine
from engine.model import LoadedModel
from engine.positions import Positions
from engine.results import SelfCheck
from engine.sites import Site, record
from engine.steer import WeightShift

__all__ = [
    "check_capture",
    "check_logits",
    "check_self_patch",
    "check_stored",
    "check_weight_shift",
    "relative_deviation",
]

EPSILON = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Relative deviation allowed between two orders of the same sums: about 100 rounding units of each
dtype (2⁻²⁴, 2⁻⁸, 2⁻¹¹), which is what a dozen layers of differently blocked products accumulate to."""


def relative_deviation(a: np.ndarray, b: np.ndarray) -> float:
    """Largest |a − b| in a row over that row's norm per √width, the worst row."""
    scale = np.sqrt(np.mean(np.square(b, dtype=np.float64), axis=-1))
    return float(np.max(np.abs(a.astype(np.float64) - b).max(axis=-1) / np.maximum(scale, 1e-12)))


def check_capture(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> list[SelfCheck]:
    """Batched = single prompt, and right padding = left padding, at every site's last token."""
    last = Positions("decision", "one", tuple(np.array([len(ids) - 1]) for ids in token_ids), {})
    everything = ("resid", "attn_out", "mlp_out", "head_z")

    # not `capture_unit`: it never puts prompts of very different lengths together, so nothing would be padded
    batched = capture_batch(lm, token_ids, range(len(token_ids)), {"decision": last}, everything)["decision"]
    single = capture_unit(
        lm, token_ids, range(len(token_ids)), {"decision": last}, components=everything, batch_tokens=1
    )["decision"]
    left = _left_padded(lm, token_ids, everything)
    limit = EPSILON[lm.dtype]
    worst_single, at_single = _worst(batched, single)
    worst_left, at_left = _worst(batched, left)
    return [
        SelfCheck.of(
            "batched = single prompt", worst_single, limit, f"{len(token_ids)} prompts, worst at {at_single}"
        ),
        SelfCheck.of("left padding = right padding", worst_left, limit, f"worst at {at_left}"),
    ]


def check_logits(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> SelfCheck:
    """The patch engine's unpatched next-token log-probabilities = the model's own forward pass."""
    engine = PatchEngine(lm, token_ids, [len(ids) - 1 for ids in token_ids])
    ours = engine.log_probs().double().cpu()
    rows = []
    with lm.lock, torch.inference_mode():
        for ids in token_ids:
            logits = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device)).logits[0, -1]
            rows.append(torch.log_softmax(logits.float(), -1).double().cpu())
    worst = float((torch.stack(rows) - ours).abs().max())
    limit = 1e-4 if lm.dtype == torch.float32 else 0.25
    return SelfCheck.of(
        "logits = plain forward pass", worst, limit, f"{len(rows)} prompts, log-probabilities in nats"
    )


def check_self_patch(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> SelfCheck:
    """Patching an activation with itself must leave the next-token distribution alone."""
    engine = PatchEngine(lm, token_ids, [len(ids) - 1 for ids in token_ids])
    worst, where = 0.0, ""
    middle = lm.taps.n_layers // 2
    for component in ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z"):
        site = Site(component, middle)
        kl = float(np.abs(engine.sweep(site, engine.activations(site)[None], n_conditions=1).kl).max())
        if not kl < worst:
            worst, where = kl, str(site)
        if np.isnan(kl):
            break
    limit = SELF_LIMIT.get(lm.dtype, SELF_LIMIT_HALF)
    detail = f"nats, {len(token_ids)} prompts, worst at {where}"
    return SelfCheck.of("self-patch KL = 0", worst, limit, detail)


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


def check_stored(stored: Activations, recomputed: Activations, lm: LoadedModel, bfloat16: bool) -> SelfCheck:
    """Rows read back from the store = the same prompts run again.

    A bfloat16 store rounds by up to 2⁻⁸ of each value (8 significant bits), beside the dtype's own deviation.
    With nothing to compare the check does not pass.
    """
    if not stored:
        return SelfCheck.of("stored = recomputed", float("nan"), 0.0, "nothing was compared")
    worst, where = _worst(recomputed, stored, elementwise=bfloat16)
    limit = EPSILON[lm.dtype] + (2.0**-8 if bfloat16 else 0.0)
    return SelfCheck.of("stored = recomputed", worst, limit, f"random sample of prompts, worst at {where}")


def _left_padded(
    lm: LoadedModel, token_ids: Sequence[Sequence[int]], components: Sequence[str]
) -> Activations:
    longest = max(map(len, token_ids))
    ids = torch.zeros(len(token_ids), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(token_ids):
        ids[row, longest - len(prompt) :] = torch.as_tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    select = record(lm.taps, components, None, select=lambda hidden: hidden[:, -1].float())
    with select as recording, torch.inference_mode():
        lm.taps.decoder(
            input_ids=ids.to(lm.device),
            attention_mask=mask.to(lm.device),
            position_ids=places.to(lm.device),
            use_cache=False,
        )
    return {key: value.cpu().numpy() for key, value in recording.items()}


def _worst(a: Activations, b: Activations, elementwise: bool = False) -> tuple[float, str]:
    worst, where = 0.0, "—"
    for key, value in b.items():
        deviation = _elementwise(a[key], value) if elementwise else relative_deviation(a[key], value)
        if np.isnan(deviation):
            return deviation, f"{key[0]} {key[1]}"
        if deviation >= worst:
            worst, where = deviation, f"{key[0]} {key[1]}"
    return worst, where


def _elementwise(a: np.ndarray, b: np.ndarray) -> float:
    """Largest |a − b| over the larger of |b| and its row's root mean square."""
    scale = np.sqrt(np.mean(np.square(b, dtype=np.float64), axis=-1, keepdims=True))
    return float((np.abs(a - b) / np.maximum(np.abs(b), np.maximum(scale, 1e-12))).max())
