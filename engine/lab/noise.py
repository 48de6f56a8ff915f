"""The measured rounding noise of models: what an experiment keeps of it, and what a finding must exceed.

Two equally good computations of one prompt differ by rounding, by a KL of about 1e-3 nats in a trained
bfloat16 model. No smaller effect can be told from none, however narrow its interval: the interval is over
prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.lab.experiment import Lab

KEPT = ("kl", "kl_worst", "log_prob", "relative", "n_prompts")
"""What a result keeps of a model's noise; the numbers of every site stay with the store."""

MARGIN = 2.0
"""Times the measured mean KL: of six prompts it is rarely less than half of what it would be of all."""

Noise = Mapping[str, Mapping[str, Any]]
"""Model -> its measured noise; a model that nothing was measured of is missing."""


def measured(lab: Lab, models: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The noise of the models whose outputs an experiment compares, as plain JSON types, `KEPT` of each."""
    found = {model: lab.rounding(model) for model in dict.fromkeys(models)}
    return {m: {key: noise[key] for key in KEPT if key in noise} for m, noise in found.items() if noise}


def kl_mean(one: Mapping[str, Any]) -> float:
    """Nats: a model's mean KL between two equally good computations."""
    return max(float(one["kl"]), 0.0)


def kl_floor(noise: Noise) -> float:
    """Nats that a mean KL must exceed to be told from rounding, for the noisiest model; 0 where not measured.

    An effect that is nothing but rounding has the measured mean KL on average. That mean is of a handful of
    prompts, of which some are noisier than others: the floor is twice the mean, or the worst prompt's KL
    where that is more. With the mean alone, two copies of one model differ in half of all comparisons.
    """
    floors = (max(MARGIN * kl_mean(one), float(one.get("kl_worst", 0.0))) for one in noise.values())
    return max(floors, default=0.0)


def log_floor(noise: Noise) -> float:
    """Nats: what rounding does to a difference of two log-probabilities of one prompt.

    KL(p ‖ q) is ½ Σ p δ² up to third order in δ = log p − log q, so that a log-probability moves by √(2 KL);
    a difference of two independent ones by √2 times that, 2 √KL. A mean over n prompts moves less where
    rounding is independent from prompt to prompt, which its interval shows; that it is, is not relied upon.
    """
    return 2.0 * math.sqrt(max((kl_mean(one) for one in noise.values()), default=0.0))
