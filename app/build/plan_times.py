"""How long a precompute will take, part by part, from rates that are measured here in a moment.

Forward passes are counted as they will be run: batches of the capture, single prompts of the self-checks,
both signs of every label. Products run at the rate of linear layers of the model's width and dtype on its
device. What is no product has constants, measured on a 2-core Xeon virtual machine without bfloat16 units;
those of calls and small steps are brought to this machine's pace.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch

from app.build.plan_changes import Change, changes
from engine.models.loading import resolve_device
from engine.models.sites import ModelTaps
from engine.passes.cost import BLOCK_SECONDS, BYTES, ModelPlan, linear_rate, pace
from engine.passes.decoding import decode_tokens
from engine.prompts.generated import TOGETHER
from engine.similarity.sampling import keeps_grams
from engine.subspaces.prompts import PERSONAS

if TYPE_CHECKING:
    from app.build.prepare import Prepared

__all__ = ["seconds"]

START = 8.0
"""Libraries are imported, prompts read."""
READ, WRITTEN = 4e8, 1.5e8
"""Bytes a second: of weights that are loaded and checked; of arrays that are compressed and written."""
UNPACKED = 1e7
"""Numbers of a GGUF file that are unpacked in a second."""
LOADING = 0.3
CHECKED, SAMPLED, FEW = 6, 8, 4
"""Prompts of a model's self-checks, of those that are compared with the store, of subspace scores' checks."""
SINGLE, BATCHED = 4, 14
"""Passes of each checked prompt alone, and of all of them together (both paddings, the patch engine's)."""
SITE_SECONDS = 8e-5
"""To compare one site of one pass with another's."""
DECOMPOSED = 3e9
"""Floating-point operations a second of the decompositions of head kernels and of dense differences."""
SCORED_SECONDS = 0.3
"""Of the stored scores, for each weight change and block of width 128."""


def seconds(prepared: Prepared, costs: Sequence[ModelPlan]) -> dict[str, float]:
    """Seconds by part, in the order that they are spent."""
    found = changes(prepared.study, prepared.names)
    models = [_Model(prepared, cost, found.get(cost.name)) for cost in costs]
    written = sum(cost.activation_bytes for cost in costs) / WRITTEN
    parts = {
        "start": START * pace(),
        "answers": sum(model.answers for model in models),
        "loading": sum(model.loading for model in models),
        "capture": sum(cost.seconds for cost in costs) + written,
        "weights": sum(model.weights + model.differences for model in models),
        "self-checks": sum(model.checks for model in models),
    }
    parts["subspace scores"] = _subspaces(prepared, models[0], found)
    return parts | {"Grams": _grams(prepared)}


class _Model:
    """Seconds of one model's parts."""

    def __init__(self, prepared: Prepared, cost: ModelPlan, change: Change | None) -> None:
        self.prepared, self.cost, self.change = prepared, cost, change
        self.shape: ModelTaps = prepared.shapes[cost.name]
        spec = prepared.study.models[cost.name]
        self.device, self.dtype = resolve_device(spec.device), getattr(torch, spec.dtype)
        self.per_token = cost.flops / max(1, cost.padded)
        self.head = 2.0 * self.shape.vocab * self.shape.d
        self.packed = spec.gguf is not None

    def passes(self, tokens: int, count: int, dtype: torch.dtype, *, alone: bool = True) -> float:
        """Of so many passes over so many tokens together."""
        rate = linear_rate(self.device, dtype, self.shape.d, 48 if alone else 512)
        return tokens * self.per_token / rate + count * self.shape.n_layers * BLOCK_SECONDS * pace()

    @property
    def loading(self) -> float:
        identities = self.passes(12 * 4, 4, self.dtype)
        unpacked = self.cost.parameters / UNPACKED if self.packed else 0.0
        times = 1 if self.prepared.study.models[self.cost.name].quantised is None else 2  # unpacked, too
        return times * (LOADING * pace() + self.cost.weight_bytes / READ + identities) + unpacked

    @property
    def checks(self) -> float:
        lengths = self.prepared.lengths(self.cost.name)
        few = sum(lengths[i] for i in self.prepared.sample(CHECKED))
        more = sum(lengths[i] for i in self.prepared.sample(SAMPLED))
        alone = self.passes(SINGLE * few, SINGLE * CHECKED, self.dtype)
        together = self.passes(BATCHED * few + more, BATCHED + 1, self.dtype, alone=False)
        rate = linear_rate(self.device, self.dtype, self.shape.d, 48)
        logits = SINGLE * CHECKED * self.head / rate
        if self.change is not None and self.change.related and (self.change.ranks or self.change.dense):
            alone += 4 * few * self.head / rate + self.passes(4 * few, 4 * CHECKED, self.dtype)
        places = 1 + len(self.prepared.study.capture.positions)
        compared = SINGLE * CHECKED * places * 4 * self.shape.n_layers * SITE_SECONDS * pace()
        return alone + together + logits + compared

    @property
    def answers(self) -> float:
        """Of this model's answers, each as long as it may be, and of loading it for them."""
        asked = self.prepared.asked
        if asked is None or self.prepared.answers is not None or asked.model != self.cost.name:
            return 0.0
        n, read = len(asked.ids), sum(map(len, asked.token_ids))
        rows = max(1, min(n, TOGETHER, decode_tokens(self.device) * n // (read + n * asked.most)))
        batches = -(-n // rows)
        steps = self.passes(read, batches, self.dtype, alone=False)
        rate = linear_rate(self.device, self.dtype, self.shape.d, rows)
        steps += n * asked.most * (self.per_token + self.head) / rate
        steps += batches * asked.most * self.shape.n_layers * BLOCK_SECONDS * pace()
        return self.loading + steps

    @property
    def weights(self) -> float:
        """Kernels and gates of the blocks that no earlier model has, and what is written of them."""
        shape = self.shape
        blocks = shape.n_layers
        if self.change is not None:
            names = {*self.change.ranks, *self.change.dense}
            touched = [i for i in range(blocks) if any(_reads(name, i) for name in names)]
            blocks = len(touched)
        heads = shape.n_heads + shape.n_kv_heads
        kernels = 2 * 8.0 * heads * shape.d * shape.head_dim**2 / DECOMPOSED
        each = self.cost.piece_bytes / max(1, shape.n_layers)
        hashed = self.cost.weight_bytes / (4 * WRITTEN)
        return blocks * (kernels + 0.02 + each / WRITTEN) + hashed

    @property
    def differences(self) -> float:
        if self.change is None:
            return self.cost.weight_bytes / (2 * READ)  # put aside
        total = self.cost.weight_bytes / (2 * READ)  # compared
        rate = linear_rate(self.device, torch.float32, self.shape.d)
        for name, parameter in self.shape.model.named_parameters():
            shape = tuple(parameter.shape)
            if name in self.change.dense and len(shape) == 2 and self.change.related:
                small = min(shape)
                total += prod(shape) * (8.0 * 72 + 4.0 * small) / rate + 10.0 * small**3 / DECOMPOSED
                total += 2 * prod(shape) * 4 / WRITTEN + 0.04
            elif name in self.change.ranks:
                total += 10.0 * sum(shape) * self.change.ranks[name] ** 2 / DECOMPOSED + 0.01
        return total


def _reads(name: str, block: int) -> bool:
    """Whether a changed tensor is one that a block's kept weights are made of."""
    inside = f".{block}." in name
    return inside and not any(part in name for part in ("o_proj", "down_proj", "up_proj", "v_proj"))


def _subspaces(prepared: Prepared, first: _Model, found: dict[str, Change]) -> float:
    chosen, study = prepared.subspaces, prepared.study
    if chosen is None:
        return 0.0
    assert study.subspaces is not None
    own = [n for n, change in found.items() if change.related and (change.ranks or change.dense)]
    deltas = len(study.subspaces.deltas or own)
    lengths = prepared.lengths(first.cost.name)
    clean = sum(lengths[row] for row in chosen.fit)
    personas = sum(len(ids) for persona in PERSONAS for ids in chosen.token_ids(persona))
    labelled = clean + sum(lengths[row] for row in chosen.evaluate)
    batch = study.capture.batch_tokens
    tokens = clean + personas + 2 * deltas * labelled
    passes = 3 + tokens // batch + 2 * deltas
    total = first.loading + first.passes(tokens, passes, torch.float32, alone=False)
    few = FEW * (1 + 2 * deltas)
    mean = sum(lengths) // len(lengths)
    total += first.passes(SINGLE * few * mean, SINGLE * few, torch.float32)
    total += SINGLE * few * first.head / linear_rate(first.device, torch.float32, first.shape.d, 48)
    wide = BYTES["float32"] * first.cost.parameters
    total += (passes + SINGLE * few) * wide * (first.dtype != torch.float32) / (8 * READ)
    total += (wide + 4 * first.shape.n_layers * first.shape.d * (personas + deltas * labelled)) / WRITTEN
    scored = SCORED_SECONDS * pace()
    return total + scored * deltas * first.shape.n_layers * max(1.0, first.shape.d / 128)


def _grams(prepared: Prepared) -> float:
    capture, n, total = prepared.study.capture, len(prepared.table), 0.0
    rows = min(n, capture.similarity_prompts)
    for shape in prepared.shapes.values():
        rate = linear_rate(torch.device("cpu"), torch.float32, shape.d) / 2
        for component in capture.components:
            width = shape.z_width if component == "head_z" else shape.d
            if keeps_grams(n, width, capture.similarity_prompts):
                count = shape.n_layers * len(capture.positions)
                total += count * (2.0 * rows**2 * width / rate + 8 * rows * width / WRITTEN + 0.005)
    return total
