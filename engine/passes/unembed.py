"""From final hidden states to divergences, a slice of the vocabulary at a time.

Full logits of a sweep never exist: a tile of them is computed, its share of every sum is added up in float64
and the tile is dropped while it is still in the processor's cache. With raw logits a of the reference and b
of a patched run, Z = logsumexp, the two directions are

    KL(patched || reference) = sum softmax(b) (b - a) - (Z_b - Z_a)
    KL(reference || patched) = sum softmax(a) (a - b) - (Z_a - Z_b)

which is the definition with both log-softmaxes written out; b = a gives exactly 0. Two states that hardly
differ need no logits: `Unembedding.bound` says how far apart their distributions can be at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.models.taps import ModelTaps
from engine.passes.linear import PackedLinears, Product
from engine.passes.wide import linear

TILE = 1024
"""Vocabulary entries per tile on a CPU; sixteen times as many elsewhere."""
CACHE_ROWS = 256
"""Rows of a tile that are summed up at once on a CPU: they fit into the second-level cache."""
FACTOR_FROM = 48
"""Fewest rows per prompt for which a low-rank factorisation of the final states is tried."""
FACTOR_TOLERANCE = 2e-7
"""Largest part of a row that a factorisation may lose, relative: a float32 product loses as much."""


@dataclass(frozen=True)
class Comparison:
    """Distributions of K rows against a reference row, for P prompts.

    Attributes:
        kl: (P, K), nats, float64 (float32 where the device has no float64).
        top_ids, top_log_probs: (P, 1 + K, k) most likely tokens, the reference's first; None when k = 0.
        watched: (P, 1 + K, W) float32 log-probabilities of given tokens, the reference's first; None without.
        shared_kl: as `kl`, of the distributions over some tokens alone, renormalised. shared_mass: (P, 1 + K)
            their probability, the reference's first. None where no tokens were named.
    """

    kl: Tensor
    top_ids: Tensor | None
    top_log_probs: Tensor | None
    watched: Tensor | None = None
    shared_kl: Tensor | None = None
    shared_mass: Tensor | None = None


class Unembedding:
    """The model's unembedding cut into vocabulary tiles, with its scale and soft-cap.

    Logits are computed in the model's dtype, as the model does, and summed up in float32 and float64.
    """

    def __init__(self, taps: ModelTaps, packed: PackedLinears) -> None:
        weight, bias = taps.unembedding.weight, getattr(taps.unembedding, "bias", None)
        assert isinstance(weight, Tensor)
        self.device, self.dtype = weight.device, weight.dtype
        self._scale, self._softcap = taps.logit_scale, taps.logit_softcap
        self._longest: float | None = None
        size = TILE if self.device.type == "cpu" else 16 * TILE
        self.tiles: list[tuple[Tensor, Product | None, Tensor | None]] = []
        for start in range(0, weight.shape[0], size):
            part = weight[start : start + size]
            bias_part = None if bias is None else bias[start : start + size]
            self.tiles.append((part, packed.product(part, None), bias_part))

    def _linear(self, rows: Tensor, tile: int) -> Tensor:
        weight, product, _ = self.tiles[tile]
        return linear(rows, weight) if product is None else product(rows)

    def _finish(self, logits: Tensor, tile: int) -> Tensor:
        """Bias, scale and soft-cap of the model, then float32."""
        bias = self.tiles[tile][2]
        if bias is not None:
            logits = logits + bias
        if self._scale != 1.0:
            logits = logits * self._scale
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        return logits.float()

    def log_probs(self, normed: Tensor) -> Tensor:
        """Log-probabilities of (rows, d) states after the final norm: float32 (rows, V)."""
        parts = [self._finish(self._linear(normed, tile), tile) for tile in range(len(self.tiles))]
        return torch.cat(parts, dim=-1).log_softmax(-1)

    def bound(self, normed: Tensor, other: Tensor) -> Tensor:
        """The most that two states can be apart, KL in nats either way: (..., d) twice -> (...,), no logits.

        With c = b - a the difference of two rows of logits, KL(softmax a || softmax b) = log E[exp(c - E[c])]
        under softmax a, at most (max c - min c)^2 / 8 (Hoeffding 1963, inequality 4.16). An entry of c is at
        most s |w_v| |x - y|, with s the logits' scale: biases cancel and a soft-cap's slope is at most 1. So

            KL <= (s max_v |w_v| |x - y|)^2 / 2.

        The rounding of logits is not in it; NaN where a state is not finite.
        """
        if self._longest is None:
            norms = [torch.linalg.vector_norm(part.float(), dim=1).max() for part, _, _ in self.tiles]
            self._longest = float(torch.stack(norms).max())
        apart = torch.linalg.vector_norm(normed.to(_wide(normed.device)) - other, dim=-1)
        return (self._scale * self._longest * apart).square() / 2

    def compare(
        self,
        normed: Tensor,
        *,
        reverse: bool,
        top_k: int,
        factor: bool,
        watch: Sequence[int] = (),
        shared: Sequence[int] = (),
    ) -> Comparison:
        """Divergence of rows 1.. from row 0 of each prompt.

        Args:
            normed: (P, 1 + K, d) states after the final norm, in the model's dtype.
            reverse: KL(row 0 || row) instead of KL(row || row 0).
            top_k: how many most likely tokens to keep.
            factor: try to write each prompt's rows as few combinations of few directions, so that only those
                few meet the vocabulary. Used only where it reproduces every row to FACTOR_TOLERANCE.
            watch: vocabulary entries whose log-probability is kept, in this order.
            shared: vocabulary entries, ascending, over which the divergence is given a second time.
        """
        prompts, rows, _ = normed.shape
        exact = _wide(normed.device) == torch.float64
        factors = low_rank(normed) if factor and exact and rows >= FACTOR_FROM else None
        sums = _Sums(prompts, rows, top_k, normed.device, reverse, watch)
        among = _Sums(prompts, rows, 0, normed.device, reverse) if shared else None
        wanted = torch.tensor(list(shared), dtype=torch.int64, device=normed.device)
        size = max(1, CACHE_ROWS // rows) if normed.device.type == "cpu" else prompts
        start = 0
        for tile in range(len(self.tiles)):
            basis = normed if factors is None else factors[1]
            products = self._linear(basis.reshape(-1, basis.shape[-1]), tile).view(*basis.shape[:2], -1)
            columns = wanted[(wanted >= start) & (wanted < start + products.shape[-1])] - start
            for first in range(0, prompts, size):
                part = slice(first, first + size)
                logits = products[part] if factors is None else factors[0][part] @ products[part]
                logits = self._finish(logits, tile)
                if among is not None and columns.numel():
                    among.add(logits[..., columns], part, start)
                sums.add(logits, part, start)
            start += products.shape[-1]
        found = sums.result()
        return found if among is None else among.beside(sums, found)


def low_rank(rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Writes (P, K, d) float32 rows as (P, K, r) coefficients times (P, r, d) orthonormal directions.

    A randomised range finder (Halko, Martinsson & Tropp 2011, algorithm 4.1) with the residual checked row by
    row in float64; r is doubled until every row is reproduced to FACTOR_TOLERANCE of its length, and None is
    returned when r would exceed a third of min(K, d): then nothing would be saved.
    """
    exact = rows.double()
    lengths = exact.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    generator = torch.Generator().manual_seed(0)
    rank, most = 16, min(rows.shape[1:]) // 3
    while rank <= most:
        mix = torch.randn(rows.shape[1], rank, generator=generator, dtype=torch.float64).to(rows.device)
        basis = torch.linalg.qr((exact / lengths).transpose(1, 2) @ mix).Q
        coefficients = exact @ basis
        residual = exact - coefficients @ basis.transpose(1, 2)
        if bool(((residual.norm(dim=-1, keepdim=True) / lengths) <= FACTOR_TOLERANCE).all()):
            return coefficients.to(rows.dtype), basis.transpose(1, 2).to(rows.dtype).contiguous()
        if rank == most:
            return None
        rank = min(2 * rank, most)
    return None


