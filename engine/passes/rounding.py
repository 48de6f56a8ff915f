"""How much a model's own rounding moves its numbers, measured on the spot.

Two orders of the same sums round differently: another batch shape, another kernel, another device. A model
of 30 blocks in bfloat16 amplifies that to a percent of its stream and to thousandths of a nat, one of 8
blocks in float32 to nothing. So no fixed limit tells a fault from rounding. Here the model runs a prompt
twice in one shape, the second time with the stream entering every block moved by up to half a unit in the
last place (`nudged`), and once more with further tokens behind the prompt, which no earlier token can see
but every matrix product has another shape for. On a trained model of 30 blocks the first comes to 0.9 to 2
times what left or right padding does, at every site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.errors import PatchbayError
from engine.models.loading import LoadedModel
from engine.passes.capture import Activations, capture_batch
from engine.prompts.positions import Positions

__all__ = [
    "MULTIPLE",
    "Noise",
    "Rounding",
    "kl_limit",
    "measure_noise",
    "next_token_noise",
    "nudged",
    "relative_rows",
]

MULTIPLE = 5.0
"""A deviation within this many times the noise is rounding: healthy models of all families, dtypes and depths
stay below half of it, planted faults are far beyond (tests/engine/test_planted_faults.py)."""
KL_FLOOR = 1e-6
"""Nats below which nothing is asked of any model: float32 logits tell a KL to some 1e-7."""
DRAWS = 4
"""Nudged rows of a prompt: where a router or a saturated head tips over, fewer can miss it."""
LIVE_UNIT = 2.0**-9
"""The same of a model that runs on codes: its layers round what comes in, to bfloat16 or to 8 bits, and so do
not see less. Half of bfloat16's spacing at 1."""
SUFFIX = 7
"""Tokens that are put behind a prompt to give its products another shape."""
COMPONENTS = ("resid", "attn_out", "mlp_out", "head_z")
LAST = "last token"

Sites = dict[tuple[str, str, int], float]
"""(position, component, block or state) -> relative L2 of a row, the worst over prompts."""


@dataclass(frozen=True)
class Rounding:
    """The noise of a model as it is kept with a store and shown beside its numbers.

    Attributes:
        kl: mean over prompts of the KL in nats between next-token distributions of two equally good
            computations of a prompt: an effect below it can't be told from none.
        kl_worst: of the worst prompt. log_prob: largest |Δ log p| over prompts and vocabulary.
        relative: worst relative L2 of a row over all sites.
        sites: component -> that of the last token, for each block (each state for resid).
        n_prompts: measured on. detail: how, in a sentence.
    """

    kl: float
    kl_worst: float
    log_prob: float
    relative: float
    sites: dict[str, list[float]]
    n_prompts: int
    detail: str

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Rounding:
        """Reads `to_json` back; raises PatchbayError when a field is missing or unknown."""
        expected = set(Rounding.__dataclass_fields__)
        if set(data) != expected:
            raise PatchbayError(
                "A record of rounding noise is malformed.", expected=sorted(expected), given=sorted(data)
            )
        return Rounding(**data)


@dataclass(frozen=True)
class Noise:
    """What `measure_noise` found for n prompts.

    Attributes:
        kl, log_prob: per prompt and draw, as in `Rounding`.
        sites: what checks compare with; "last token" is among the positions.
        later: how far further tokens behind the prompt moved its rows; in a causal model, rounding too.
        plain: rows of the last token of every prompt, each run alone. log_probs: (n, V) float64 behind it.
    """

    kl: np.ndarray
    log_prob: np.ndarray
    sites: Sites
    later: Sites
    plain: Activations
    log_probs: Tensor

    def summary(self, dtype: torch.dtype, *, live: bool = False) -> Rounding:
        """The record for a store; `live`: of a model that runs on codes."""
        last = {key: value for key, value in self.sites.items() if key[0] == LAST}
        by_component: dict[str, list[float]] = {}
        for (_, component, _), value in sorted(last.items(), key=lambda item: item[0]):
            by_component.setdefault(component, []).append(value)
        name = str(dtype).removeprefix("torch.")
        unit = "half a unit in the last place" + (" of bfloat16" if live else "")
        detail = f"{name}; prompts run again, the stream moved by {unit} at every block"
        return Rounding(
            kl=float(self.kl.mean()),
            kl_worst=float(self.kl.max()),
            log_prob=float(self.log_prob.max()),
            relative=max(last.values()),
            sites=by_component,
            n_prompts=len(self.kl),
            detail=detail,
        )


