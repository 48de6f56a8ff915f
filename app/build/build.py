"""From a study to a finished store: prepare prompts, capture every model, derive what the pages read.

Each stage is skipped when the store already has it, so the same call resumes after any interruption.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from app.build.answers import GENERATED_TABLE, forget_kept, generated_answers
from app.build.capture import capture_into
from app.build.fresh_folder import nothing_left
from app.build.grams import derive
from app.build.parallel import capture_in_parallel, check_workers
from app.build.prepare import Prepared
from app.build.progress import Progress
from app.build.provenance import provenance
from app.build.subspaces import write_subspaces
from app.build.weights import aside, has_deltas, rows_told, write_contrasts, write_weights
from app.live.deltas import read_deltas, steerable
from app.live.headless import run_all
from app.live.subspaces import PROMPTS, TOKENS, has_subspaces
from app.workers.asked import HERE, Workers
from engine.errors import CaptureError, StoreError
from engine.models.check import SelfCheck
from engine.models.checkpoint import all_finite
from engine.models.loading import LoadedModel, load
from engine.models.memory import free
from engine.models.quantised import plain_spec
from engine.passes.capture import Activations, capture_unit
from engine.passes.patch_engine import PatchEngine
from engine.passes.rounding import Noise, Rounding, measure_noise
from engine.passes.self_checks import (
    AFFECTS,
    check_begins,
    check_capture,
    check_engine,
    check_later_tokens,
    check_self_patch,
    check_stored,
    check_weight_shift,
)
from engine.study.fingerprints import diff_studies
from engine.study.roots import also_allow, roots_for
from engine.study.study import ModelSpec, Study
from engine.subspaces.spec import SubspaceScores
from engine.threads import one_thread
from engine.weights.kept import KeptWeights
from engine.weights.names import Names
from store.reader import Store
from store.sources import as_place, check_writable, open_source
from store.writer import StoreWriter

__all__ = ["build"]

CHECKED_PROMPTS = 6
SAMPLED_PROMPTS = 8
SHIFTED_TENSORS = 16
"""Tensors of a weight difference that the check of steering at α = 0 puts on."""
CHECK_STEPS = 5
"""Steps of a model's self-checks beside those of `CHECKED_PROMPTS`."""
PACKED_SHARE = 0.1
"""Packed copies of weights take at most this share of the model while it is checked."""


def build(
    study: Study, path: str | Path, *, quiet: bool = False, workers: Workers = HERE, allow_code: bool = False
) -> Store:
    """Computes the store of a study, or finishes one that was interrupted.

    Args:
        workers: where units are captured (`app.build.parallel`); all else is done here.
        allow_code: let the study's own candidates run, where it names some.

    Returns:
        the finished store, with subspace scores where the study asks for them.

    Raises:
        PatchbayError: anything that is wrong with the study, its files, the models or the folder; and
            CaptureError when a self-check failed (the store is kept, marked, for inspection).
    """
    started = time.time()
    say = Progress(quiet)
    also_allow(roots_for(study.folder))  # for the experiments that end the build, on the store
    path = as_place(path)
    source = open_source(path)
    check_writable(source)
    check_workers(workers, path)
    with ExitStack() as held:
        held.enter_context(nothing_left(source))
        prepared = Prepared.of(study, generated_answers(study, source, say))
        plan, told = prepared.store_plan(), say.reading()
        writer = held.enter_context(
            StoreWriter.create_or_resume(
                path, plan, study.to_json(), study.fingerprint(), describe=diff_studies, progress=told
            )
        )
        say.again(writer.forgotten)
        if writer.manifest["state"] == "complete":
            say.say(
                f"{path} is complete already; every file that its ledger lists was read and is as it was "
                "written. Live runs and saved maps were not read: --verify does that."
            )
            _refuse_failed(writer.manifest["self_checks"])
            return _scored(path, say, allow_code)
        for remark in prepared.remarks:
            say.say(f"note: prompts: {remark}")
        _write_tables(prepared, writer)
        _check_values(prepared, writer, say)
        if workers.engine != "local":
            _capture_elsewhere(prepared, writer, say, workers)
        checks, infos = _capture_models(prepared, writer, say)
        with one_thread():
            write_contrasts(writer, study.contrasts, next(iter(prepared.shapes.values())), say)
        checks += write_subspaces(prepared, writer, say)
        store = Store(path)
        with one_thread():
            derive(store, writer, say)
        prompts = {"prompt_notes": list(prepared.remarks)} if prepared.remarks else {}
        forget_kept(source)
        writer.finish(provenance(study, infos, checks, started) | prompts)
    _refuse_failed(checks)
    return _scored(path, say, allow_code)


