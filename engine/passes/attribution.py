"""Cheap predictors of what substituting a head does: gradient × activation, and direct logit attribution.

A KL has no gradient at the model's own activation (it is 0 there, and at its minimum), so both predict

    m = log p(t),  t the target's own most likely next token, kept fixed,

the simplest number that a patch moves to first order and that exists at every prompt and in every pair of
models; a logit difference between the two models' tokens would be 0 by definition wherever they agree.

- Gradient × activation: ∂m/∂u · Δu, u what the output projection returns at the patched token and Δu what a
  head's substitution changes there. It is first order in the patch and takes every later block along.
- Direct logit attribution (Elhage et al. 2021): the same Δu through the final norm with its scale frozen and
  the unembedding to m, past all later blocks. Zero where another token than the patched one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from engine.errors import JobError, PatchError
from engine.models.loading import LoadedModel
from engine.models.memory import in_halves, out_of_memory
from engine.models.rotary import turned
from engine.models.sites import first_tensor, replace_first
from engine.models.taps import ModelTaps
from engine.passes.batching import sides

BATCH_TOKENS = 2048
"""Padded tokens of a batch on a CPU, four times as many elsewhere: gradients keep every activation."""


@dataclass(frozen=True)
class Gradients:
    """First-order facts about n prompts, float32 on the CPU.

    Attributes:
        token: t, the most likely next token. log_prob: m.
        at_output: block -> ∂m/∂u at the patched token, u the output projection's result.
        direct: ∂m/∂stream at the token read, final norm frozen, later blocks left out; 0 where the token
            read isn't the patched one.
    """

    token: Int64[Tensor, " n"]
    log_prob: Float[Tensor, " n"]
    at_output: dict[int, Float[Tensor, "n d"]]
    direct: Float[Tensor, "n d"]


def gradients(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    positions: Sequence[int],
    reads: Sequence[int],
    layers: Sequence[int],
    *,
    batch_tokens: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Gradients:
    """One forward and one backward pass over some prompts, for all asked blocks at once.

    Args:
        token_ids: per prompt, no padding. positions, reads: patched token and token read of each.
        layers: blocks whose `at_output` is wanted.
        should_stop: asked between batches; true raises JobError.

    Raises:
        PatchError: the pass of a single prompt does not fit into memory, or the model runs on codes through
            which its layers have no gradient here.
    """
    taps, n = lm.taps, len(token_ids)
    size = batch_tokens or (BATCH_TOKENS if lm.device.type == "cpu" else 4 * BATCH_TOKENS)
    at_output = {layer: torch.zeros(n, taps.d) for layer in layers}
    direct, log_prob = torch.zeros(n, taps.d), torch.zeros(n)
    token = torch.zeros(n, dtype=torch.int64)

    def run(rows: list[int]) -> None:
        if should_stop is not None and should_stop():
            raise JobError("The job was cancelled.")
        seen = [list(token_ids[r][: reads[r] + 1]) for r in rows]
        places, last = ([values[r] for r in rows] for values in (positions, reads))
        whole = len(token_ids[rows[0]])
        with (
            lm.lock,
            torch.inference_mode(False),
            torch.enable_grad(),
            turned(lm.model, taps.rotary_switch, whole),
            _refusing(lm),
        ):
            found = _batch(taps, lm.device, seen, places, last, layers)
        token[rows], log_prob[rows] = found.token, found.log_prob
        here = torch.tensor([p == r for p, r in zip(places, last, strict=True)])
        direct[rows] = torch.where(here[:, None], found.direct, torch.zeros(()))
        for layer in layers:
            at_output[layer][rows] = found.at_output[layer]

    lengths = [read + 1 for read in reads]
    apart = sides([len(ids) for ids in token_ids], taps.rotary_switch)
    plan = (batch for prompts in apart for batch in _batches(lengths, prompts, size))
    for _ in in_halves(plan, run, _too_long):
        pass
    return Gradients(token, log_prob, at_output, direct)


@contextmanager
def _refusing(lm: LoadedModel) -> Iterator[None]:
    """Layers of codes come from elsewhere, and not all of them can be differentiated on every device."""
    try:
        yield
    except RuntimeError as error:
        if not lm.live or out_of_memory(error):
            raise
        raise PatchError(
            f"No gradient can be taken through the quantised layers of {lm.name!r} on {lm.device}.",
            expected="layers that can be differentiated",
            given=" ".join(str(error).split())[:200],
            next_step='leave out quantised = "live", so that the weights are unpacked.',
        ) from error


def _too_long(prompt: int, error: Exception) -> PatchError:
    return PatchError(
        "The gradients of a single prompt do not fit into the device's memory.",
        given=f"prompt {prompt} ({error})",
        next_step="leave that prompt out, use a smaller dtype or another device.",
    )


def _batches(lengths: Sequence[int], prompts: Sequence[int], size: int) -> Iterator[list[int]]:
    """Some prompts, those of similar length together, at most `size` padded tokens of them."""
    order = sorted(prompts, key=lambda p: lengths[p])
    rows: list[int] = []
    for prompt in order:
        if rows and (len(rows) + 1) * lengths[prompt] > size:
            yield rows
            rows = []
        rows.append(prompt)
    if rows:
        yield rows


def _batch(
    taps: ModelTaps,
    device: torch.device,
    seen: Sequence[Sequence[int]],
    places: Sequence[int],
    last: Sequence[int],
    layers: Sequence[int],
) -> Gradients:
    """`gradients` of prompts that run together, filled up on the right, where no token looks."""
    ids = torch.zeros(len(seen), max(map(len, seen)), dtype=torch.int64)
    for row, tokens in enumerate(seen):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    rows, end = torch.arange(len(seen)), torch.tensor(last)
    with (
        _offsets(taps, layers, rows, torch.tensor(places)) as offsets,
        _input_of(taps.final_norm) as entering,
    ):
        output = taps.decoder(input_ids=ids.to(device), use_cache=False)
        normed = output.last_hidden_state[rows, end]
        stream = entering[0].detach()[rows, end]
        readout = normed.detach().requires_grad_()
        logits = taps.logits(readout)
        token = logits.detach().argmax(-1)
        log_prob = logits.float().log_softmax(-1).gather(1, token[:, None])[:, 0]
        (slope,) = torch.autograd.grad(log_prob.sum(), readout)
        at_output = torch.autograd.grad(normed, [offsets[layer] for layer in layers], slope) if layers else ()
    return Gradients(
        token.cpu(),
        log_prob.detach().cpu(),
        {layer: g.float().cpu() for layer, g in zip(layers, at_output, strict=True)},
        _through_frozen_norm(taps, stream.float(), normed.detach().float(), slope.float()).cpu(),
    )


@contextmanager
def _offsets(
    taps: ModelTaps, layers: Sequence[int], rows: Tensor, places: Tensor
) -> Iterator[dict[int, Tensor]]:
    """Adds a zero of its own to each block's attention output at the patched tokens, to differentiate by."""
    found: dict[int, Tensor] = {}

    def adding(layer: int) -> Callable[[nn.Module, object, object], object]:
        def hook(_module: nn.Module, _args: object, output: object) -> object:
            value = first_tensor(output).clone()
            found[layer] = torch.zeros_like(value[rows, places]).requires_grad_()
            value[rows, places] = value[rows, places] + found[layer]
            return replace_first(output, value)

        return hook

    handles = [taps.layers[layer].o_proj.register_forward_hook(adding(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of a module's next call."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(first_tensor(args)))
    try:
        yield seen
    finally:
        handle.remove()


def _through_frozen_norm(taps: ModelTaps, stream: Tensor, normed: Tensor, slope: Tensor) -> Tensor:
    """Gradient by the stream from the gradient by the normed stream, the norm's scale taken as constant.

    The norm is y = gain ⊙ (x − c·mean x)·s + bias with c = 1 for a layer norm and 0 for an RMS norm; which of
    them it is shows in what it makes of x + 1, and s is the one that turns x into y.
    """
    gain = taps.gain(taps.final_norm).to(stream.device)
    bias = taps.norm_bias(taps.final_norm)
    size = stream.pow(2).mean(-1, keepdim=True).sqrt()
    dtype = taps.embed.weight.dtype
    with torch.no_grad():
        moved = taps.final_norm((stream + size).to(dtype)).float()  # type: ignore[arg-type]
    spread = (normed - normed.mean(-1, keepdim=True)).abs().amax().clamp_min(1e-12)
    centred = bool((moved - normed).abs().amax() < 0.05 * spread)
    inner = gain * (stream - stream.mean(-1, keepdim=True) if centred else stream)
    outer = normed if bias is None else normed - bias.to(normed.device)
    scale = (inner * outer).sum(-1, keepdim=True) / inner.pow(2).sum(-1, keepdim=True).clamp_min(1e-30)
    back = slope * gain * scale
    return back - back.mean(-1, keepdim=True) if centred else back
