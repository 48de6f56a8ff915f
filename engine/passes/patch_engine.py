"""Live patching: many conditions at one site on many prompts, computing only what the patch can change.

    engine = PatchEngine(lm, token_ids, positions)
    own = engine.subspaces.gates(Site("resid_post", 4))
    result = engine.passes.sweep(Site("resid_post", 4), vectors, n_conditions=len(vectors))

A patch replaces the activation at a site and one token per prompt. Earlier blocks, earlier tokens and every
token behind the one that is read are the same in all conditions, so they run once, at construction.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
import psutil
import torch
from torch import Tensor

from engine.errors import JobError, PatchError
from engine.models.loading import LoadedModel
from engine.models.memory import free, out_of_memory
from engine.models.rotary import turned
from engine.models.sites import Site
from engine.passes.attention import configured_modules
from engine.passes.batching import sides
from engine.passes.linear import PackedLinears, packing_pays
from engine.passes.packed import Pack, capture_pack
from engine.passes.rerun import capture_whole, rerun
from engine.passes.resume import Block, own_values, resume
from engine.passes.rounding import KL_FLOOR, divergence, kl_limit, next_token_noise
from engine.passes.sweep import (
    Sweep,
    SweepResult,
    Values,
    Work,
    check_prompts,
    check_request,
    check_watch,
    group_prompts,
)
from engine.passes.unembed import Unembedding

log = logging.getLogger("patchbay.memory")
SELF_LIMIT = KL_FLOOR
"""Largest KL of the model's own activation put back, nats; rounding is the same on both sides."""
CERTAIN_SHARE = 0.01
"""A float32 run that provably stays this close to the plain one is not compared over the vocabulary."""
NOISY_PROMPTS = 4
"""Prompts on which rounding noise is measured before a run is refused, beside the one in question."""
PACK_TOKENS = 3072
"""Tokens of prompts that are captured together, at least: what is captured together can share a batch."""
MEMORY_SHARE = 0.4
"""Share of the free memory that captured prompts may take; the rest is captured again when needed."""


class JobCancelled(JobError):
    """`should_stop` said so between two batches."""