def _scored(path: str | Path, say: Progress, allow_code: bool) -> Store:
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
    failed = [c for c in checks if not c["passed"]]
    if failed:
        doubtful = dict.fromkeys(AFFECTS.get(c["name"], "everything") for c in failed)
        raise CaptureError(
            "The store is written, but it failed self-checks: not to be trusted is "
            + "; ".join(doubtful)
            + ".",
            expected="every check within its limit",
            given="; ".join(
                f"{c['model']}: {c['name']} = {float(c['value']):.3g} (limit {c['limit']:.3g})"
                for c in failed
            ),
            next_step="open the About page for details; report the model family if it is a listed one.",
        )


def _write_tables(prepared: Prepared, writer: StoreWriter) -> None:
    """Writes prompts, tokens and positions.

    Raises:
        StoreError: units were captured under other tables, which a library or a tokenizer on the Hub that
            changed since can cause although the study is the same.
    """
    answers = prepared.answers_table()
    tables = {} if answers is None else {GENERATED_TABLE: answers}
    tables |= {"prompts": prepared.table, "shared-vocabulary": prepared.overlap}
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


def _check_values(prepared: Prepared, writer: StoreWriter, say: Progress) -> None:
    """Before a first unit is captured: loads models whose files hold NaN or infinity, which refuses them.

    The first model is loaded first in any case.

    Raises:
        ModelError: as `engine.models.loading.load`.
    """
    models = prepared.study.models
    if any(len(writer.pending(model)) < writer.plan.n_units for model in models):
        return
    for name in list(models)[1:]:
        with say.stage(f"{name}: weights looked through", 1, "model") as done:
            if not all_finite(models[name]):
                load(models[name], name)
            done()


def _capture_elsewhere(prepared: Prepared, writer: StoreWriter, say: Progress, workers: Workers) -> None:
    pending = {model: writer.pending(model) for model in prepared.study.models}
    todo = sum(len(writer.plan.prompts_of(unit)) for units in pending.values() for unit in units)
    if todo:
        with say.stage(f"capture on {workers.engine}", todo, "prompt") as stage:
            capture_in_parallel(prepared.study, writer.root, pending, workers, stage, say.say)
        writer.sweep()


