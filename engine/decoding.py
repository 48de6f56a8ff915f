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
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from engine.batching import batches
from engine.errors import PatchError
from engine.intervene import JobCancelled
from engine.model import LoadedModel
from engine.shared_blocks import SharedBlocks, unreached, watched
from engine.sites import Site, first_tensor, replace_first
from engine.taps import ModelTaps


@dataclass(frozen=True)
class Tokens:
    """Which tokens a tensor (B, T, width) is about.

    Attributes:
        prompts: (B,) index of each row's prompt.
        index: (B, T) place in the row's own sequence, 0 for its first token; negative is padding, from the
            prompt's length on they are generated.
    """

    prompts: Tensor
    index: Tensor


Change = Callable[[Tensor, Tokens], Tensor]
"""Activations at a site (B, T, width) and which tokens they are -> what takes their place, same shape."""


@dataclass(frozen=True)
class Edit:
    """One intervention on every prompt.

    Attributes:
        site: where; `site.heads` restricts head_z and head_out to those heads. head_out is the summed
            contribution of the heads, without the output projection's bias.
        change: what becomes of the activations; it leaves alone the tokens it is not about.
        first: per prompt, the earliest token that `change` may touch.
        scope: "prompt" runs it on the prompt's tokens only, "all" on generated ones too.
    """

    site: Site
    change: Change
    first: tuple[int, ...]
    scope: Literal["prompt", "all"] = "prompt"


Edits = Sequence[Edit | None]
Shared = SharedBlocks | None


def replace_at(site: Site, positions: Sequence[int], vectors: Any) -> Edit:
    """The edit that puts a vector in the place of one token's activation.

    Args:
        positions: per prompt, the index of the token.
        vectors: (n, width), array or tensor.

    Raises:
        PatchError: one is missing for a prompt, or a vector is not finite.
    """
    values, where = torch.as_tensor(vectors), torch.as_tensor(positions, dtype=torch.long)
    if values.ndim != 2 or len(values) != len(where):
        raise PatchError(
            f"The vectors to put in at {site} do not fit the prompts.",
            expected=f"({len(where)}, width)",
            given=tuple(values.shape),
        )
    if not bool(torch.isfinite(values).all()):
        raise PatchError(
            f"The vectors to put in at {site} are not finite.",
            expected="finite numbers",
            given="NaN or infinity",
            next_step="check the map or the moments they come from.",
        )

    def change(own: Tensor, tokens: Tokens) -> Tensor:
        prompts = tokens.prompts.cpu()
        here = tokens.index == where[prompts].to(tokens.index.device)[:, None]
        return torch.where(here[..., None].to(own.device), values[prompts][:, None].to(own), own)

    return Edit(site, change, tuple(int(position) for position in positions))


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
        self.cache.batch_select_indices(rows)


