"""What can be known of a study before any weight is loaded: prompts, tokens, positions, shapes, cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from app.build import plan_bytes, plan_subspaces, plan_times
from app.build.encoded import (
    alike_tokenizers,
    encode_all,
    resolve_positions,
    usable_prompts,
    with_answers,
)
from app.build.weights import check_comparable, rows_told
from app.frame.words import size
from engine.errors import PromptsError, StudyError
from engine.models.loading import resolve_device
from engine.models.sites import ModelTaps
from engine.models.skeleton import planned
from engine.models.sources import load_tokenizer
from engine.models.tokenizer import check_known, check_vocabulary, other_tokenizer, vocabulary_of
from engine.passes.batching import capture_order
from engine.passes.cost import ModelPlan as Cost
from engine.passes.cost import plan_model
from engine.prompts.generated import ANSWERS, Answer, Asked, read_otherwise
from engine.prompts.overlap import vocabularies, vocabulary_overlap
from engine.prompts.positions import Positions
from engine.prompts.table import assign_splits, read_prompts, shared_rows
from engine.prompts.tokens import eos_note
from engine.prompts.usable import unused_columns
from engine.study.study import ModelSpec, Study
from engine.subspaces.prompts import SubspacePrompts, subspace_prompts
from engine.weights.names import Names
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
        names: per model, its parameters and vocabulary as they are compared with the first model's.
        subspaces: prompts of subspace scores, None for a study without [subspaces].
        notes: per model, what is not quite as the study says.
        remarks: the same of the prompts.
        asked: prompts that a model of the study answers, None for a study with other answers or none.
        answers: what it said, by the prompt's id; None before it did: texts of the greatest length stand in.
    """

    study: Study
    table: pl.DataFrame
    encoded: dict[str, pl.DataFrame]
    vocabularies: dict[str, pl.DataFrame]
    overlap: pl.DataFrame
    positions: dict[str, dict[str, Positions]]
    shapes: dict[str, ModelTaps]
    names: dict[str, Names]
    subspaces: SubspacePrompts | None = None
    notes: Mapping[str, list[str]] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    asked: Asked | None = None
    answers: Mapping[str, Answer] | None = None

    @staticmethod
    def of(study: Study, answers: Mapping[str, Answer] | None = None) -> Prepared:
        """Reads, splits, renders and tokenises; nothing is written and no weight is loaded.

        Args:
            answers: see the attribute.

        Raises:
            StudyError, PromptsError, ModelError: whatever can be known of the study from configs, headers,
                tables and prompts to be impossible.
        """
        notes: dict[str, list[str]] = {name: [] for name in study.models}
        shapes, tokenizers, names = _models(study, notes)
        table = read_prompts(study.prompts)
        remarks = unused_columns(table, study.prompts)
        alike = alike_tokenizers(tokenizers, shapes)
        reach = {name: shapes[name].max_length for name in dict.fromkeys(alike.values())}
        table, asked, foretold, reach = with_answers(
            study, table, tokenizers, shapes, alike, reach, answers, remarks
        )
        one = encode_all(foretold, table, tokenizers, reach)
        table, one = usable_prompts(foretold, table, one, reach, remarks)
        if asked is not None and answers is not None:
            eos = tokenizers[asked.model].eos_token_id if study.prompts.keep_eos else None
            other = read_otherwise(one[alike[asked.model]], asked, answers, eos)
            remarks += [] if other is None else [other]
        for name in one:
            note = eos_note(table, tokenizers[name], study.prompts)
            remarks += [] if note is None else [f"model {name}: {note}"]
        for name, frame in one.items():
            check_known(frame, tokenizers[name], name)
        encoded = {name: one[alike[name]] for name in study.models}
        known = vocabularies(encoded, tokenizers)
        kept = shared_rows(table, encoded, known, study.prompts)
        table, encoded = table[kept], {name: frame[kept] for name, frame in encoded.items()}
        for name, frame in encoded.items() if foretold is study else ():
            notes[name] += _told_of_sides(frame, shapes[name].rotary_switch)
        _check_enough(table)
        table = assign_splits(table, study.prompts.validation, study.seed)
        order = capture_order([frame["token_ids"].list.len().to_list() for frame in encoded.values()])
        table, encoded = table[order], {name: frame[order] for name, frame in encoded.items()}
        places = {name: resolve_positions(foretold, table, encoded[name], tokenizers[name]) for name in one}
        resolved = {name: places[alike[name]] for name in study.models}
        subspaces = _subspaces(study, table, tokenizers, reach, names)
        overlap = vocabulary_overlap(tokenizers)
        return Prepared(
            study,
            table,
            encoded,
            known,
            overlap,
            resolved,
            shapes,
            names,
            subspaces,
            notes,
            tuple(remarks),
            asked,
            answers,
        )

    def answers_table(self) -> pl.DataFrame | None:
        """Every answer that was generated, also to prompts that are dropped; None for other studies."""
        if self.asked is None or self.answers is None:
            return None
        rows = [{"id": name, **vars(self.answers[name])} for name in self.asked.ids]
        return pl.DataFrame(rows, schema=ANSWERS)

    def token_ids(self, model: str) -> list[list[int]]:
        """Tokens of every prompt, in capture order."""
        return self._token_ids[model]

    @cached_property
    def _token_ids(self) -> dict[str, list[list[int]]]:
        return {name: frame["token_ids"].to_list() for name, frame in self.encoded.items()}

    def lengths(self, model: str) -> list[int]:
        """Tokens per prompt, in capture order."""
        found: list[int] = self.encoded[model]["token_ids"].list.len().to_list()
        return found

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
            for name in capture.position_names
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
            layers=self._blocks(),
            unit_prompts=capture.unit_prompts,
            dtype=capture.dtype,
        )

    def _blocks(self) -> tuple[int, ...] | None:
        """Blocks that are stored; None for all."""
        capture = self.study.capture
        if capture.layers == "all" and capture.stride == 1:
            return None
        return capture.blocks(min(shape.n_layers for shape in self.shapes.values()))

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