class PatchEngine:
    """Patched runs of one model on one set of prompts.

    Args:
        lm: the model; its lock is held while it runs, not while `values` or the callbacks do.
        token_ids: per prompt, BOS included if the model wants it. No padding.
        positions: index of the patched token in each prompt.
        read_at: "patched" reads the next-token distribution at the patched token, "decision" at the last one.
        batch_tokens: rows (prompt x condition x tail token) per batch; by default 1024 on a CPU, 8192 else.
        packed_bytes: what packed copies of weights may take; by default a share of the free memory.

    Raises:
        PatchError: empty prompts, positions outside them, or a model whose packed run differs from its own
            forward pass.
    """

    def __init__(
        self,
        lm: LoadedModel,
        token_ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        read_at: Literal["patched", "decision"] = "patched",
        batch_tokens: int | None = None,
        packed_bytes: int | None = None,
    ) -> None:
        self.lm, self.taps = lm, lm.taps
        self.token_ids = [[int(token) for token in ids] for ids in token_ids]
        self.positions = [int(position) for position in positions]
        self.read_at = read_at
        check_prompts(self.token_ids, self.positions, read_at)
        self.reads = [
            position if read_at == "patched" else len(ids) - 1
            for ids, position in zip(self.token_ids, self.positions, strict=True)
        ]
        # What comes after the token that is read cannot matter.
        self._seen = [ids[: read + 1] for ids, read in zip(self.token_ids, self.reads, strict=True)]
        self._whole = not self.taps.family.packs
        starts = [0] * len(self.reads) if self._whole else self.positions
        self._tails = [read - start + 1 for read, start in zip(self.reads, starts, strict=True)]
        self.dtype = next(lm.model.parameters()).dtype
        default = 1024 if lm.device.type == "cpu" else 8192
        self.batch_tokens = max(2, batch_tokens or default)
        self._modules = configured_modules(lm.model)
        self._linears = PackedLinears(packing_pays(lm.device, self.dtype), packed_bytes)
        self._head = Unembedding(self.taps, self._linears)
        apart = sides([len(ids) for ids in self.token_ids], self.taps.rotary_switch)
        room = max(self.batch_tokens, PACK_TOKENS)
        self._groups = group_prompts(self._seen, self.positions, self._tails, room, apart)
        self._place = {p: (g, i) for g, group in enumerate(self._groups) for i, p in enumerate(group)}
        self._packs: OrderedDict[int, Pack] = OrderedDict()
        self._known: dict[Site, tuple[np.ndarray, np.ndarray]] = {}
        self._noise = 0.0
        self._room = MEMORY_SHARE * _free_memory(lm.device)
        self._check_against_plain_forward()

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return len(self.token_ids)

    def activations(self, site: Site, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """The unpatched run's activations at the patched tokens, float32 (n, width) on the CPU.

        Width: d; for head_z d_h times the number of the site's heads. head_out is the summed contribution of
        the site's heads (all without `heads`), without the output projection's bias.
        `should_stop` is asked between batches; true raises JobCancelled.
        """
        site.check(self.taps)
        out = torch.empty(self.n_prompts, site.width(self.taps))
        for group, prompts in enumerate(self._groups):
            if should_stop is not None and should_stop():
                raise JobCancelled(f"Cancelled after {group} of {len(self._groups)} batches of prompts.")
            with self.lm.lock, torch.inference_mode():
                out[prompts] = own_values(self.taps, site, self._pack(group)).float().cpu()
        return out

    def log_probs(self) -> Tensor:
        """The unpatched next-token log-probabilities, float32 (n, V) on the CPU."""
        out = torch.empty(self.n_prompts, self.taps.vocab)
        for group, prompts in enumerate(self._groups):
            with self.lm.lock, torch.inference_mode():
                out[prompts] = self._head.log_probs(self._pack(group).final.to(self._head.device)).cpu()
        return out

    def sweep(
        self,
        site: Site,
        values: Values,
        *,
        n_conditions: int,
        reverse_kl: bool = False,
        top_k: int = 0,
        watch: Sequence[int] = (),
        shared: Sequence[int] = (),
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_partial: Callable[[np.ndarray], None] | None = None,
    ) -> SweepResult:
        """Runs every condition on every prompt.

        Args:
            site: where; `site.heads` restricts head_z and head_out to those heads.
            values: array (n_conditions, n, width), or a callable that is given prompt indices and returns
                (n_conditions, len(indices), width) for them, so that a large sweep is never held whole.
            n_conditions: C.
            reverse_kl: KL(unpatched || patched) instead of KL(patched || unpatched).
            top_k: most likely next tokens to keep per condition and prompt.
            watch: ids of tokens whose log-probability is kept per condition and prompt, in this order.
            shared: ids of tokens, ascending, over which KL is given a second time, renormalised.
            on_progress: called between batches with (done, total) prompt-condition pairs.
            should_stop: asked between batches.
            on_partial: called between batches with the KLs so far, (C, n), NaN where none is yet; not to be
                changed.

        Raises:
            SiteError: the model has no such site.
            PatchError: shapes don't fit, not even one row fits into memory, or the self-check fails.
            JobCancelled: `should_stop` returned true.
        """
        site.check(self.taps)
        shape = (n_conditions, self.n_prompts)
        check_request(site, values, (*shape, site.width(self.taps)), top_k)
        check_watch((*watch, *shared), self.taps.vocab)
        top_k = min(top_k, self.taps.vocab)
        sweep = Sweep.begin(site, values, shape, reverse_kl, top_k, watch, shared, self.batch_tokens)
        if site in self._known:
            sweep.self_kl[:], sweep.path_kl[:] = self._known[site]
        total = n_conditions * self.n_prompts
        for work in self._batches(sweep):
            if should_stop is not None and should_stop():
                raise JobCancelled(
                    f"The sweep was cancelled after {sweep.done} of {total} patched runs.",
                    next_step="submit it again to run it.",
                )
            if not self._attempt(sweep, work):
                continue
            if on_partial is not None:
                on_partial(sweep.kl)
            if on_progress is not None:
                on_progress(sweep.done, total)
        self._check_path(f"The run resumed at {site}", sweep.path_kl)
        self._check_self(site, sweep.self_kl)
        self._known[site] = sweep.self_kl.copy(), sweep.path_kl.copy()
        return sweep.result()

    def _batches(self, sweep: Sweep) -> Iterator[Work]:
        """Batches of at most the sweep's current size; one that wasn't done before the next comes again."""
        for prompts in self._groups:
            queue = deque([Work(tuple(prompts), range(sweep.conditions))])
            while queue:
                work = queue.popleft()
                parts = work.split(self._tails, sweep.batch_tokens)
                if len(parts) > 1:
                    queue.extendleft(reversed(parts))
                    continue
                before = sweep.done
                yield work
                if sweep.done == before:
                    queue.appendleft(work)

    def _attempt(self, sweep: Sweep, work: Work) -> bool:
        """Runs a batch; on out-of-memory halves the batch size and returns False."""
        if sweep.held is None or sweep.held[0] != work.prompts:
            sweep.held = (work.prompts, self._values(sweep, work.prompts))
        try:
            with self.lm.lock, torch.inference_mode():
                self._run(sweep, work, sweep.held[1][list(work.conditions)])
        except Exception as error:
            if not out_of_memory(error):
                raise
            rows = len(work.prompts) * len(work.conditions)
            if rows == 1:
                raise PatchError(
                    "Not even one patched run of one prompt fits into memory.",
                    expected="room for one prompt's keys, values and logits",
                    given=f"prompt {work.prompts[0]} on {self.lm.device}",
                    next_step="free memory, use a smaller dtype or another device.",
                ) from error
            sweep.batch_tokens = max(2, min(sweep.batch_tokens, work.rows(self._tails)) // 2)
            sweep.halvings += 1
            self._packs.clear()
            log.warning("%d patched runs did not fit into memory, trying %d rows", rows, sweep.batch_tokens)
        else:
            return True
        free()  # behind the error, whose traceback holds the tensors
        return False

    def _values(self, sweep: Sweep, prompts: tuple[int, ...]) -> Tensor:
        """(conditions, prompts, width) in the model's dtype, from the array or the callable."""
        given = sweep.values(list(prompts)) if callable(sweep.values) else sweep.values[:, list(prompts)]
        vectors = torch.as_tensor(given)
        expected = (sweep.conditions, len(prompts), sweep.site.width(self.taps))
        if tuple(vectors.shape) != expected:
            raise PatchError(
                f"The vectors to put in at {sweep.site} have the wrong shape.",
                expected=f"(conditions, prompts, width) = {expected}",
                given=tuple(vectors.shape),
            )
        if not bool(torch.isfinite(vectors).all()):
            raise PatchError(
                f"The vectors to put in at {sweep.site} are not finite.",
                expected="finite numbers",
                given=f"NaN or infinity among prompts {list(prompts)}",
                next_step="check the map or the moments they come from.",
            )
        return vectors.to(self.dtype)

    def _run(self, sweep: Sweep, work: Work, vectors: Tensor) -> None:
        """One batch: the reference in variant 0 takes the same path as the patched variants.

        The first batch of a prompt at a site also compares the reference with the plain run and, in half
        precision, with a last variant that puts the own activation in.
        """
        group = self._place[work.prompts[0]][0]
        pack, members = self._pack(group), [self._place[p][1] for p in work.prompts]
        own = own_values(self.taps, sweep.site, pack)[members]
        prompts = list(work.prompts)
        new = bool(np.isnan(sweep.path_kl[prompts]).any())
        again = new and self.dtype != torch.float32
        parts = [own[:, None], vectors.transpose(0, 1).to(own.device)] + ([own[:, None]] if again else [])
        vectors = torch.cat(parts, dim=1)
        block = Block(pack, members, vectors.shape[1])
        if self._whole:
            with self._turned(prompts[0]):
                final, direct = rerun(self.taps, self._linears, sweep.site, block, vectors)
        else:
            final, direct = resume(self.taps, self._modules, self._linears, sweep.site, block, vectors)
        rows, more = [final[:, : len(work.conditions) + 1]], []
        if new:
            plain = block.of(pack.final).to(final.device)
            if not self._same_output(sweep, work, final[:, 0], plain[:, 0]):
                rows.append(plain)
                more.append(sweep.path_kl)
        if again and torch.equal(final[:, -1], final[:, 0]):
            sweep.self_kl[prompts] = 0.0
        elif again:
            rows.append(final[:, -1:])
            more.append(sweep.self_kl)
        factor = direct and self.dtype == torch.float32
        states = torch.cat(rows, dim=1).to(self._head.device)
        found = sweep.compare(self._head, states, factor)
        sweep.keep(work, found, more)
        if new and not again:
            sweep.self_kl[prompts] = sweep.path_kl[prompts]

    def _same_output(self, sweep: Sweep, work: Work, resumed: Tensor, plain: Tensor) -> bool:
        """Whether the states (P, d) of the reference and the plain run are too close to differ in output.

        Then the bound is their KL, but no less than what float32 logits can tell. Half precision
        rounds logits by more than the bound speaks of, so there the plain run is always compared.
        """
        if self.dtype != torch.float32:
            return False
        bound = self._head.bound(resumed.to(self._head.device), plain.to(self._head.device)).double().cpu()
        if certain := bool((bound <= CERTAIN_SHARE * SELF_LIMIT).all()):
            sweep.path_kl[list(work.prompts)] = bound.clamp_min(torch.finfo(self.dtype).eps).numpy()
        return certain

    def _pack(self, group: int) -> Pack:
        """The captured prompts of a group; those used longest ago are dropped when memory gets short."""
        if group in self._packs:
            self._packs.move_to_end(group)
            return self._packs[group]
        prompts = self._groups[group]
        ids = [self._seen[p] for p in prompts]
        at = [self.positions[p] for p in prompts], [self.reads[p] for p in prompts]
        with self._turned(prompts[0]):
            if self._whole:
                pack = capture_whole(self.taps, ids, *at)
            else:
                pack = capture_pack(self.taps, self._modules, ids, *at)
        self._packs[group] = pack
        while len(self._packs) > 1 and sum(p.nbytes() for p in self._packs.values()) > self._room:
            self._packs.popitem(last=False)
        return pack

    def _turned(self, prompt: int) -> AbstractContextManager[None]:
        """Inside the block tokens of a prompt are turned as in the whole of it."""
        return turned(self.lm.model, self.taps.rotary_switch, len(self.token_ids[prompt]))

    def _check_against_plain_forward(self) -> None:
        """The packed run must give the logits of the model's own forward pass (the longest prompt's)."""
        longest = max(range(self.n_prompts), key=lambda p: len(self._seen[p]))
        group, member = self._place[longest]
        with self.lm.lock, torch.inference_mode():
            packed = (
                self._head.log_probs(self._pack(group).final[[member]].to(self._head.device)).double().cpu()
            )
            ids = torch.tensor([self._seen[longest]], device=self.lm.device)
            with self._turned(longest):
                logits = self.lm.model(input_ids=ids, use_cache=False).logits[0, -1]
            plain = logits.double().cpu().log_softmax(-1)
        found = np.zeros(self.n_prompts)
        found[longest] = divergence(plain, packed[0])
        self._check_path("The packed run", found)

    def _check_path(self, what: str, kl: np.ndarray) -> None:
        """Refuses a KL (n,) from the plain run that the model's rounding doesn't explain.

        The noise is measured when it is first asked for: on that prompt, and on some others if need be.
        """
        worst = int(np.argmax(kl))  # the first NaN, if there is one
        others = np.linspace(0, self.n_prompts - 1, min(self.n_prompts, NOISY_PROMPTS), dtype=int).tolist()
        for prompt in (worst, *others):
            if kl[worst] > kl_limit(self._noise):
                with self.lm.lock:
                    self._noise = max(self._noise, next_token_noise(self.lm, self._seen[prompt]))
        if not kl[worst] <= kl_limit(self._noise):
            raise PatchError(
                f"{what} of the model differs from its own forward pass.",
                expected=f"KL <= {kl_limit(self._noise):.2g} nats, what rounding explains",
                given=f"{kl[worst]:.3g} at prompt {worst}",
                next_step="this family is not what the engine assumes; don't patch it, and report it.",
            )

    @property
    def self_limit(self) -> float:
        """Largest KL of the own activation put back, nats (see `SweepResult.self_kl`)."""
        return kl_limit(self._noise) if self.dtype == torch.float32 else SELF_LIMIT

    def _check_self(self, site: Site, self_kl: np.ndarray) -> None:
        worst = int(np.argmax(self_kl))  # the first NaN, if there is one
        if not self_kl[worst] <= self.self_limit:
            raise PatchError(
                f"Putting the model's own activation back at {site} changes its output.",
                expected=f"KL <= {self.self_limit:.2g} nats",
                given=f"{self_kl[worst]:.3g} at prompt {worst}",
                next_step="the results of this sweep are not to be trusted; report the model family.",
            )


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)
