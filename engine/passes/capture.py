"""Forward passes that keep activations: one unit of prompts in, arrays per position out.

The wanted positions are picked inside the hooks, so a batch never holds more than the picked rows of
all sites beside the forward pass itself. Prompts are padded on the right; the attention mask keeps
padding out of every real token's past, so a row equals the row of the prompt run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.errors import CaptureError, JobError
from engine.models.identities import overflow_advice
from engine.models.loading import LoadedModel
from engine.models.memory import Halved, in_halves
from engine.models.sites import Site, record
from engine.passes.batching import batches
from engine.prompts.positions import Positions

__all__ = [
    "Activations",
    "Selection",
    "capture_batch",
    "capture_unit",
    "forward_hidden",
    "token_clouds",
]

Activations = dict[tuple[str, int], np.ndarray]
"""(component, block or residual state) -> float32 (rows, width)."""


@dataclass(frozen=True)
class Selection:
    """Which rows of a padded (batch, token, width) tensor are kept: one gather and one average.

    Attributes:
        rows: flat indices into batch × token, (gathered,).
        mean: averaging weights (batch, average, token), summing to 1 over tokens; None without averages.
        slices: position name -> slice of the kept rows, gathered ones first.
    """

    rows: Tensor
    mean: Tensor | None
    slices: dict[str, slice]

    @staticmethod
    def build(
        positions: Mapping[str, Positions], prompts: Sequence[int], length: int, device: torch.device
    ) -> Selection:
        """Plans the selection for a batch of prompts padded to `length` tokens."""
        gathered: list[int] = []
        slices: dict[str, slice] = {}
        averages = [name for name, position in positions.items() if position.kind == "mean"]
        for name, position in positions.items():
            if name in averages:
                continue
            start = len(gathered)
            for slot, prompt in enumerate(prompts):
                gathered += [slot * length + int(token) for token in position.indices[prompt]]
            slices[name] = slice(start, len(gathered))
        mean = torch.zeros(len(prompts), len(averages), length)
        for column, name in enumerate(averages):
            start = len(gathered) + column * len(prompts)
            slices[name] = slice(start, start + len(prompts))
            for slot, prompt in enumerate(prompts):
                tokens = torch.as_tensor(positions[name].indices[prompt], dtype=torch.long)
                mean[slot, column, tokens] = 1.0 / len(tokens)
        rows = torch.tensor(gathered, dtype=torch.long, device=device)
        return Selection(rows, mean.to(device) if averages else None, slices)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(batch, token, width) -> (kept rows, width), float32."""
        hidden = hidden.to(self.rows.device)
        kept = hidden.flatten(0, 1)[self.rows].float()
        if self.mean is None:
            return kept
        averaged = torch.einsum("bat,btd->abd", self.mean, hidden.float())
        return torch.cat([kept, averaged.flatten(0, 1)])


def forward_hidden(lm: LoadedModel, token_ids: Sequence[Sequence[int]]) -> None:
    """Runs the decoder (no unembedding) over right-padded prompts; hooks see everything."""
    longest = max(len(ids) for ids in token_ids)
    ids = torch.zeros(len(token_ids), longest, dtype=torch.long)
    mask = torch.zeros(len(token_ids), longest, dtype=torch.long)
    for row, prompt in enumerate(token_ids):
        ids[row, : len(prompt)] = torch.as_tensor(prompt, dtype=torch.long)
        mask[row, : len(prompt)] = 1
    with torch.inference_mode():
        lm.taps.decoder(input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), use_cache=False)