class Decoder:
    """One model on one set of prompts under several conditions.

    Args:
        lm: the model; its lock is held during each forward pass.
        token_ids: per prompt, BOS included if the model wants it. No padding.
        edits: one condition each; None is the model as it is.
        room: tokens that may follow a prompt.

    Raises:
        PatchError: no prompts or conditions, an empty prompt, one too long for the model's positions, or an
            edit outside its prompt. SiteError: the model has no such site.
    """

    def __init__(
        self, lm: LoadedModel, token_ids: Sequence[Sequence[int]], edits: Sequence[Edit | None], room: int
    ) -> None:
        self.lm, self.edits, self.room = lm, tuple(edits), room
        self.token_ids = [[int(token) for token in ids] for ids in token_ids]
        self._check()
        ends = [len(ids) - 1 for ids in self.token_ids]
        firsts = [ends, *(edit.first for edit in self.edits if edit is not None)]
        self._first = [min(column) for column in zip(*firsts, strict=True)]

    def plan(self, batch_tokens: int | None, copies: int = 1) -> list[list[int]]:
        """Prompts that run together: as many tokens from the first edited one on, nearly equal lengths.

        Args:
            batch_tokens: tokens in the cache at once, by default 8192 on a CPU, 65536 else.
            copies: rows that every condition of a prompt becomes later.
        """
        limit = batch_tokens or (8192 if self.lm.device.type == "cpu" else 65536)
        groups: dict[int, list[int]] = defaultdict(list)
        for prompt, (ids, first) in enumerate(zip(self.token_ids, self._first, strict=True)):
            groups[len(ids) - first if first else 0].append(prompt)
        found = []
        for group in groups.values():
            group.sort(key=lambda p: -len(self.token_ids[p]))
            sizes = [len(self.token_ids[p]) + self.room for p in group]
            parts = batches(sizes, max(1, limit // (len(self.edits) * copies)))
            found += [[group[i] for i in part] for part in parts]
        return found

    def start(self, prompts: Sequence[int]) -> tuple[Rows, Tensor]:
        """Runs a batch of the plan: rows (prompt by prompt, its conditions in order) and what they predict.

        Returns:
            the rows, and the logits (B, V) of the token that follows each prompt.
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
            shared = self._shared_blocks(rows, tails) if count > 1 else None
            copies = torch.arange(n, device=device).repeat_interleave(count)
            rows.select(copies)
            rows.conditions = torch.arange(count, device=device).repeat(n)
            repeated = [tail for tail in tails for _ in range(count)]
            if shared is not None:
                shared.select(copies)
            hidden = self._run(rows, repeated, self.edits, shared)
            return rows, self.lm.taps.logits(hidden[:, -1])

    def _shared_blocks(self, rows: Rows, tails: Sequence[Sequence[int]]) -> SharedBlocks | None:
        """The blocks that no edit reaches, run once for all conditions of a prompt; `rows` stay the same."""
        count = unreached(self.lm.taps.n_layers, [e.site for e in self.edits if e is not None])
        if count == 0:
            return None
        once = dataclasses.replace(rows, cache=copy.deepcopy(rows.cache))
        with watched(self.lm.taps, count) as shared:
            self._run(once, tails, ())
        shared.cache = once.cache
        return shared

    def follow(self, rows: Rows, tokens: Tensor) -> Tensor:
        """Runs the next tokens (B, T) of every row; their states after the final norm, (B, T, d)."""
        edits = tuple(e if e is not None and e.scope == "all" else None for e in self.edits)
        with torch.inference_mode():
            return self._forward(rows, tokens, torch.zeros_like(rows.lengths), edits)

    def _run(self, rows: Rows, ids: Sequence[Sequence[int]], edits: Edits, shared: Shared = None) -> Tensor:
        longest = max(map(len, ids))
        padding = torch.tensor([longest - len(row) for row in ids], device=self.lm.device)
        padded = torch.tensor([[0] * (longest - len(row)) + list(row) for row in ids], device=self.lm.device)
        return self._forward(rows, padded, padding, edits, shared)

    def _forward(
        self, rows: Rows, ids: Tensor, padding: Tensor, edits: Edits, shared: Shared = None
    ) -> Tensor:
        """Runs ids (B, T), the first `padding` of each row being none, and moves the rows on."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        index = rows.lengths[:, None] + steps - padding[:, None]
        real = steps >= padding[:, None]
        rows.mask = torch.cat([rows.mask, real.long()], dim=1)
        index = torch.where(real, index, -1)
        standing = nullcontext() if shared is None else shared.standing_in(self.lm.taps, rows.cache)
        with self.lm.lock, standing, edited(self.lm.taps, edits, rows, index):
            output = self.lm.taps.decoder(
                input_ids=ids,
                attention_mask=rows.mask,
                position_ids=index.clamp(min=0),
                past_key_values=rows.cache,
                use_cache=True,
            )
        rows.lengths = rows.lengths + real.sum(1)
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
                expected=f"at most {self.lm.max_length} tokens",
                given=f"{max(lengths)} and {self.room} more",
                next_step="generate fewer tokens, or leave out the longest prompts.",
            )
        for edit in self.edits:
            if edit is None:
                continue
            edit.site.check(self.lm.taps)
            inside = len(edit.first) == len(lengths) and all(
                0 <= first < length for first, length in zip(edit.first, lengths, strict=True)
            )
            if not inside:
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
    """Does the work batch by batch; a batch that does not fit into memory is tried again in halves.

    Raises:
        PatchError: a single prompt does not fit. JobCancelled: `should_stop` returned true.
    """
    queue, total, done = list(plan), sum(map(len, plan)), 0
    while queue:
        check_stop(should_stop)
        batch = queue.pop(0)
        try:
            work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise PatchError(
                    "One prompt under all conditions does not fit into the device's memory.",
                    given=f"prompt {batch[0]}",
                    next_step="run fewer conditions at once, use a smaller dtype or another device.",
                ) from error
            queue[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            torch.cuda.empty_cache()
            continue
        done += len(batch)
        if on_progress is not None:
            on_progress(done, total)


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
        at_site: dict[Site, list[_Share]] = defaultdict(list)
        for number, edit in enumerate(edits):
            at = torch.nonzero(rows.conditions == number)[:, 0]
            if edit is not None and len(at):
                at_site[edit.site].append((edit, at, Tokens(rows.prompts[at], index[at])))
        for site, shares in at_site.items():
            stack.callback(_install(taps, site, shares).remove)
        yield


_Share = tuple[Edit, Tensor, Tokens]
"""An edit, the rows it changes, and which tokens they are."""


def _install(taps: ModelTaps, site: Site, shares: Sequence[_Share]) -> Any:
    """One hook at a site for all its edits; returns its handle."""
    layer = taps.layers[site.layer]

    def changed(values: Tensor, columns: list[int] | None = None, factor: float = 1.0) -> Tensor:
        """The tensor with the edits' rows changed; `factor` times it is what the site holds."""
        out = values.clone()
        for edit, at, tokens in shares:
            rows = at.to(values.device)
            own = values[rows] if columns is None else values[rows][..., columns]
            new = edit.change(own if factor == 1.0 else own * factor, tokens).to(values.dtype)
            new = new if factor == 1.0 else new / factor
            if columns is None:
                out[rows] = new
            else:
                steps = torch.arange(values.shape[1], device=rows.device)
                out[rows[:, None, None], steps[:, None], torch.tensor(columns, device=rows.device)] = new
        return out

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (changed(first_tensor(args)), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(first_tensor(kwargs["hidden_states"]))}

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        factor = 1.0 if site.component == "resid_post" else layer.multiplier
        return replace_first(output, changed(first_tensor(output), None, factor))

    def into_projection(module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (changed(args[0], head_columns(taps, site)), *args[1:])

    def out_of_projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        out = output.clone()
        for edit, at, tokens in shares:
            rows = at.to(output.device)
            own = _head_sum(taps, site, args[0][rows])
            out[rows] += (edit.change(own, tokens).to(own) - own) / layer.multiplier
        return out

    match site.component:
        case "resid_pre":
            return layer.block.register_forward_pre_hook(before, with_kwargs=True)
        case "resid_post":
            return layer.block.register_forward_hook(after)
        case "attn_out":
            return layer.attn_contribution.register_forward_hook(after)
        case "mlp_out":
            return layer.mlp_contribution.register_forward_hook(after)
        case "head_z":
            return layer.o_proj.register_forward_pre_hook(into_projection)
    return layer.o_proj.register_forward_hook(out_of_projection)


def head_columns(taps: ModelTaps, site: Site) -> list[int]:
    """The columns of z that belong to the site's heads."""
    heads = range(taps.n_heads) if site.heads is None else site.heads
    return [head * taps.head_dim + i for head in heads for i in range(taps.head_dim)]


def _head_sum(taps: ModelTaps, site: Site, z: Tensor) -> Tensor:
    """What the site's heads add to the stream, (B, T, d), without the projection's bias."""
    layer = taps.layers[site.layer]
    kept, columns = torch.zeros_like(z), head_columns(taps, site)
    kept[..., columns] = z[..., columns]
    weight: Any = layer.o_proj.weight
    product = kept @ (weight if layer.family.transposed else weight.T)
    return product * layer.multiplier
