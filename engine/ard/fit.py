"""Which dimensions carry what two languages share? Relevance of single dimensions by kernel two-sample tests.

A Gaussian kernel with one lengthscale per dimension, exp(−½ Σ_j (x_j − y_j)²/ℓ_j²), is fitted by gradient
descent on the maximum mean discrepancy between clouds of token activations (Gretton et al. 2012; automatic
relevance determination: MacKay 1994, Neal 1996). A small ℓ_j means that the objective needs dimension j.

The `paired` objective, the mean MMD² of a problem in two languages plus λ Σ 1/ℓ_j, has nothing that rewards a
finite ℓ: both terms vanish for ℓ → ∞. The `contrastive` one subtracts the MMD² between different problems of
one language, so that a dimension pays off which tells problems apart and languages not. It doesn't need
every such dimension: where a few tell all problems apart, the penalty drops the others. The order of the
lengthscales is therefore the finding, and a threshold on them a lower bound of how many matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from engine.errors import AnalysisError, JobError

Array = NDArray[np.float64]
Clouds = Sequence[Float[np.ndarray, "n d"]]
Objective = Literal["contrastive", "paired"]

COLLAPSED_EXPONENT = 0.05
"""Below this median exponent all kernel values are nearly 1 (above 0.95): the kernel sees one point."""
PLATEAU = 100
"""Steps without progress after which a run stops."""
PROGRESS = 1e-4
"""Progress is a fall of the objective by more than this share of its spread so far."""
NEGATIVES = 2
"""Other problems that each problem is told apart from, per language."""


@dataclass(frozen=True)
class ArdFit:
    """Fitted lengthscales at one layer.

    Attributes:
        log_lengthscales: (d,) natural logarithm of ℓ_j, in units of the pooled sd of dimension j.
        trace: (steps,) objective per step.
        same, different: mean MMD² of the same problem in two languages, and of different problems of one
            language (NaN with the paired objective), at the end.
        exponent: median of ½ Σ_j Δ_j²/ℓ_j² over pairs of tokens at the end.
        penalty, objective, steps, stopped: λ, which objective, steps run, "plateau" or "steps".
        center, scale: (d,) mean and pooled sd that the clouds were standardised with.
    """

    log_lengthscales: Array
    trace: Array
    same: float
    different: float
    exponent: float
    penalty: float
    objective: str
    steps: int
    stopped: str
    center: Array
    scale: Array

    @property
    def collapsed(self) -> bool:
        """Whether the lengthscales ran off: the kernel no longer tells any two tokens apart."""
        return self.exponent < COLLAPSED_EXPONENT

    @property
    def words(self) -> str:
        """What happened, with the reason where the run collapsed."""
        if not self.collapsed:
            return f"Stopped after {self.steps} steps ({self.stopped})."
        why = (
            "the paired objective rewards no finite lengthscale"
            if self.objective == "paired"
            else "λ outweighs what telling problems apart gains, or the languages differ in every dimension"
        )
        return f"Collapsed: every lengthscale grew until all tokens look alike; {why}."


def mmd2(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], log_lengthscales: Float[np.ndarray, " d"]
) -> float:
    """Unbiased MMD² of two clouds (Gretton et al. 2012, eq. 3); can be slightly negative. float64."""
    clouds = _Clouds.of([np.asarray(x), np.asarray(y)], torch.float64)
    logs = torch.as_tensor(np.asarray(log_lengthscales), dtype=torch.float64)
    with torch.no_grad():
        return sum(float(part.sum(logs)) for part in clouds.batches(_mmd2_terms([(0, 1)]), size=1))


Terms = dict[tuple[int, int], float]
"""Weight of the mean kernel between two clouds; of a cloud with itself, between its different tokens."""


def _mmd2_terms(pairs: Sequence[tuple[int, int]]) -> Terms:
    """The mean MMD² over pairs of clouds as a sum of mean kernels."""
    terms: Terms = {}
    for a, b in pairs:
        for key, weight in (((a, a), 1.0), ((b, b), 1.0), ((a, b), -2.0)):
            terms[key] = terms.get(key, 0.0) + weight / len(pairs)
    return terms


@dataclass(frozen=True)
class _Clouds:
    """Token clouds padded to one length: values (clouds, n, d), and how many rows of each are real."""

    values: Tensor
    counts: Tensor

    @classmethod
    def of(cls, clouds: Clouds, dtype: torch.dtype, device: str = "cpu") -> _Clouds:
        counts = torch.tensor([len(cloud) for cloud in clouds])
        values = torch.zeros(len(clouds), int(counts.max()), clouds[0].shape[1], dtype=dtype)
        for index, cloud in enumerate(clouds):
            values[index, : len(cloud)] = torch.as_tensor(cloud, dtype=dtype)
        return cls(values.to(device), counts.to(device))

    def batches(self, terms: Terms, size: int) -> _Batches:
        """The pairs of the terms, at most `size` at a time."""
        counts = self.counts.tolist()
        # alike ones need no padding
        keys = sorted(terms, key=lambda key: max(counts[key[0]], counts[key[1]]))
        parts = [keys[start : start + size] for start in range(0, len(keys), size)]
        return _Batches(self, [(part, [terms[key] for key in part]) for part in parts])

    def exponent(self, pairs: Sequence[tuple[int, int]], log_lengthscales: Tensor) -> float:
        """Median of ½ Σ_j Δ_j²/ℓ_j² over pairs of tokens of different clouds."""
        found = []
        with torch.no_grad():
            for pair in pairs:
                batch = _Batch.of(self, [pair], [1.0])
                found.append(batch.exponents(log_lengthscales)[batch.real])
        return float(torch.cat(found).median())


@dataclass(frozen=True)
class _Batch:
    """Pairs of clouds: x and y (pairs, n, d), which of their (pairs, n, n) entries are two different tokens,
    and what each of these adds to the weighted sum of mean kernels."""

    x: Tensor
    y: Tensor
    real: Tensor
    shares: Tensor

    @classmethod
    def of(cls, clouds: _Clouds, pairs: Sequence[tuple[int, int]], weights: Sequence[float]) -> _Batch:
        a, b = torch.tensor(pairs, device=clouds.counts.device).T
        longest = int(torch.maximum(clouds.counts[a].max(), clouds.counts[b].max()))
        tokens = torch.arange(longest, device=a.device)
        real = (tokens < clouds.counts[a, None])[:, :, None] & (tokens < clouds.counts[b, None])[:, None]
        real &= ~((a == b)[:, None, None] & (tokens[:, None] == tokens))
        x, y = clouds.values[a, :longest], clouds.values[b, :longest]
        share = x.new_tensor(weights) / real.sum(dim=(1, 2))
        return cls(x, y, real, real * share[:, None, None])

    @cached_property
    def squares(self) -> tuple[Tensor, Tensor]:
        """x² and y² (pairs, n, d)."""
        return self.x**2, self.y**2

    def exponents(self, log_lengthscales: Tensor) -> Tensor:
        """½ Σ_j Δ_j²/ℓ_j² through one product (pairs, n, n)."""
        scale = torch.exp(-log_lengthscales)
        x, y = self.x * scale, self.y * scale
        sizes = (x**2).sum(-1)[:, :, None] + (y**2).sum(-1)[:, None]
        return (0.5 * sizes - x @ y.transpose(1, 2)).clamp_min(0.0)

    def sum(self, log_lengthscales: Tensor) -> Tensor:
        """Weighted sum of mean kernels."""
        return (torch.exp(-self.exponents(log_lengthscales)) * self.shares).sum()

    def slope(self, log_lengthscales: Tensor) -> tuple[float, Tensor]:
        """The weighted sum, and its derivative by the logs of lengthscales (d,).

        By w_j = 1/ℓ_j², with K the weighted kernels, it is Σ K_ab (x_aj y_bj − ½ x_aj² − ½ y_bj²).
        """
        precisions = torch.exp(-2.0 * log_lengthscales)
        x2, y2 = self.squares
        sizes = (x2 @ precisions)[:, :, None] + (y2 @ precisions)[:, None]
        exponents = (0.5 * sizes - (self.x * precisions) @ self.y.transpose(1, 2)).clamp_min(0.0)
        kernels = torch.exp(-exponents) * self.shares
        both = (kernels @ self.y * self.x).sum(dim=(0, 1))
        alone = kernels.sum(2).flatten() @ x2.flatten(0, 1) + kernels.sum(1).flatten() @ y2.flatten(0, 1)
        return float(kernels.sum()), (alone - 2.0 * both) * precisions


class _Batches:
    """Pairs of clouds in batches, made anew at each turn; one that is all is kept.

    Holds size × (n² + n d) numbers at a time, never n × n × d.
    """

    def __init__(self, clouds: _Clouds, parts: list[tuple[list[tuple[int, int]], list[float]]]) -> None:
        self.clouds, self.parts = clouds, parts
        self.kept = [_Batch.of(clouds, *parts[0])] if len(parts) == 1 else None

    def __iter__(self) -> Iterator[_Batch]:
        return iter(self.kept or (_Batch.of(self.clouds, *part) for part in self.parts))


@dataclass(frozen=True)
class _Objective:
    """Which kernels an objective is made of.

    Every problem is as often the one as the other of two different ones, so that in the contrastive
    objective the kernels within clouds cancel: it is twice the mean kernel between different problems minus
    twice that between languages.
    """

    clouds: _Clouds
    same: list[tuple[int, int]]
    different: list[tuple[int, int]]
    penalty: float
    size: int
    center: Array
    scale: Array

    def batches(self) -> _Batches:
        """Its mean kernels but those that cancel."""
        terms = _mmd2_terms(self.same)
        for key, weight in _mmd2_terms(self.different).items():
            terms[key] = terms.get(key, 0.0) - weight
        terms = {key: weight for key, weight in terms.items() if abs(weight) > 1e-12}
        return self.clouds.batches(terms, self.size)

    def descend(self, log_lengthscales: Tensor, batches: _Batches) -> float:
        """The objective; its gradient becomes the lengthscales', a part at a time."""
        logs = log_lengthscales.detach()
        falls = self.penalty * torch.exp(-logs)
        value, slope = float(falls.sum()), -falls
        for batch in batches:
            part, change = batch.slope(logs)
            value += part
            slope += change
        log_lengthscales.grad = slope
        return value

    def mean_mmd2(self, pairs: Sequence[tuple[int, int]], log_lengthscales: Tensor) -> float:
        if not pairs:
            return float("nan")
        with torch.no_grad():
            batches = self.clouds.batches(_mmd2_terms(pairs), self.size)
            return sum(float(batch.sum(log_lengthscales)) for batch in batches)


