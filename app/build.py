"""From a study to a finished store: prepare prompts, capture every model, derive what the pages read.

Each stage is skipped when the store already has it, so the same call resumes after any interruption.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from app import terminal
from app.build_subspaces import write_subspaces
from app.build_weights import read_deltas, steerable, write_contrasts, write_weights
from app.derive import derive
from app.headless import run_all
from app.parallel import capture_in_parallel
from app.prepare import Prepared
from app.provenance import provenance
from app.subspace_inputs import PROMPTS, TOKENS, has_subspaces
from engine.capture import capture_unit
from engine.errors import CaptureError, StoreError
from engine.experiments.subspace_scores import SubspaceScores
from engine.model import LoadedModel, load
from engine.results import SelfCheck
from engine.self_checks import (
    check_capture,
    check_logits,
    check_self_patch,
    check_stored,
    check_weight_shift,
)
from engine.study import Study, diff_studies
from store.reader import Store
from store.writer import StoreWriter

__all__ = ["build"]

CHECKED_PROMPTS = 6
SAMPLED_PROMPTS = 8
SHIFTED_TENSORS = 16
"""Tensors of a weight difference that the check of steering at α = 0 puts on."""


@dataclass
class Progress:
    """What the terminal shows: one bar over the prompts of all models, and a line for each stage."""

    quiet: bool = False

    def stage(self, text: str) -> None:
        if not self.quiet:
            tqdm.write(text)

    def bar(self, total: int, done: int, what: str) -> Any:
        return terminal.bar(
            total=total, initial=done, desc=what, unit="prompt", disable=self.quiet, smoothing=0.1
        )


def build(
    study: Study, path: Path, *, quiet: bool = False, workers: int = 1, allow_code: bool = False
) -> Store:
    """Computes the store of a study, or finishes one that was interrupted.

    Args:
        workers: more than 1 captures on that many Ray actors (see `app.parallel`).
        allow_code: let the study's own candidates run, where it names some.

    Returns:
        the finished store, with subspace scores where the study asks for them.

    Raises:
        PatchbayError: anything that is wrong with the study, its files, the models or the folder; and
            CaptureError when a self-check failed (the store is kept, marked, for inspection).
    """
    started = time.time()
    say = Progress(quiet)
    prepared = Prepared.of(study)
    plan = prepared.store_plan()
    with StoreWriter.create_or_resume(
        path, plan, study.to_json(), study.fingerprint(), describe=diff_studies
    ) as writer:
        if writer.manifest["state"] == "complete":
            say.stage(f"{path} is complete already.")
            _refuse_failed(writer.manifest["self_checks"])
            return _scored(path, say, allow_code)
        _write_tables(prepared, writer)
        if workers > 1:
            _capture_elsewhere(prepared, writer, say, workers)
        checks, infos = _capture_models(prepared, writer, say)
        write_contrasts(writer, study.contrasts, next(iter(prepared.shapes.values())))
        if prepared.subspaces is not None:
            say.stage("subspace scores: running the first model in float32")
        checks += write_subspaces(prepared, writer)
        store = Store(path)
        derive(store, writer, quiet=quiet)
        writer.finish(provenance(study, infos, checks, started))
    _refuse_failed(checks)
    return _scored(path, say, allow_code)


def _scored(path: Path, say: Progress, allow_code: bool) -> Store:
    """The finished store, with a run of subspace scores if it can have one.

    Raises:
        PatchbayError: that run failed; the store itself is finished.
    """
    store = Store(path)
    if has_subspaces(store):
        for _, error in run_all(str(path), [SubspaceScores()], quiet=say.quiet, allow_code=allow_code):
            raise error
    return store


def _refuse_failed(checks: Sequence[Mapping[str, Any]]) -> None:
    """Raises CaptureError when a self-check (as `SelfCheck.to_json` has it) failed."""
    failed = [
        f"{c['model']}: {c['name']} = {float(c['value']):.3g} (limit {c['limit']:.3g})"
        for c in checks
        if not c["passed"]
    ]
    if failed:
        raise CaptureError(
            "The store is written, but it failed its self-checks and its numbers must not be trusted.",
            expected="every check within its limit",
            given="; ".join(failed),
            next_step="open the About page for details; report the model family if it is a listed one.",
        )


def _write_tables(prepared: Prepared, writer: StoreWriter) -> None:
    """Writes prompts, tokens and positions.

    Raises:
        StoreError: units were captured under other tables, which a library or a tokenizer on the Hub that
            changed since can cause although the study is the same.
    """
    tables = {"prompts": prepared.table, "shared-vocabulary": prepared.overlap}
    for model, encoded in prepared.encoded.items():
        tables |= {f"tokens-{model}": encoded, f"positions-{model}": prepared.position_table(model)}
        tables |= {f"vocabulary-{model}": prepared.vocabularies[model]}
    if prepared.subspaces is not None:
        tables |= {PROMPTS: prepared.subspaces.table(), TOKENS: prepared.subspaces.tokens_table()}
    begun = any(len(writer.pending(model)) < writer.plan.n_units for model in prepared.study.models)
    stored = Store(writer.root)
    for name, table in tables.items():
        if begun and writer.has_table(name) and not stored.table(name).equals(table):
            raise StoreError(
                f"The store at {writer.root} was begun with another table {name}.",
                expected="the same prompts, tokens and positions as its captured units",
                given="other ones, though the study is the same: a tokenizer or a library changed since",
                next_step="choose another folder with --store, or delete this one and begin again.",
            )
        writer.write_table(name, table)


def _capture_elsewhere(prepared: Prepared, writer: StoreWriter, say: Progress, workers: int) -> None:
    pending = {model: writer.pending(model) for model in prepared.study.models}
    todo = sum(len(writer.plan.prompts_of(unit)) for units in pending.values() for unit in units)
    with say.bar(todo, 0, f"capture on {workers} workers") as bar:
        for prompts in capture_in_parallel(prepared.study, writer.root, pending, workers):
            bar.update(prompts)


def _capture_models(
    prepared: Prepared, writer: StoreWriter, say: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Captures every model, writes its weights' pieces and differences, and measures its self-checks."""
    checks: list[dict[str, Any]] = []
    infos: dict[str, Any] = {}
    total = len(prepared.table) * len(prepared.study.models)
    pending = {model: writer.pending(model) for model in prepared.study.models}
    todo = sum(len(writer.plan.prompts_of(unit)) for units in pending.values() for unit in units)
    first: LoadedModel | None = None
    with say.bar(total, total - todo, "capture") as bar:
        for name, spec in prepared.study.models.items():
            bar.set_postfix_str(f"{name}: loading")
            lm = load(spec, name)
            bar.set_postfix_str(f"{name} on {lm.device}")
            for unit in pending[name]:
                capture_into(prepared, writer, lm, unit, bar.write)
                bar.update(len(writer.plan.prompts_of(unit)))
            bar.set_postfix_str(f"{name}: weights and self-checks")
            write_weights(writer, lm, first)
            measured = _self_checks(prepared, writer, lm, first)
            checks += [check.to_json() | {"model": name} for check in measured]
            infos[name] = lm.info | {
                "device": str(lm.device),
                "dtype": str(lm.dtype).removeprefix("torch."),
                "positions": {place: found.stats for place, found in prepared.positions[name].items()},
            }
            first = first or lm
    return checks, infos


