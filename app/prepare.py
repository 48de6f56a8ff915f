"""What can be known of a study before any weight is loaded: prompts, tokens, positions, shapes, cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from app import plan_subspaces
from app.build_weights import check_comparable
from app.words import size
from engine.batching import capture_order
from engine.errors import PromptsError
from engine.fairness import vocabularies, vocabulary_overlap
from engine.plan import ModelPlan as Cost
from engine.plan import plan_model
from engine.positions import Positions, positions
from engine.prompts import assign_splits, encode, read_prompts, shared_rows
from engine.sites import ModelTaps
from engine.skeleton import load_tokenizer, skeleton
from engine.study import Study
from engine.subspace_prompts import SubspacePrompts, subspace_prompts
from store.plan import ModelPlan, PositionPlan, StorePlan

__all__ = ["Prepared", "describe_plan"]


@dataclass(frozen=True)
class Prepared:
    """A study's prompts in capture order, rendered and tokenised for every model.

    Attributes:
        table: prompts with their split; row i is row i of every activation array.
        encoded: per model the rendered text, token ids and character offsets, in the same order.
        vocabularies: per model the tokens that occur, and which other vocabularies have them.
        overlap: sizes of the whole vocabularies and of what they share, for each pair of models.
        positions: per model and position name, which tokens are meant.
        shapes: per model, its parts on the meta device.
        subspaces: prompts of subspace scores, None for a study without [subspaces].
    """

    study: Study
    table: pl.DataFrame
    encoded: dict[str, pl.DataFrame]
    vocabularies: dict[str, pl.DataFrame]
    overlap: pl.DataFrame
    positions: dict[str, dict[str, Positions]]
    shapes: dict[str, ModelTaps]
    subspaces: SubspacePrompts | None = None

    @staticmethod
    def of(study: Study) -> Prepared:
        """Reads, splits, renders and tokenises; raises StudyError, PromptsError or ModelError."""
        shapes = {name: skeleton(spec) for name, spec in study.models.items()}
        for shape in shapes.values():
            study.capture.blocks(shape.n_layers)
        check_comparable(study, shapes)
        table = read_prompts(study.prompts)
        tokenizers = {name: load_tokenizer(spec) for name, spec in study.models.items()}
        encoded = {
            name: encode(table, tokenizers[name], study.prompts, shapes[name].max_length)
            for name in study.models
        }
        known = vocabularies(encoded, tokenizers)
        kept = shared_rows(table, encoded, known, study.prompts)
        table, encoded = table[kept], {name: frame[kept] for name, frame in encoded.items()}
        table = assign_splits(table, study.prompts.validation, study.seed)
        order = capture_order([frame["token_ids"].list.len().to_list() for frame in encoded.values()])
        table, encoded = table[order], {name: frame[order] for name, frame in encoded.items()}
        resolved = {
            name: {
                position: positions(frame, position, tokenizers[name], study.seed)
                for position in study.capture.positions
            }
            for name, frame in encoded.items()
        }
        subspaces = _subspaces(study, table, tokenizers, shapes)
        overlap = vocabulary_overlap(tokenizers)
        return Prepared(study, table, encoded, known, overlap, resolved, shapes, subspaces)

    def token_ids(self, model: str) -> list[list[int]]:
        """Tokens of every prompt, in capture order."""
        return self._token_ids[model]

    @cached_property
    def _token_ids(self) -> dict[str, list[list[int]]]:
        return {name: frame["token_ids"].to_list() for name, frame in self.encoded.items()}

    def lengths(self, model: str) -> list[int]:
        """Tokens per prompt, in capture order."""
        return [len(ids) for ids in self.token_ids(model)]

    def sample(self, size: int) -> list[int]:
        """A few prompts drawn with the study's seed, ascending; the longest and the shortest among them."""
        n = len(self.table)
        drawn = np.random.default_rng(self.study.seed).permutation(n)[: max(0, size - 2)]
        return sorted({0, n - 1, *drawn.tolist()})

    def position_table(self, model: str) -> pl.DataFrame:
        """One row a prompt, one column a position: the token indices meant."""
        columns = {
            name: pl.Series([index.tolist() for index in position.indices], dtype=pl.List(pl.Int32))
            for name, position in self.positions[model].items()
        }
        return pl.DataFrame(columns)

    def store_plan(self) -> StorePlan:
        """The arrays that this study fills."""
        capture = self.study.capture
        places = {
            name: PositionPlan(
                kind=next(iter(self.positions.values()))[name].kind,
                row_counts=self._row_counts(name),
            )
            for name in capture.positions
        }
        sizes = {
            name: ModelPlan(shape.d, shape.n_layers, shape.n_heads, shape.head_dim)
            for name, shape in self.shapes.items()
        }
        return StorePlan(
            models=sizes,
            positions=places,
            n_prompts=len(self.table),
            components=capture.components,
            layers=None if capture.layers == "all" else capture.layers,
            unit_prompts=capture.unit_prompts,
            dtype=capture.dtype,
        )

    def _row_counts(self, position: str) -> dict[str, tuple[int, ...]] | None:
        resolved = {model: places[position] for model, places in self.positions.items()}
        if next(iter(resolved.values())).kind != "many":
            return None
        return {model: tuple(map(len, place.indices)) for model, place in resolved.items()}

    def costs(self) -> list[Cost]:
        """What capturing each model takes."""
        return [
            plan_model(
                name, self.shapes[name], spec, self.study.capture, self.lengths(name), self.positions[name]
            )
            for name, spec in self.study.models.items()
        ]


def _subspaces(
    study: Study,
    table: pl.DataFrame,
    tokenizers: Mapping[str, Any],
    shapes: Mapping[str, ModelTaps],
) -> SubspacePrompts | None:
    if study.subspaces is None:
        return None
    plan_subspaces.check_deltas(study, shapes)
    first = next(iter(study.models))
    return subspace_prompts(
        table,
        tokenizers[first],
        study.prompts,
        study.subspaces,
        seed=study.seed,
        max_length=shapes[first].max_length,
    )


def describe_plan(prepared: Prepared) -> str:
    """The cost of a study as text: bytes, memory, forward passes and time, per model and in all."""
    if not len(prepared.table):
        raise PromptsError("There are no prompts to plan for.", given="0 prompts")
    costs = prepared.costs()
    lines = [f"{prepared.study.name}: {len(prepared.table)} prompts, {len(costs)} models"]
    head = ("model", "parameters", "passes", "tokens", "padded", "memory", "activations", "Grams", "time")
    rows = [head]
    for cost in costs:
        rows.append(
            (
                cost.name,
                f"{cost.parameters / 1e6:,.1f} M",
                f"{cost.forward_passes:,}",
                f"{cost.tokens:,}",
                f"{cost.padded:,}",
                size(cost.weight_bytes + cost.batch_bytes),
                size(cost.activation_bytes),
                size(cost.gram_bytes),
                _seconds(cost.seconds),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    disk = sum(cost.activation_bytes + cost.gram_bytes + cost.piece_bytes for cost in costs)
    lines.append(
        f"disk: {size(disk)} before compression (weights kept for analyses: "
        f"{size(sum(cost.piece_bytes for cost in costs))}); "
        f"time: {_seconds(sum(cost.seconds for cost in costs))} of matrix products at the rate measured "
        "here, without loading models and writing."
    )
    lines += plan_subspaces.describe(prepared)
    return "\n".join(lines)


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
