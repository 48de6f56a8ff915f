"""The products over the whole vocabulary: means, spreads, and what flips and resamples reach, in blocks.

The vocabulary is gone through once, `BLOCK` tokens at a time: of G unit sums (G, d) against U (V, d), then of
the draws (B, G) against that block (G, BLOCK), of which only the largest of each draw is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from engine.difference_lens.numbers import resamples
from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.passes.live import plain_weight

__all__ = ["Draws", "Place", "Readout", "differences"]

BLOCK = 4096
TINY = 1e-6
"""Of the mean: a spread below it is float32's rounding."""
RANDOM = 200
"""Random directions."""


@dataclass(frozen=True)
class Readout:
    """A model's unembedding, float32 (V, d), less its mean row, times its logit scale; and its final norm.

    What all logits share moves no probability, so logits are told from their mean over the vocabulary.
    A soft-cap comes after them and is left out, as are biases, which two models' difference has not.

    Attributes:
        norm: the final norm with float32 weights. gain: (d,) its factors. reach: (V,) length of each row
            times the gain: what a unit vector before the norm's gain can do to a logit.
    """

    rows: Tensor
    norm: nn.Module
    gain: Tensor
    reach: Float[np.ndarray, " v"]

    @classmethod
    def of(cls, lm: LoadedModel) -> Readout:
        """Of a loaded model, on its device."""
        rows = plain_weight(lm.taps.unembedding).to(lm.device, torch.float32).clone()
        rows -= rows.mean(dim=0)
        rows *= lm.taps.logit_scale
        gain = lm.taps.gain(lm.taps.final_norm).to(lm.device)
        reach = torch.cat([(part * gain).norm(dim=1) for part in rows.split(BLOCK)])
        norm = copy.deepcopy(lm.taps.final_norm).to(lm.device, torch.float32)
        return cls(rows, norm, gain, reach.cpu().double().numpy())

    def logits(self, rows: Tensor) -> Iterator[Tensor]:
        """Centred logits of normed rows (r, d), `BLOCK` tokens at a time, (r, ≤ BLOCK)."""
        for part in self.rows.split(BLOCK):
            yield rows @ part.T

    def largest(self, directions: Tensor) -> Float[np.ndarray, " r"]:
        """The largest |logit| of each of some directions (r, d) before the gain."""
        found = [part.abs().amax(dim=1) for part in self.logits(directions * self.gain)]
        return torch.stack(found).amax(dim=0).cpu().double().numpy()

    def random(self, seed: int) -> Float[np.ndarray, " r"]:
        """The largest |logit| of random directions of length 1; it is in proportion to their length."""
        drawn = torch.randn(RANDOM, len(self.gain), generator=torch.Generator().manual_seed(seed))
        return self.largest(torch.nn.functional.normalize(drawn, dim=1).to(self.gain.device))


def differences(
    readout: Readout, target: Float[np.ndarray, "n d"], source: Float[np.ndarray, "n d"], reading: str
) -> Float[np.ndarray, "n d"]:
    """What the unembedding reads of each prompt's difference, float64 (n, d).

    norm(h_target) − norm(h_source), the difference of the two logit lenses; or linear, the derivative of the
    norm at h_source applied to h_target − h_source.
    """
    ends = [torch.as_tensor(v, dtype=torch.float32, device=readout.gain.device) for v in (target, source)]
    if reading == "linear":
        found = torch.autograd.functional.jvp(readout.norm, ends[1], ends[0] - ends[1])[1]
    else:
        with torch.no_grad():
            found = readout.norm(ends[0]).double() - readout.norm(ends[1]).double()
    values: np.ndarray = found.double().cpu().numpy()
    if not np.isfinite(values).all():
        raise PatchError(
            "The difference of the streams is not finite.",
            expected="finite activations of both models",
            given=f"{int((~np.isfinite(values)).sum())} values that are not",
        )
    return values


@dataclass(frozen=True)
class Draws:
    """Flips and resamples, the same at every place of the same units: float32 (B, G)."""

    flips: Tensor
    counts: Tensor

    @classmethod
    def of(cls, flips: np.ndarray, counts: np.ndarray, device: Any) -> Draws:
        """On a device."""
        return cls(torch.as_tensor(flips, device=device), torch.as_tensor(counts, device=device))

    def fewer(self, units: Int[np.ndarray, " k"], seed: int) -> Draws:
        """Of some of the units: their flips, and resamples of their number."""
        if len(units) == self.flips.shape[1]:
            return self
        counts = resamples(len(units), len(self.counts), seed)
        chosen = torch.as_tensor(units, device=self.flips.device)
        return Draws(self.flips[:, chosen], torch.as_tensor(counts, device=self.flips.device))


@dataclass(frozen=True)
class Place:
    """One block and position.

    Attributes:
        mean, se: (V,) of each token's logit over prompts, float32. share, low, high: (B,) as
            `numbers.limits` takes them.
    """

    mean: Float[np.ndarray, " v"]
    se: Float[np.ndarray, " v"]
    share: Float[np.ndarray, " b"]
    low: Float[np.ndarray, " b"]
    high: Float[np.ndarray, " b"]

    @classmethod
    def of(cls, readout: Readout, units: Float[np.ndarray, "g d"], prompts: int, draws: Draws) -> Place:
        """From the sums of each unit (G, d) of `prompts` rows of `differences`."""
        rows = torch.as_tensor(units, dtype=torch.float32, device=readout.gain.device)
        return cls.of_columns(readout.logits(rows), len(units), prompts, draws)

    @classmethod
    def of_columns(cls, blocks: Iterable[Float[Tensor, "g k"]], count: int, rows: int, draws: Draws) -> Place:
        """From the sums of `count` units over `rows` rows, some tokens at a time."""
        means: list[Tensor] = []
        errors: list[Tensor] = []
        zeros = torch.zeros(len(draws.flips), device=draws.flips.device)
        ends = [zeros, zeros, zeros]
        for logits in blocks:
            mean = logits.mean(dim=0)
            left = logits - mean
            sd = left.square().sum(dim=0).div(count - 1).sqrt()
            sd = torch.maximum(sd, TINY * mean.abs()).clamp_min(1e-30)
            means.append(mean * (count / rows))
            errors.append(sd * (count**0.5 / rows))
            length = logits.square().sum(dim=0).sqrt().clamp_min(1e-30)
            share = (draws.flips @ (logits / length)).abs().amax(dim=1)
            t = _resampled(draws.counts, left / sd)
            found = share, t.amin(dim=1), t.amax(dim=1)
            keep = torch.maximum, torch.minimum, torch.maximum
            ends = [pick(old, new) for pick, old, new in zip(keep, ends, found, strict=True)]
        over = (torch.cat(part).cpu().numpy() for part in (means, errors))
        return cls(*over, *(part.cpu().double().numpy() for part in ends))


def _resampled(counts: Tensor, left: Tensor) -> Tensor:
    """(M* − M) ÷ se* of each resample, (B, block); 0 where a resample has no spread.

    Args:
        left: (G, block), of mean 0 and standard deviation 1.
    """
    size = left.shape[0]
    mean = (counts @ left).div_(size)
    square = (counts @ left.square()).div_(size).sub_(mean.square()).div_(size - 1)
    t = mean * square.clamp_min(1e-30).rsqrt()
    return torch.where(square > TINY / size, t, torch.zeros_like(t))
