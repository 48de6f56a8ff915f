"""Prompts run once, from then on token by token, with activations changed on the way.

An `Edit` changes the activation at one site through a hook at that very site. Rows (prompt x condition) are
padded on the left with explicit positions and share one key/value cache. What no edit of a prompt can reach
runs once for all conditions: its tokens before the first edited one, and the blocks below the lowest site.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from engine.errors import PatchError
from engine.models.loading import LoadedModel
from engine.models.memory import in_halves
from engine.models.rotary import check_one_side, turned
from engine.models.sites import Site, first_tensor
from engine.models.taps import ModelTaps
from engine.passes.batching import batches
from engine.passes.branches import Branches
from engine.passes.edits import Edit, Share, Tokens, install
from engine.passes.patch_engine import JobCancelled
from engine.passes.shared_blocks import SharedBlocks, select_rows, unreached, watched
from engine.weights.steer_rows import RowShifts

Edits = Sequence[Edit | None]
Shared = SharedBlocks | None
Grown = Branches | None


def decode_tokens(device: torch.device) -> int:
    """Tokens in the cache at once, where nothing else is asked for."""
    return 8192 if device.type == "cpu" else 65536


@dataclass
class Rows:
    """Rows under way: which prompt and condition each is, what it has seen, its part of the cache.

    Attributes:
        prompts, conditions: (B,). lengths: (B,) tokens seen, padding left out. mask: (B, slots).
    """

    prompts: Tensor
    conditions: Tensor
    lengths: Tensor
    mask: Tensor
    cache: DynamicCache

    def select(self, rows: Tensor) -> None:
        """Only these rows go on, in this order; a row may come more than once."""
        self.prompts, self.conditions = self.prompts[rows], self.conditions[rows]
        self.lengths, self.mask = self.lengths[rows], self.mask[rows]
        select_rows(self.cache, rows)


class Decoder:
    """One model on one set of prompts under several conditions.

    Args:
        lm: the model; its lock is held during each forward pass.
        token_ids: per prompt, BOS included if the model wants it. No padding.
        edits: one condition each; None is the model as it is. Or weights: conditions of shifted weights.
        room: tokens that may be read after a prompt. What the last of them, or the prompt itself, predicts is
            one more, and takes no position.

    Raises:
        PatchError: no prompts or conditions, an empty prompt, one too long for the model's positions, or an
            edit outside its prompt. SiteError: the model has no such site.
    """

    def __init__(
        self,
        lm: LoadedModel,
        token_ids: Sequence[Sequence[int]],
        edits: Edits | RowShifts,
        room: int,
    ) -> None:
        self.weights = edits if isinstance(edits, RowShifts) else None
        own = (None,) * len(edits.conditions) if isinstance(edits, RowShifts) else tuple(edits)
        self.lm, self.edits, self.room = lm, own, room
        self.token_ids = [[int(token) for token in ids] for ids in token_ids]
        self._check()
        ends = [len(ids) - 1 for ids in self.token_ids]
        firsts = [ends, *(edit.first for edit in self.edits if edit is not None)]
        # not every recurrent block goes on from its state with several tokens at once
        self._recurrent = any(not layer.has_heads for layer in lm.taps.layers)
        whole = self._recurrent or self.weights is not None
        self._first = [0 if whole else min(column) for column in zip(*firsts, strict=True)]

    def plan(self, batch_tokens: int | None, copies: int = 1) -> list[list[int]]:
        """Prompts that run together: as many tokens from the first edited one on, nearly equal lengths.

        Args:
            batch_tokens: tokens in the cache at once, by default 8192 on a CPU, 65536 else.
            copies: rows that every condition of a prompt becomes later.
        """
        limit = batch_tokens or decode_tokens(self.lm.device)
        groups: dict[int, list[int]] = defaultdict(list)
        for prompt, (ids, first) in enumerate(zip(self.token_ids, self._first, strict=True)):
            groups[len(ids) - first if first else 0].append(prompt)
        found = []
        for group in groups.values():
            group.sort(key=lambda p: -len(self.token_ids[p]))
            sizes = [len(self.token_ids[p]) + self.room + 1 for p in group]
            most = max(1, limit // (len(self.edits) * copies))
            parts = batches(sizes, most, self.lm.taps.rotary_switch)
            found += [[group[i] for i in part] for part in parts]
        return found

    def start(self, prompts: Sequence[int]) -> tuple[Rows, Tensor]:
        """Runs a batch of the plan: rows (prompt by prompt, its conditions in order) and what they predict.

        Returns:
            the rows, and the logits (B, V) of the token that follows each prompt.
        """
        rows, hidden = self.begin(prompts)
        return rows, self.logits(hidden[:, -1], rows.conditions)

    def begin(self, prompts: Sequence[int], grown: Grown = None) -> tuple[Rows, Tensor]:
        """As `start`, with the states of all tokens that every condition read, padded on the left.

        Args:
            grown: continuations that are read behind the prompts in the same pass, and leave nothing in the
                cache; only where every prompt is read whole under every condition.

        Returns:
            the rows, and the states (B, T, d) after the final norm, continuations' tokens last.
        """
        n, device = len(prompts), self.lm.device
        which = torch.tensor(list(prompts), device=device)
        rows = Rows(
            which,
            torch.full((n,), -1, device=device),
            torch.zeros(n, dtype=torch.long, device=device),
            torch.zeros(n, 0, dtype=torch.long, device=device),
            DynamicCache(config=self.lm.model.config),
        )
        with torch.inference_mode():
            if any(self._first[p] for p in prompts):
                self._run(rows, [self.token_ids[p][: self._first[p]] for p in prompts], ())
            tails = [self.token_ids[p][self._first[p] :] for p in prompts]
            count = len(self.edits)
            shared = self._shared_blocks(rows, tails, grown) if count > 1 else None
            copies = torch.arange(n, device=device).repeat_interleave(count)
            rows.select(copies)
            rows.conditions = torch.arange(count, device=device).repeat(n)
            repeated = [tail for tail in tails for _ in range(count)]
            if shared is not None:
                shared.select(copies)
            hidden = self._run(rows, repeated, self.edits, shared, grown and grown.select(copies))
            if grown is not None:
                grown.cut(rows.cache)
            return rows, hidden

    def logits(self, states: Tensor, conditions: Tensor) -> Tensor:
        """Logits (N, V) of states (N, d), each under its condition."""
        with self.lm.lock, torch.inference_mode(), self._shifted(conditions):
            return self.lm.taps.logits(states)

    def _shifted(self, conditions: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.weights is None else self.weights.on(conditions)

    def _shared_blocks(self, rows: Rows, tails: Sequence[Sequence[int]], grown: Grown) -> SharedBlocks | None:
        """The blocks that no edit reaches, run once for all conditions of a prompt; `rows` stay the same."""
        count = unreached(self.lm.taps.n_layers, [e.site for e in self.edits if e is not None])
        if self.weights is not None:
            count = min(count, self.weights.first_block)
        if count == 0:
            return None
        once = dataclasses.replace(rows, cache=copy.deepcopy(rows.cache))
        with watched(self.lm.taps, count) as shared:
            self._run(once, tails, (), None, grown)
        shared.cache = once.cache
        return shared

    def follow(self, rows: Rows, tokens: Tensor) -> Tensor:
        """Runs the next tokens (B, T) of every row; their states after the final norm, (B, T, d)."""
        edits = tuple(e if e is not None and e.scope == "all" else None for e in self.edits)
        parts = tokens.split(1, dim=1) if self._recurrent else [tokens]
        with torch.inference_mode():
            found = [self._forward(rows, part, torch.zeros_like(rows.lengths), edits) for part in parts]
        return torch.cat(found, dim=1)

    def _run(
        self,
        rows: Rows,
        ids: Sequence[Sequence[int]],
        edits: Edits,
        shared: Shared = None,
        grown: Grown = None,
    ) -> Tensor:
        longest = max(map(len, ids))
        padding = torch.tensor([longest - len(row) for row in ids], device=self.lm.device)
        padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=self.lm.device)
        return self._forward(rows, padded, padding, edits, shared, grown)

    def _forward(
        self,
        rows: Rows,
        ids: Tensor,
        padding: Tensor,
        edits: Edits,
        shared: Shared = None,
        grown: Grown = None,
    ) -> Tensor:
        """Runs ids (B, T), the first `padding` of each row being none, and moves the rows on."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        index = rows.lengths[:, None] + steps - padding[:, None]
        real = steps >= padding[:, None]
        rows.mask = torch.cat([rows.mask, real.long()], dim=1)
        index = torch.where(real, index, -1)
        mask, count = rows.mask, real.sum(1)
        if grown is not None:
            ids, index, mask = grown.behind(ids, index, self.lm.dtype)
        standing = nullcontext() if shared is None else shared.standing_in(self.lm.taps, rows.cache)
        whole = len(self.token_ids[int(rows.prompts[0])])
        turns = turned(self.lm.model, self.lm.taps.rotary_switch, whole)
        steered = self._shifted(rows.conditions)
        with self.lm.lock, standing, turns, edited(self.lm.taps, edits, rows, index), steered:
            output = self.lm.taps.decoder(
                input_ids=ids,
                attention_mask=mask,
                position_ids=index.clamp(min=0),
                past_key_values=rows.cache,
                use_cache=True,
            )
        rows.lengths = rows.lengths + count
        return first_tensor(output[0])

    def _check(self) -> None:
        lengths = [len(ids) for ids in self.token_ids]
        if not lengths or not self.edits or min(lengths) == 0:
            raise PatchError(
                "There is nothing to run.",
                expected="at least one condition, and prompts of at least one token",
                given=f"{len(self.edits)} conditions, {len(lengths)} prompts, {lengths.count(0)} empty",
            )
        if max(lengths) + self.room > self.lm.max_length:
            raise PatchError(
                "A prompt and what follows it are longer than the model's positions reach.",
                expected=f"at most {self.lm.max_length} tokens that are read",
                given=f"{max(lengths)} and {self.room} more, beside a last one that is only predicted",
                next_step="generate fewer tokens, or leave out the longest prompts.",
            )
        check_one_side(self.lm.taps.rotary_switch, lengths, self.room)
        for edit in filter(None, self.edits):
            edit.site.check(self.lm.taps)
            pairs = zip(edit.first, lengths, strict=False)
            if len(edit.first) != len(lengths) or not all(0 <= first < length for first, length in pairs):
                raise PatchError(
                    f"The edit at {edit.site} is not about these prompts.",
                    expected="one token index inside each prompt",
                    given=f"{len(edit.first)} indices for {len(lengths)} prompts",
                )