def capture_into(prepared: Prepared, writer: StoreWriter, lm: LoadedModel, unit: int, warn: Any) -> None:
    """Captures one unit of one model and commits it; `warn` is told of batches that did not fit."""
    capture = prepared.study.capture
    values = capture_unit(
        lm,
        prepared.token_ids(lm.name),
        list(writer.plan.prompts_of(unit)),
        prepared.positions[lm.name],
        components=capture.components,
        layers=capture.blocks(lm.taps.n_layers),
        batch_tokens=capture.batch_tokens,
        on_halved=lambda n, half: warn(f"{lm.name}: {n} prompts did not fit into memory, trying {half}"),
    )
    writer.commit(lm.name, unit, values)


def _self_checks(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, first: LoadedModel | None
) -> Iterator[SelfCheck]:
    yield from lm.checks
    token_ids = prepared.token_ids(lm.name)
    few = [token_ids[i] for i in prepared.sample(CHECKED_PROMPTS)]
    yield from check_capture(lm, few)
    yield check_logits(lm, few)
    yield check_self_patch(lm, few)
    store = Store(writer.root)
    yield stored_equals_recomputed(prepared, store, lm, prepared.sample(SAMPLED_PROMPTS))
    if first is not None and steerable(store, lm.name):
        token_ids = prepared.token_ids(first.name)
        few = [token_ids[i] for i in prepared.sample(CHECKED_PROMPTS)]
        yield from check_weight_shift(first, islice(read_deltas(store, lm.name), SHIFTED_TENSORS), few)


def stored_equals_recomputed(
    prepared: Prepared, store: Store, lm: LoadedModel, prompts: list[int]
) -> SelfCheck:
    """Runs some prompts again and compares every position's rows with what the store says."""
    capture = prepared.study.capture
    again = capture_unit(
        lm,
        prepared.token_ids(lm.name),
        prompts,
        prepared.positions[lm.name],
        components=capture.components,
        layers=capture.blocks(lm.taps.n_layers),
        batch_tokens=capture.batch_tokens,
    )
    stored: dict[tuple[str, int], np.ndarray] = {}
    recomputed: dict[tuple[str, int], np.ndarray] = {}
    for position, sites in again.items():
        index = store.row_index(lm.name, position)[prompts]
        spans = zip(index["row_start"], index["row_count"], strict=True)
        picked = np.concatenate([np.arange(start, start + count) for start, count in spans])
        for (component, layer), rows in sites.items():
            key = (f"{position} {component}", layer)
            stored[key] = store.activations(lm.name, component, layer, position, rows=picked)
            recomputed[key] = rows
    return check_stored(stored, recomputed, lm, bfloat16=capture.dtype == "bfloat16")