def _models(
    study: Study, notes: Mapping[str, list[str]]
) -> tuple[dict[str, ModelTaps], dict[str, Any], dict[str, Names]]:
    """Of every model its parts on the meta device, its tokenizer, and its parameters as they are compared."""
    shapes = {name: planned(spec, notes[name]) for name, spec in study.models.items()}
    for name, shape in shapes.items():
        _check_heads(study, name, shape, study.capture.blocks(shape.n_layers))
    _check_stride(study, shapes)
    tokenizers = {name: _tokenizer(spec, shapes[name], notes[name]) for name, spec in study.models.items()}
    names = {name: Names(shape.model, vocabulary_of(tokenizers[name])) for name, shape in shapes.items()}
    check_comparable(study, names)
    for name, told in rows_told(names).items():
        notes[name].append(told)
    return shapes, tokenizers, names


def _tokenizer(spec: ModelSpec, shape: ModelTaps, notes: list[str]) -> Any:
    """The tokenizer of a model; ModelError when it isn't there or is clearly another one's."""
    tokenizer = load_tokenizer(spec)
    embedding: Any = shape.embed
    check_vocabulary(tokenizer, int(embedding.weight.shape[0]))
    other = other_tokenizer(spec, tokenizer)
    notes += [] if other is None else [other]
    return tokenizer


def _told_of_sides(encoded: pl.DataFrame, switch: int | None) -> list[str]:
    """A note where prompts lie on both sides of LongRoPE's switch."""
    long = 0 if switch is None else int((encoded["token_ids"].list.len() > switch).sum())
    if not 0 < long < encoded.height:
        return []
    return [
        f"{long} of {encoded.height} prompts are longer than {switch} tokens, from where on the model turns "
        "queries and keys by other factors (LongRoPE): prompts of the two sides are run apart, and a "
        "comparison between them compares the factors too"
    ]