def in_batches(
    plan: Sequence[list[int]],
    work: Callable[[list[int]], None],
    on_progress: Callable[[int, int], None] | None,
    should_stop: Callable[[], bool] | None,
) -> None:
    """Does the work batch by batch; one that does not fit into memory is tried in halves, as the log says.

    Raises:
        PatchError: a single prompt does not fit. JobCancelled: `should_stop` returned true.
    """
    total, done = sum(map(len, plan)), 0

    def attempt(batch: list[int]) -> None:
        check_stop(should_stop)
        work(batch)

    for batch in in_halves(plan, attempt, _too_large):
        done += len(batch)
        if on_progress is not None:
            on_progress(done, total)


def _too_large(prompt: int, error: Exception) -> PatchError:
    return PatchError(
        "One prompt under all conditions does not fit into the device's memory.",
        given=f"prompt {prompt} ({error})",
        next_step="run fewer conditions at once, use a smaller dtype or another device.",
    )


def check_stop(should_stop: Callable[[], bool] | None) -> None:
    """Raises JobCancelled when `should_stop` says so."""
    if should_stop is not None and should_stop():
        raise JobCancelled("The run was cancelled.", next_step="submit it again to run it.")


@contextmanager
def edited(taps: ModelTaps, edits: Sequence[Edit | None], rows: Rows, index: Tensor) -> Iterator[None]:
    """Inside the block each condition's edit changes its own rows; hooks are removed after.

    Args:
        index: (B, T) as in `Tokens`, of the tokens about to run.
    """
    with ExitStack() as stack:
        at_site: dict[Site, list[Share]] = defaultdict(list)
        for number, edit in enumerate(edits):
            at = torch.nonzero(rows.conditions == number)[:, 0]
            if edit is not None and len(at):
                at_site[edit.site].append((edit, at, Tokens(rows.prompts[at], index[at])))
        for site, shares in at_site.items():
            stack.callback(install(taps, site, shares).remove)
        yield