def _capture_models(
    prepared: Prepared, writer: StoreWriter, say: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Captures every model, writes its weights' pieces and differences, and measures its self-checks.

    One model is in memory at a time: where later ones are compared with the first, its parameters are put
    aside in a file of the store's folder.
    """
    checks: list[dict[str, Any]] = []
    infos: dict[str, Any] = {}
    first, *others = prepared.study.models
    compared = any(not has_deltas(writer, name) for name in others)
    with ExitStack() as stack:
        weights: KeptWeights | None = None
        for name in (first, *others):
            lm = _loaded(prepared.study.models[name], name, say)
            measured, infos[name] = _one_model(prepared, writer, lm, weights, say)
            checks += measured
            if lm.live:
                del lm
                free()
                lm = _loaded(plain_spec(prepared.study.models[name]), name, say)
                _write_weights(prepared, writer, lm, weights, say)
            if name == first and compared:
                with say.stage(f"{name}: weights put aside", 1, "file") as done:
                    weights = stack.enter_context(aside(writer, lm))
                    done()
            del lm
            free()
    return checks, infos


def _loaded(spec: ModelSpec, name: str, say: Progress) -> LoadedModel:
    with say.stage(f"{name}: loading", 1, "model") as done:
        lm = load(spec, name)
        done()
    return lm


def _write_weights(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, first: KeptWeights | None, say: Progress
) -> None:
    with one_thread():
        write_weights(writer, lm, next(iter(prepared.shapes.values())), first, say)


def _one_model(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, first: KeptWeights | None, say: Progress
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Self-checks and facts of a model, when all that the store keeps of it is there.

    Args:
        first: weights of the first model, None for itself or where no differences are wanted.
    """
    total, pending = len(prepared.table), writer.pending(lm.name)
    todo = sum(len(writer.plan.prompts_of(unit)) for unit in pending)
    with say.stage(f"{lm.name}: capture on {lm.device}", total, "prompt", total - todo) as stage:
        for unit in pending:
            capture_into(prepared, writer, lm, unit, say.say, stage)
    if not lm.live:  # else weights are those of the model unpacked, which is loaded after it
        _write_weights(prepared, writer, lm, first, say)
    with say.stage(f"{lm.name}: self-checks", CHECKED_PROMPTS + CHECK_STEPS) as stage:
        measured, rounding = _self_checks(prepared, writer, lm, stage)
    told = rows_told(prepared.names).get(lm.name)
    return [check.to_json() | {"model": lm.name} for check in measured], lm.info | {
        "notes": [*lm.info["notes"], *([] if told is None else [told])],
        "rounding": rounding.to_json(),
        "device": str(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "positions": {place: found.stats for place, found in prepared.positions[lm.name].items()},
    }


def _self_checks(
    prepared: Prepared, writer: StoreWriter, lm: LoadedModel, advance: Callable[[], object]
) -> tuple[list[SelfCheck], Rounding]:
    """What must agree, within the rounding noise of the model that is measured on the way.

    Args:
        advance: called after each prompt whose noise is measured, and `CHECK_STEPS` times more.
    """
    token_ids = prepared.token_ids(lm.name)
    chosen, noise = prepared.sample(CHECKED_PROMPTS), position_noise(prepared, lm, advance)
    few = [token_ids[i] for i in chosen]
    store = Store(writer.root)
    checks = [*lm.checks, *check_begins(lm.tokenizer, token_ids), check_later_tokens(noise)]
    checks += check_capture(lm, few, noise)
    advance()
    engine = PatchEngine(lm, few, [len(ids) - 1 for ids in few], packed_bytes=_packed_bytes(lm))
    checks += check_engine(engine, noise)
    advance()
    checks.append(check_self_patch(engine))
    advance()
    checks.append(stored_equals_recomputed(prepared, store, lm, noise))
    advance()
    if not lm.live and steerable(store, lm.name):
        own = Names(lm.model).shapes
        fitting = (delta for delta in read_deltas(store, lm.name) if own.get(delta.name) == delta.shape)
        some = list(islice(fitting, SHIFTED_TENSORS))
        checks += check_weight_shift(lm, some, few) if some else []
    advance()
    return checks, noise.summary(lm.dtype, live=lm.live)


def _packed_bytes(lm: LoadedModel) -> int:
    """What packed copies of a model's weights may take while it is checked: a small share of the model."""
    return int(PACKED_SHARE * sum(p.numel() * p.element_size() for p in lm.model.parameters()))


def position_noise(
    prepared: Prepared, lm: LoadedModel, advance: Callable[[], object] = lambda: None
) -> Noise:
    """Rounding noise of a model on a few of its prompts, at the study's positions."""
    chosen, token_ids = prepared.sample(CHECKED_PROMPTS), prepared.token_ids(lm.name)
    places = {name: found.of(chosen) for name, found in prepared.positions[lm.name].items()}
    with lm.lock:
        return measure_noise(lm, [token_ids[i] for i in chosen], places, advance=advance)


def stored_equals_recomputed(
    prepared: Prepared, store: Store, lm: LoadedModel, noise: Noise | None = None
) -> SelfCheck:
    """Runs some prompts again and compares every position's rows with what the store says.

    Args:
        noise: of the model at the study's positions; None measures it.
    """
    capture, prompts = prepared.study.capture, prepared.sample(SAMPLED_PROMPTS)
    noise = noise or position_noise(prepared, lm)
    again = capture_unit(
        lm,
        prepared.token_ids(lm.name),
        prompts,
        prepared.positions[lm.name],
        components=capture.components,
        layers=capture.blocks(lm.taps.n_layers),
        batch_tokens=capture.batch_tokens,
    )
    stored: dict[str, Activations] = {}
    for position, sites in again.items():
        index = store.row_index(lm.name, position)[prompts]
        spans = zip(index["row_start"], index["row_count"], strict=True)
        picked = np.concatenate([np.arange(start, start + count) for start, count in spans])
        stored[position] = {
            (component, layer): store.activations(lm.name, component, layer, position, rows=picked)
            for component, layer in sites
        }
    return check_stored(stored, again, noise, bfloat16=capture.dtype == "bfloat16")