def relative_rows(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """‖found − expected‖ / ‖expected‖ of every row, (rows,) float64; 0 where both are zero."""
    exact = expected.astype(np.float64)
    apart = np.linalg.norm(found - exact, axis=-1)
    size = np.linalg.norm(exact, axis=-1)
    ratio = np.divide(apart, size, out=np.full_like(apart, np.inf), where=size > 0)
    return np.where(apart == 0, 0.0, ratio)


def kl_limit(worst: float) -> float:
    """The largest KL that rounding explains, from a measured one: a KL grows with the square of its cause."""
    return KL_FLOOR + MULTIPLE**2 * worst


@contextmanager
def nudged(lm: LoadedModel, seeds: Sequence[int | None]) -> Iterator[None]:
    """Inside the `with` block the stream entering every block is multiplied by 1 + u·ξ, ξ uniform in (−1, 1).

    u is half the dtype's spacing at 1, the most that rounding once moves a number, and at least `LIVE_UNIT`
    in a model that runs on codes. Hold the model's lock.

    Args:
        seeds: of each row of the batch that is run; None leaves a row as it is.
    """
    generators = [None if seed is None else torch.Generator().manual_seed(seed) for seed in seeds]

    def move(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        unit, one = torch.finfo(value.dtype).eps / 2, torch.full(value.shape[1:], 0.5)
        unit = max(unit, LIVE_UNIT) if lm.live else unit
        draws = [one if g is None else torch.rand(one.shape, generator=g) for g in generators]
        moves = torch.stack(draws).to(value.device)
        return (value.float() * (1 + unit * (2 * moves - 1))).to(value.dtype)

    def output(_module: nn.Module, _args: Any, found: Any) -> Any:
        return (move(found[0]), *found[1:]) if isinstance(found, tuple) and found else move(found)

    parts = (lm.taps.embed, *(layer.block for layer in lm.taps.layers))
    handles = [module.register_forward_hook(output) for module in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure_noise(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    positions: Mapping[str, Positions] | None = None,
    draws: int = DRAWS,
    advance: Callable[[], object] = lambda: None,
) -> Noise:
    """Measures the rounding noise of a model on some prompts, each run without padding.

    The rows of one batch are one prompt: as it is, and nudged. So all of them go through the same shapes.

    Args:
        token_ids: a handful of prompts.
        positions: whose rows are wanted beside the last token's; indexed as `token_ids`.
        draws: nudged runs of each.
        advance: called after each prompt.
    """
    wanted = {LAST: last_tokens(token_ids), **(positions or {})}
    sites: Sites = {}
    later: Sites = {}
    kl, log_prob = np.zeros((2, len(token_ids), draws))
    rows: list[Activations] = []
    log_probs: list[Tensor] = []
    for index in range(len(token_ids)):
        with nudged(lm, [None, *range(draws * index, draws * (index + 1))]):
            plain, *others = _run(lm, token_ids[index], index, wanted, 1 + draws)
        rows.append(plain[LAST])
        log_probs.append(_log_probs(lm, plain))
        moved: Sites = {}
        for draw, found in enumerate(others):
            again = _log_probs(lm, found)
            kl[index, draw] = divergence(again, log_probs[-1])
            log_prob[index, draw] = float((again - log_probs[-1]).abs().max())
            _merge(moved, _apart(found, plain))
        _merge(sites, moved)
        longer = _suffixed(lm, token_ids[index])
        if longer is not None:
            shaped = _apart(_run(lm, longer, index, wanted)[0], plain)
            _merge(later, shaped)
            # more than that is no rounding: the check of later tokens says so, and no limit grows by it
            _merge(sites, {key: min(value, MULTIPLE * moved[key]) for key, value in shaped.items()})
        advance()
    stacked = {key: np.concatenate([found[key] for found in rows]) for key in rows[0]}
    return Noise(kl, log_prob, sites, later, stacked, torch.stack(log_probs))


def next_token_noise(lm: LoadedModel, ids: Sequence[int]) -> float:
    """KL in nats that rounding makes of one prompt's next-token distribution, the worst of some draws."""
    return float(measure_noise(lm, [list(ids)], draws=2 * DRAWS).kl.max())


def last_tokens(token_ids: Sequence[Sequence[int]]) -> Positions:
    """The last token of every prompt."""
    return Positions("decision", "one", tuple(np.array([len(ids) - 1]) for ids in token_ids), {})


def divergence(p: Tensor, q: Tensor) -> float:
    """KL(p ‖ q) in nats from float64 log-probabilities (V,), not below 0."""
    kl = float((p.exp() * (p - q)).sum())
    return 0.0 if kl < 0 else kl


def _run(
    lm: LoadedModel, ids: Sequence[int], index: int, wanted: Mapping[str, Positions], times: int = 1
) -> list[dict[str, Activations]]:
    """Activations at the positions of prompt `index`, of as many equal rows of one batch."""
    places = {name: place.of([index] * times) for name, place in wanted.items()}
    found = capture_batch(lm, [ids] * times, range(times), places, COMPONENTS)
    return [
        {
            name: {key: value.reshape(times, -1, *value.shape[1:])[row] for key, value in sites.items()}
            for name, sites in found.items()
        }
        for row in range(times)
    ]


def _log_probs(lm: LoadedModel, found: Mapping[str, Activations]) -> Tensor:
    """Float64 log-probabilities (V,) after the prompt, from its last token's last state."""
    state = torch.from_numpy(found[LAST]["resid", lm.taps.n_layers]).to(lm.dtype)
    with torch.inference_mode():
        normed = lm.taps.final_norm(state.to(_device(lm.taps.final_norm, lm.device)))
        logits: Tensor = lm.taps.logits(normed.to(lm.taps.unembedding.weight.device))
    return logits[0].double().cpu().log_softmax(-1)


def _device(module: nn.Module, otherwise: torch.device) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), otherwise)


def _apart(found: Mapping[str, Activations], plain: Mapping[str, Activations]) -> Sites:
    """How far the rows of every site were moved."""
    return {
        (position, component, layer): float(relative_rows(found[position][component, layer], expected).max())
        for position, rows in plain.items()
        for (component, layer), expected in rows.items()
    }


def _merge(sites: Sites, others: Sites) -> None:
    for key, value in others.items():
        sites[key] = max(sites.get(key, 0.0), value)


def _suffixed(lm: LoadedModel, ids: Sequence[int]) -> list[int] | None:
    """The prompt with a few of its own tokens behind it; None where the model's positions end before."""
    longer = [*ids, *(list(ids) * SUFFIX)[:SUFFIX]]
    switch = lm.taps.rotary_switch
    crosses = switch is not None and len(ids) <= switch < len(longer)
    return None if crosses or len(longer) > lm.max_length else longer