def fit_ard(
    source: Clouds,
    target: Clouds,
    *,
    objective: Objective = "contrastive",
    penalty: float = 1e-2,
    start: Float[np.ndarray, " d"] | None = None,
    steps: int = 600,
    rate: float = 0.05,
    max_tokens: int = 400,
    batch_pairs: int = 16,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> ArdFit:
    """Fits one lengthscale per dimension with Adam on log ℓ.

    Args:
        source, target: per problem the token activations of the same problem in two languages, (n_i, d).
        objective: see the module. penalty: λ.
        start: (d,) log ℓ to begin with, e.g. `warm_start(energy)`; zeros without. Either way a common
            factor makes the median exponent 1.
        max_tokens: longer clouds are subsampled with the seed.
        batch_pairs: pairs of clouds in memory at a time; no (n, m, d) tensor is ever made.
        device: where the fit runs, in float32 ("cpu", "cuda:0").
        on_step: called with (step, objective). should_stop: asked each step; true raises JobError.

    Raises:
        AnalysisError: too few problems or tokens, different widths, values that are not finite.
    """
    check_clouds(source, target, objective, penalty)
    problem = _problem(source, target, objective, penalty, max_tokens, batch_pairs, seed, device)
    begin = np.zeros(source[0].shape[1]) if start is None else np.array(start)
    logs = torch.as_tensor(begin, dtype=torch.float32).to(device)
    logs += 0.5 * np.log(max(problem.clouds.exponent(problem.same, logs), 1e-12))
    trace, stopped = _descend(problem, logs.requires_grad_(True), steps, rate, on_step, should_stop)
    found = logs.detach()
    return ArdFit(
        log_lengthscales=found.double().cpu().numpy(),
        trace=np.array(trace),
        same=problem.mean_mmd2(problem.same, found),
        different=problem.mean_mmd2(problem.different, found),
        exponent=problem.clouds.exponent(problem.same, found),
        penalty=penalty,
        objective=objective,
        steps=len(trace),
        stopped=stopped,
        center=problem.center,
        scale=problem.scale,
    )


def _descend(
    problem: _Objective,
    logs: Tensor,
    steps: int,
    rate: float,
    on_step: Callable[[int, float], None] | None,
    should_stop: Callable[[], bool] | None,
) -> tuple[list[float], str]:
    """Adam until the steps are over or nothing improves; the trace, and which of the two."""
    optimiser, batches = torch.optim.Adam([logs], lr=rate), problem.batches()
    trace: list[float] = []
    best, since = np.inf, 0
    for step in range(steps):
        if should_stop is not None and should_stop():
            raise JobError(f"Cancelled after {step} of {steps} steps.")
        trace.append(problem.descend(logs, batches))
        optimiser.step()
        if on_step is not None:
            on_step(step, trace[-1])
        improved = trace[-1] < best - PROGRESS * (max(trace) - min(trace))
        best, since = (trace[-1], 0) if improved else (best, since + 1)
        if since >= PLATEAU:
            return trace, "plateau"
    return trace, "steps"


def warm_start(energy: Float[np.ndarray, " d"], epsilon: float = 1e-3) -> Array:
    """log ℓ_j = −log(e_j + ε), e_j the energy of dimension j in a subspace: its basis' row norm squared."""
    return -np.log(np.asarray(energy, dtype=np.float64) + epsilon)


def _problem(
    source: Clouds,
    target: Clouds,
    objective: Objective,
    penalty: float,
    max_tokens: int,
    size: int,
    seed: int,
    device: str = "cpu",
) -> _Objective:
    rng = np.random.default_rng(seed)
    clouds = [subsample(cloud, max_tokens, rng) for cloud in (*source, *target)]
    pooled = np.concatenate(clouds)
    mean, sd = pooled.mean(axis=0), pooled.std(axis=0, ddof=1)
    scale = np.where(sd > 0, sd, 1.0)
    standard = [(cloud - mean) / scale for cloud in clouds]
    same, different = paired_clouds(len(source))
    return _Objective(
        _Clouds.of(standard, torch.float32, device),
        same,
        different if objective == "contrastive" else [],
        penalty,
        size,
        mean,
        scale,
    )


def paired_clouds(n: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Same problem in both languages, and different problems of one language; clouds 0..n-1 and n..2n-1."""
    different = [
        (language * n + i, language * n + (i + shift) % n)
        for language in (0, 1)
        for shift in range(1, min(NEGATIVES, n - 1) + 1)
        for i in range(n)
    ]
    return [(i, n + i) for i in range(n)], different


def subsample(cloud: Float[np.ndarray, "n d"], most: int, rng: np.random.Generator) -> Array:
    """At most so many tokens of a cloud, in their order, float64."""
    cloud = np.asarray(cloud, dtype=np.float64)
    return cloud if len(cloud) <= most else cloud[np.sort(rng.choice(len(cloud), most, replace=False))]


def check_clouds(source: Clouds, target: Clouds, objective: str, penalty: float) -> None:
    """AnalysisError for clouds that no fit can use; see `fit_ard`."""
    if objective not in ("contrastive", "paired"):
        raise AnalysisError("Unknown objective.", expected="contrastive or paired", given=repr(objective))
    if not (np.isfinite(penalty) and penalty >= 0):
        raise AnalysisError("The penalty cannot be used.", expected="λ ≥ 0", given=penalty)
    clouds = [np.asarray(cloud) for cloud in (*source, *target)]
    widths = {cloud.shape[1] for cloud in clouds if cloud.ndim == 2}
    fits = len(source) == len(target) >= 2 and all(c.ndim == 2 and len(c) >= 2 for c in clouds)
    if not fits or len(widths) != 1:
        raise AnalysisError(
            "The token clouds cannot be compared.",
            expected="the same 2 or more problems in both languages, 2 or more tokens each, one width",
            given=f"{len(source)} and {len(target)} problems, widths {sorted(widths)}, "
            f"{min((len(c) for c in clouds), default=0)} tokens in the shortest",
        )
    if not all(np.isfinite(cloud).all() for cloud in clouds):
        raise AnalysisError("The activations are not all finite.", expected="finite numbers", given="others")
