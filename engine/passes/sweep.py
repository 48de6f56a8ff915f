"""One sweep's bookkeeping: which prompts and conditions go together, and the arrays that they fill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from engine.errors import PatchError
from engine.models.sites import Site
from engine.passes.unembed import Comparison, Unembedding

FILL = 1.25
"""Prompts share a batch while filling up the shorter tails makes it at most this much larger."""

Values = Callable[[Sequence[int]], Any] | Any
"""Vectors to put in: an array (C, n, width), or prompt indices -> (C, len(indices), width)."""


@dataclass(frozen=True)
class SweepResult:
    """What a sweep of C conditions over n prompts found.

    Attributes:
        kl: (C, n) nats, KL(patched || unpatched) or the reverse.
        self_kl: (n,) nats, of the own activation put back: against the reference in the same products. In
            float32, where both agree with the plain run to less than the limit, `path_kl` stands for it.
        path_kl: (n,) nats, between the resumed unpatched run, which patched ones are compared with, and the
            plain run: rounding. An upper bound of it, at least float32's rounding, where that settles it.
        reverse_kl: which direction `kl` is.
        top_ids, top_log_probs: (C, n, k) most likely next tokens under the patch, None without `top_k`.
        unpatched_top_ids, unpatched_top_log_probs: (n, k).
        watched: (C, n, W) log-probabilities of the tokens given as `watch`, None without.
        unpatched_watched: (n, W).
        shared_kl: (C, n) nats, the same of the tokens given as `shared` alone, renormalised, None without.
        shared_mass, unpatched_shared_mass: (C, n) and (n,) probability of those tokens.
        halvings: how often memory ran out and the batch was halved.
        batch_tokens: rows per batch at the end.
    """

    kl: Float64[np.ndarray, "conditions prompts"]
    self_kl: Float64[np.ndarray, "prompts"]
    path_kl: Float64[np.ndarray, "prompts"]
    reverse_kl: bool
    top_ids: Int64[np.ndarray, "conditions prompts k"] | None
    top_log_probs: Float32[np.ndarray, "conditions prompts k"] | None
    unpatched_top_ids: Int64[np.ndarray, "prompts k"] | None
    unpatched_top_log_probs: Float32[np.ndarray, "prompts k"] | None
    halvings: int
    batch_tokens: int
    watched: Float32[np.ndarray, "conditions prompts w"] | None = None
    unpatched_watched: Float32[np.ndarray, "prompts w"] | None = None
    shared_kl: Float64[np.ndarray, "conditions prompts"] | None = None
    shared_mass: Float64[np.ndarray, "conditions prompts"] | None = None
    unpatched_shared_mass: Float64[np.ndarray, "prompts"] | None = None


@dataclass(frozen=True)
class Work:
    """A batch: prompts of one pack (engine-wide indices) and a range of conditions."""

    prompts: tuple[int, ...]
    conditions: range

    def rows(self, tails: Sequence[int]) -> int:
        """Rows of the batch, the reference's and filled-up ones included; `tails` of all prompts."""
        return len(self.prompts) * max(tails[p] for p in self.prompts) * (len(self.conditions) + 1)

    def split(self, tails: Sequence[int], batch_tokens: int) -> list[Work]:
        """The batch itself if it has at most `batch_tokens` rows (or is a single one), else its parts."""
        parts: list[list[int]] = []
        for prompt in self.prompts:
            joined = Work((*(parts[-1] if parts else ()), prompt), self.conditions)
            lengths = [tails[p] for p in joined.prompts]
            fits = joined.rows(tails) <= batch_tokens and len(lengths) * max(lengths) <= FILL * sum(lengths)
            if parts and fits:
                parts[-1].append(prompt)
            else:
                parts.append([prompt])
        if len(parts) > 1:
            return [Work(tuple(part), self.conditions) for part in parts]
        most = max(1, batch_tokens // max(tails[p] for p in self.prompts) - 1)
        if len(self.prompts) > 1 or len(self.conditions) <= most:
            return [self]
        size = -(-len(self.conditions) // -(-len(self.conditions) // most))
        first, end = self.conditions.start, self.conditions.stop
        return [Work(self.prompts, range(i, min(i + size, end))) for i in range(first, end, size)]


@dataclass
class Sweep:
    """A sweep under way: what was asked, the arrays it fills, and how it goes.

    `tops` are the arrays about tokens, named as in `SweepResult`. `held` are the vectors of the prompts that
    were asked for last, (C, prompts, width).
    """

    site: Site
    values: Values
    conditions: int
    reverse_kl: bool
    top_k: int
    watch: tuple[int, ...]
    shared: tuple[int, ...]
    batch_tokens: int
    kl: Float64[np.ndarray, "conditions prompts"]
    self_kl: Float64[np.ndarray, "prompts"]
    path_kl: Float64[np.ndarray, "prompts"]
    tops: dict[str, np.ndarray]
    halvings: int = 0
    done: int = 0
    held: tuple[tuple[int, ...], Tensor] | None = field(default=None)

    @classmethod
    def begin(
        cls,
        site: Site,
        values: Values,
        shape: tuple[int, int],
        reverse_kl: bool,
        top_k: int,
        watch: Sequence[int],
        shared: Sequence[int],
        batch_tokens: int,
    ) -> Sweep:
        """Empty arrays for (conditions, prompts)."""
        kl, self_kl, path_kl = (np.full(size, np.nan) for size in (shape, shape[1], shape[1]))
        tops: dict[str, np.ndarray] = {}
        for name, size in (("", shape), ("unpatched_", shape[1:])):
            if top_k:
                tops[name + "top_ids"] = np.zeros((*size, top_k), dtype=np.int64)
                tops[name + "top_log_probs"] = np.zeros((*size, top_k), dtype=np.float32)
            if watch:
                tops[name + "watched"] = np.zeros((*size, len(watch)), dtype=np.float32)
        tokens, among = (tuple(int(token) for token in ids) for ids in (watch, shared))
        return cls(
            site, values, shape[0], reverse_kl, top_k, tokens, among, batch_tokens, kl, self_kl, path_kl, tops
        )

    def compare(self, head: Unembedding, states: Tensor, factor: bool) -> Comparison:
        """What is asked of final states, (P, 1 + K, d), the reference's first."""
        return head.compare(
            states,
            reverse=self.reverse_kl,
            top_k=self.top_k,
            factor=factor,
            watch=self.watch,
            shared=self.shared,
        )

    def keep(self, work: Work, found: Comparison, more: Sequence[np.ndarray] = ()) -> None:
        """Writes a batch's findings; `more` are the arrays over prompts for rows behind the conditions'."""
        kl = found.kl.cpu().double().numpy()
        prompts, conditions = list(work.prompts), list(work.conditions)
        count = len(conditions)
        self.kl[np.ix_(conditions, prompts)] = kl[:, :count].T
        for array, column in zip(more, kl[:, count:].T, strict=True):
            array[prompts] = np.abs(column)
        self.done += len(prompts) * len(conditions)
        if found.shared_kl is not None and found.shared_mass is not None:
            mass = found.shared_mass.cpu().double().numpy()
            shared = found.shared_kl.cpu().double().numpy()
            at = np.ix_(conditions, prompts)
            for name, values in (("shared_kl", shared[:, :count]), ("shared_mass", mass[:, 1 : 1 + count])):
                self.tops.setdefault(name, np.full(self.kl.shape, np.nan))[at] = values.T
            self.tops.setdefault("unpatched_shared_mass", np.full(len(self.self_kl), np.nan))[prompts] = mass[
                :, 0
            ]
        for name in ("top_ids", "top_log_probs", "watched"):
            kept: Tensor | None = getattr(found, name)
            if kept is None:
                continue
            values = kept.cpu().numpy()
            self.tops[name][np.ix_(conditions, prompts)] = values[:, 1 : 1 + count].swapaxes(0, 1)
            self.tops["unpatched_" + name][prompts] = values[:, 0]

    def result(self) -> SweepResult:
        """The finished sweep."""
        return SweepResult(
            kl=self.kl,
            self_kl=self.self_kl,
            path_kl=self.path_kl,
            reverse_kl=self.reverse_kl,
            top_ids=self.tops.get("top_ids"),
            top_log_probs=self.tops.get("top_log_probs"),
            unpatched_top_ids=self.tops.get("unpatched_top_ids"),
            unpatched_top_log_probs=self.tops.get("unpatched_top_log_probs"),
            halvings=self.halvings,
            batch_tokens=self.batch_tokens,
            watched=self.tops.get("watched"),
            unpatched_watched=self.tops.get("unpatched_watched"),
            shared_kl=self.tops.get("shared_kl"),
            shared_mass=self.tops.get("shared_mass"),
            unpatched_shared_mass=self.tops.get("unpatched_shared_mass"),
        )


def group_prompts(
    token_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    tails: Sequence[int],
    room: int,
    sides: Sequence[Sequence[int]],
) -> list[list[int]]:
    """Prompts to capture together, `room` tokens each: equal tails side by side, then similar prefixes.

    One that is given several times takes its room once, as it is captured.

    Args:
        sides: the prompts, in parts that never share a group.
    """
    side = {prompt: number for number, part in enumerate(sides) for prompt in part}
    order = sorted(side, key=lambda p: (side[p], tails[p], positions[p], p))
    groups: list[list[int]] = []
    filled, held = 0, set[tuple[int, ...]]()
    for prompt in order:
        ids = tuple(token_ids[prompt])
        more = 0 if ids in held else len(ids)
        if groups and filled + more <= room and side[prompt] == side[groups[-1][0]]:
            groups[-1].append(prompt)
            filled += more
        else:
            groups.append([prompt])
            filled, held = len(ids), set()
        held.add(ids)
    return groups


def check_prompts(token_ids: Sequence[Sequence[int]], positions: Sequence[int], read_at: str) -> None:
    """PatchError for an unknown read position, no prompts, or a patched token outside its prompt."""
    if read_at not in ("patched", "decision"):
        raise PatchError(
            "There is no such read position.", expected="patched or decision", given=repr(read_at)
        )
    if not token_ids or len(token_ids) != len(positions):
        raise PatchError(
            "Prompts and patch positions don't belong together.",
            expected="at least one prompt, and one position each",
            given=f"{len(token_ids)} prompts, {len(positions)} positions",
        )
    for index, (ids, position) in enumerate(zip(token_ids, positions, strict=True)):
        if not 0 <= position < len(ids):
            raise PatchError(
                f"The patched token of prompt {index} is not in the prompt.",
                expected=f"0 to {len(ids) - 1}" if ids else "a prompt with at least one token",
                given=position,
            )


def check_request(site: Site, values: Values, shape: tuple[int, int, int], top_k: int) -> None:
    """PatchError when an array of values isn't (conditions, prompts, width), or nothing is asked for."""
    if shape[0] < 1 or top_k < 0:
        raise PatchError(
            "A sweep needs at least one condition.",
            expected="n_conditions >= 1 and top_k >= 0",
            given=f"n_conditions={shape[0]}, top_k={top_k}",
        )
    given = tuple(getattr(values, "shape", ()))
    if not callable(values) and given != shape:
        raise PatchError(
            f"The vectors to put in at {site} have the wrong shape.",
            expected=f"(conditions, prompts, width) = {shape}",
            given=given or type(values).__name__,
        )


def check_watch(watch: Sequence[int], vocab: int) -> None:
    """PatchError when a watched token is not an entry of the model's vocabulary."""
    wrong = [token for token in watch if not 0 <= token < vocab]
    if wrong:
        raise PatchError(
            "Some watched tokens are not in the model's vocabulary.",
            expected=f"ids from 0 to {vocab - 1}",
            given=", ".join(map(str, wrong[:5])),
            next_step="take the ids from the target model's own tokenizer.",
        )