def _check_enough(table: pl.DataFrame) -> None:
    """PromptsError for a single prompt: Gram matrices and every comparison are over prompts."""
    if table.height < 2:
        raise PromptsError(
            "A study of one prompt compares nothing.",
            expected="at least two prompts",
            given=table.height,
            next_step="add prompts, or raise prompts.limit (or --limit).",
        )


def _check_stride(study: Study, shapes: Mapping[str, ModelTaps]) -> None:
    """A stride names the same blocks of every model only where all are as deep."""
    depths = {name: shape.n_layers for name, shape in shapes.items()}
    if study.capture.stride > 1 and len(set(depths.values())) > 1:
        raise StudyError(
            "Each n-th block is not the same blocks in models of different depth.",
            expected="models of one depth with capture.stride above 1",
            given=", ".join(f"{name}: {depth} blocks" for name, depth in depths.items()),
            next_step="list the blocks in capture.layers.",
        )


def _check_heads(study: Study, name: str, shape: ModelTaps, blocks: Sequence[int]) -> None:
    lacking = [block for block in blocks if not shape.layers[block].has_heads]
    if lacking and "head_z" in study.capture.components:
        raise StudyError(
            f"The study captures head_z, which {len(lacking)} of {len(blocks)} blocks of {name!r} lack.",
            expected="blocks with attention: " + ", ".join(str(b) for b in blocks if b not in lacking),
            given=f"a {shape.family.name} model, whose other blocks mix tokens by a recurrent state",
            next_step='set capture.components = ["resid", "attn_out", "mlp_out"], or other capture.layers.',
        )


def _check_plain(study: Study) -> None:
    """StudyError for subspace scores of a first model that is to run on quantised weights."""
    first, spec = next(iter(study.models.items()))
    if spec.quantised is not None:
        raise StudyError(
            f"Subspace scores need plain weights, and {first!r} is to run on quantised ones.",
            expected="a first model whose weights are unpacked",
            given=f'models.{first}.quantised = "live"',
            next_step=f"leave out models.{first}.quantised, or [subspaces].",
        )


def _subspaces(
    study: Study,
    table: pl.DataFrame,
    tokenizers: Mapping[str, Any],
    reach: Mapping[str, int],
    names: Mapping[str, Names],
) -> SubspacePrompts | None:
    if study.subspaces is None:
        return None
    _check_plain(study)
    plan_subspaces.check_deltas(study, names)
    first = next(iter(study.models))
    return subspace_prompts(
        table,
        tokenizers[first],
        study.prompts,
        study.subspaces,
        seed=study.seed,
        max_length=reach[first],
    )


def describe_plan(prepared: Prepared) -> str:
    """The cost of a study as text: bytes, memory, forward passes and time, per model and in all."""
    prepared.store_plan()
    costs = prepared.costs()
    lines = [f"{prepared.study.name}: {len(prepared.table)} prompts, {len(costs)} models"]
    if prepared.asked is not None and prepared.answers is None:
        lines.append(
            f"answers: {prepared.asked.model} gives {len(prepared.asked.ids)} before anything is captured; "
            f"what follows takes each as {prepared.asked.most} tokens long, and positions in them as there"
        )
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
    raw = sum(cost.activation_bytes for cost in costs)
    written = plan_bytes.store_bytes(prepared)
    parts = ", ".join(f"{kind} {size(count)}" for kind, count in written.items() if count)
    lines.append(f"disk: about {size(sum(written.values()))} ({parts}; activations {size(raw)} uncompressed)")
    taken = plan_times.seconds(prepared, costs)
    told = ", ".join(f"{what} {_seconds(value)}" for what, value in taken.items() if value)
    lines.append(f"time: about {_seconds(sum(taken.values()))} on {_devices(prepared)} ({told})")
    lines += plan_subspaces.describe(prepared)
    lines += [f"note: prompts: {remark}" for remark in prepared.remarks]
    lines += [f"note: model {name}: {note}" for name, notes in prepared.notes.items() for note in notes]
    return "\n".join(lines)


def _devices(prepared: Prepared) -> str:
    return ", ".join(dict.fromkeys(str(resolve_device(m.device)) for m in prepared.study.models.values()))


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