def _wide(device: torch.device) -> torch.dtype:
    """What sums are kept in: float64, but float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class _Sums:
    """Running sums over vocabulary tiles (streaming softmax, Milakov & Gimelshein 2018)."""

    def __init__(
        self,
        prompts: int,
        rows: int,
        top_k: int,
        device: torch.device,
        reverse: bool,
        watch: Sequence[int] = (),
    ) -> None:
        self.reverse, self.top_k = reverse, top_k
        self.watch = list(watch)
        self.watched = torch.zeros(prompts, rows, len(self.watch), device=device)
        self.peak = torch.full((prompts, rows), -torch.inf, device=device)
        self.wide = _wide(device)
        self.total = torch.zeros(prompts, rows, dtype=self.wide, device=device)
        self.weighted = torch.zeros(prompts, rows - 1, dtype=self.wide, device=device)
        self._room = torch.empty(0, device=device)
        self.top_values = torch.zeros(prompts, rows, top_k, device=device)
        self.top_ids = torch.zeros(prompts, rows, top_k, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, part: slice, start: int) -> None:
        """Adds the (p, 1 + K, tile) float32 logits of some prompts from entry `start` on; spoils them."""
        if self.top_k:
            self._add_top(logits, part, start)
        for column, token in enumerate(self.watch):
            if start <= token < start + logits.shape[-1]:
                self.watched[part, :, column] = logits[..., token - start]
        peak = torch.maximum(self.peak[part], logits.amax(-1))
        shrink = (self.peak[part] - peak).exp().to(self.wide)
        change = torch.sub(logits[:, 1:], logits[:, :1], out=self._scratch(logits[:, 1:]))
        logits.sub_(peak[..., None]).exp_()
        # The weights of the sum: the reference's own, or each row's.
        row = slice(0, 1) if self.reverse else slice(1, None)
        self.total[part] = self.total[part] * shrink + logits.sum(-1)
        self.weighted[part] = self.weighted[part] * shrink[:, row] + change.mul_(logits[:, row]).sum(-1)
        self.peak[part] = peak

    def _scratch(self, like: Tensor) -> Tensor:
        """Room for a tensor of that shape, the same every time: asking anew costs as much as filling it."""
        if self._room.numel() < like.numel():
            self._room = torch.empty(like.numel(), device=like.device)
        return self._room[: like.numel()].view(like.shape)

    def _add_top(self, logits: Tensor, part: slice, start: int) -> None:
        values, ids = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1)
        seen = min(self.top_k, start)
        values = torch.cat([self.top_values[part, :, :seen], values], dim=-1)
        ids = torch.cat([self.top_ids[part, :, :seen], ids + start], dim=-1)
        values, order = values.topk(min(self.top_k, values.shape[-1]), dim=-1)
        self.top_values[part, :, : values.shape[-1]] = values
        self.top_ids[part, :, : values.shape[-1]] = ids.gather(-1, order)

    def beside(self, whole: _Sums, found: Comparison) -> Comparison:
        """The comparison of all tokens with that of the tokens seen here."""
        mass = (self.total.log() + self.peak.to(self.wide)) - (whole.total.log() + whole.peak.to(self.wide))
        return replace(found, shared_kl=self.result().kl, shared_mass=mass.exp())

    def result(self) -> Comparison:
        """The divergences of all tiles seen."""
        log_total = self.total.log() + self.peak.to(self.wide)
        reference = log_total[:, :1]
        if self.reverse:
            kl = log_total[:, 1:] - reference - self.weighted / self.total[:, :1]
        else:
            kl = self.weighted / self.total[:, 1:] - (log_total[:, 1:] - reference)
        top_ids = self.top_ids if self.top_k else None
        top = (self.top_values - log_total[..., None]).float() if self.top_k else None
        watched = (self.watched - log_total[..., None]).float() if self.watch else None
        return Comparison(kl, top_ids, top, watched)