def capture_unit(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    prompts: Sequence[int],
    positions: Mapping[str, Positions],
    *,
    components: Sequence[str],
    layers: Sequence[int] | None = None,
    batch_tokens: int,
    on_halved: Halved | None = None,
    names: Sequence[str] | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> dict[str, Activations]:
    """Captures the activations of one unit of prompts.

    Args:
        lm: the model.
        token_ids: tokens of *every* prompt of the study, so that `prompts` index into it.
        prompts: the unit's prompts, in capture order.
        positions: position name -> `Positions` of every prompt of the study.
        components: of "resid", "attn_out", "mlp_out", "head_z".
        layers: block indices; None for all.
        batch_tokens: padded tokens that go through the model at once.
        on_halved: told when a batch ran out of memory and is tried in halves; without it the log is.
        names: ids of every prompt of the study, for messages; without them numbers are told.
        advance: told how many prompts were run after each batch.

    Returns:
        position name -> {(component, block or state): float32 (rows, width)}; rows follow `prompts`
        (several rows a prompt for "many" positions).

    Raises:
        CaptureError: a single prompt does not fit into memory, or an activation is not finite.
    """
    plan = batches([len(token_ids[i]) for i in prompts], batch_tokens, lm.taps.rotary_switch)
    parts: dict[str, dict[tuple[str, int], list[np.ndarray]]] = {name: {} for name in positions}

    def run(batch: list[int]) -> None:
        captured = capture_batch(lm, token_ids, batch, positions, components, layers)
        for name, sites in captured.items():
            counts = [len(positions[name].indices[i]) if positions[name].kind == "many" else 1 for i in batch]
            for key, rows in sites.items():
                if not np.isfinite(rows).all():
                    raise not_finite(lm, key, name, [called(batch[i], names) for i in _bad(rows, counts)])
                parts[name].setdefault(key, []).append(rows)

    def refusal(prompt: int, error: Exception) -> CaptureError:
        return too_long(called(prompt, names), len(token_ids[prompt]), error)

    for done in in_halves([[prompts[i] for i in batch] for batch in plan], run, refusal, on_halved):
        advance(len(done))
    return {name: {key: np.concatenate(rows) for key, rows in sites.items()} for name, sites in parts.items()}


def capture_batch(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    batch: Sequence[int],
    positions: Mapping[str, Positions],
    components: Sequence[str],
    layers: Sequence[int] | None = None,
) -> dict[str, Activations]:
    """One forward pass over `batch`, padded to its longest prompt; arguments as in `capture_unit`."""
    rows = [token_ids[i] for i in batch]
    selection = Selection.build(positions, batch, max(map(len, rows)), lm.device)
    with record(lm.taps, components, layers, select=selection) as recording:
        forward_hidden(lm, rows)
    kept = {key: value.cpu().numpy() for key, value in recording.items()}
    return {
        name: {key: value[where] for key, value in kept.items()} for name, where in selection.slices.items()
    }


def token_clouds(
    lm: LoadedModel,
    token_ids: Sequence[Sequence[int]],
    where: Sequence[np.ndarray],
    site: Site,
    *,
    batch_tokens: int,
    should_stop: Callable[[], bool] | None = None,
) -> list[np.ndarray]:
    """Activations of some tokens of every prompt at one site, float32 (tokens, width) a prompt.

    Args:
        where: token indices of each prompt, ascending, at least one.
        site: any but head_out, all heads.
        batch_tokens: padded tokens that go through the model at once.
        should_stop: asked between batches; true raises JobError.
    """
    every = {"tokens": Positions("tokens", "many", tuple(where))}
    key, found = (site.component, site.layer), []
    order = sorted(range(len(token_ids)), key=lambda prompt: -len(token_ids[prompt]))
    lengths = [len(token_ids[prompt]) for prompt in order]
    for slots in batches(lengths, batch_tokens, lm.taps.rotary_switch):
        batch = [order[slot] for slot in slots]
        if should_stop is not None and should_stop():
            raise JobError("The job was cancelled.")
        captured = capture_unit(
            lm,
            token_ids,
            batch,
            every,
            components=[site.component],
            layers=[site.layer],
            batch_tokens=batch_tokens,
        )
        ends = np.cumsum([len(where[prompt]) for prompt in batch])[:-1]
        found += list(zip(batch, np.split(captured["tokens"][key], ends), strict=True))
    return [cloud for _, cloud in sorted(found, key=lambda pair: pair[0])]


def called(prompt: int, names: Sequence[str] | None) -> str:
    """A prompt as messages call it: by its id, or by its number where ids are not at hand."""
    return f"prompt {prompt}" if names is None else f"prompt {names[prompt]!r}"


def too_long(prompt: str, tokens: int, error: Exception) -> CaptureError:
    """What to raise when a batch of this one prompt ran out of memory."""
    return CaptureError(
        "A single prompt does not fit into the device's memory.",
        given=f"{prompt} of {tokens} tokens ({error})",
        next_step="leave that prompt out, load the model in bfloat16, or use a larger device.",
    )


def _bad(rows: np.ndarray, counts: Sequence[int]) -> list[int]:
    """Which prompts of a batch have a number that is not finite, given how many rows each has."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return sorted(set(owner[~np.isfinite(rows).all(axis=1)].tolist()))


def not_finite(lm: LoadedModel, site: tuple[str, int], position: str, prompts: Sequence[str]) -> CaptureError:
    """What to raise for activations with NaN or infinity.

    Args:
        site: component and layer. prompts: whose activations, as messages call them.
    """
    more = f" and {len(prompts) - 1} more" if len(prompts) > 1 else ""
    return CaptureError(
        f"Model {lm.name!r} produced activations that are not finite.",
        expected="finite numbers at every site",
        given=f"NaN or infinity at {site[0]}, layer {site[1]}, position {position}, of {prompts[0]}{more}",
        next_step=overflow_advice(lm.dtype),
    )
