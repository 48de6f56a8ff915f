"""Runs subspace scores from stored activations and weights; no model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from engine.errors import JobError, PatchError
from engine.lab.experiment import ExperimentResult, Lab
from engine.subspaces.numbers import REGISTRY, Candidate, Inputs, Registry, Target, prepare_all
from engine.subspaces.numbers.inputs import Item
from engine.subspaces.own_candidates import OwnFile, load
from engine.subspaces.spec import SubspaceScores
from engine.subspaces.tables import DESCRIBED, tables_of

GAINS = ("attn_norm", "mlp_norm", "q_norm", "k_norm", "final_norm")
"""Inputs that are folded into what reads the stream."""
ONE_THREAD = 512
"""Width up to which threads lose more than they gain: at 128, two took five times the CPU time of one."""


def run(wanted: SubspaceScores, lab: Lab) -> ExperimentResult:
    """Scores the candidates against the lab's weight changes.

    Returns:
        tables and summary of `engine.subspaces.tables.tables_of`; the summary also has "subject",
        "candidates" (name, family, axis_kind, source, needs, definition, own), "code" (file, sha256, ran,
        names, problem; None where the study names no file), "counts" (fit, evaluate) and "notes".

    Raises:
        PatchError: unknown weight changes or candidates, or no rank that fits.
        StudyError: own code that isn't allowed, isn't there or has changed. JobError: cancelled.
    """
    subject, inputs, every = lab.subspaces()
    targets = _chosen_targets(wanted, every)
    own = _own(wanted, lab.own_file())
    entries = _chosen(wanted, own)
    d = inputs.d
    ks, cleans = (tuple(rank for rank in ranks if rank <= d) for ranks in (wanted.ks, wanted.cleans))
    if not ks:
        raise PatchError("No rank fits the model.", expected=f"k up to its width {d}", given=wanted.ks)
    watched = _Watched(lab)
    inputs = watched.inputs(replace(inputs, target=targets[0]))
    if not wanted.fold_norm:
        left_out: dict[str, Any] = dict.fromkeys(GAINS)
        inputs = replace(inputs, **left_out)
    lab.report(message="Building the candidates.")
    changes, broad = [watched.target(target) for target in targets], min(wanted.broad, d)
    with threadpool_limits(1 if d <= ONE_THREAD else None):
        prepared = prepare_all(
            inputs, changes, entries, widest=max(*ks, *cleans), broad=broad, on_step=watched.built
        )
        summary, tables = tables_of(prepared, ks, cleans, watched.scored)
    summary |= {
        "subject": subject,
        "candidates": [
            {name: getattr(entry, name) for name in DESCRIBED}
            | {"needs": list(entry.needs), "own": entry.name in own.names}
            for entry in entries.values()
        ],
        "left_out": [*own.left_out, *summary["left_out"]],
        "code": own.facts,
        "counts": {"fit": _rows(inputs.clean), "evaluate": _rows(targets[0].label)},
        "notes": [*lab.notes, *own.notes, *_clipped(wanted, d)],
    }
    return ExperimentResult(summary, tables)


def _chosen_targets(wanted: SubspaceScores, every: Sequence[Target]) -> list[Target]:
    known = {target.name: target for target in every}
    unknown = [name for name in wanted.deltas if name not in known]
    if unknown or not known:
        raise PatchError(
            "There is no such weight change to score." if known else "There is no weight change to score.",
            expected=", ".join(known) or "deltas in the study's [subspaces]",
            given=", ".join(unknown) or "none",
            next_step="choose a model or a contrast that the study's [subspaces] names.",
        )
    return [known[name] for name in wanted.deltas or known]


@dataclass(frozen=True)
class _Own:
    """The registry with the study's own candidates, and what is to be told of them."""

    registry: Registry
    names: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    left_out: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def _own(wanted: SubspaceScores, file: OwnFile | None) -> _Own:
    if file is None and wanted.code:
        raise PatchError(
            "The study names no file of own candidates.",
            expected='candidates = "…" in its [subspaces]',
            given=f"code = {wanted.code}",
            next_step="leave code out.",
        )
    registry = Registry(REGISTRY)
    if file is None:
        return _Own(registry)
    name = file.path.name
    facts: dict[str, Any] = {"file": name, "sha256": file.digest, "ran": bool(wanted.code)}
    facts |= {"names": [], "problem": ""}
    if not wanted.code:
        note = f"The study names candidates in {name}; they were not run; add --allow-code."
        return _Own(registry, facts=facts, notes=(note,))
    if wanted.code != file.digest:
        raise PatchError(
            f"The candidates asked for are not those of the study's file {name}.",
            expected=f"code = {file.digest}",
            given=wanted.code,
            next_step="ask with the study's own hash.",
        )
    found = load(file, registry)
    left_out = tuple(
        {"delta": None, "k": None, "name": f"{own} ({name})", "layer": None, "reason": reason}
        for own, reason in found.refused.items()
    )
    notes = (f"The study's own candidates stopped early. {found.problem}",) if found.problem else ()
    facts |= {"names": list(found.names), "problem": found.problem}
    return _Own(found.registry, found.names, facts, left_out, notes)


def _chosen(wanted: SubspaceScores, own: _Own) -> dict[str, Candidate]:
    unknown = [name for name in wanted.candidates if name not in own.registry]
    if unknown:
        raise PatchError(
            "There is no such candidate.",
            expected=", ".join(own.registry),
            given=", ".join(unknown),
            next_step=" ".join(own.notes) or "correct the names.",
        )
    return {name: own.registry[name] for name in wanted.candidates or own.registry}


def _rows(item: Item | None) -> int | None:
    return None if item is None else len(item(0))  # type: ignore[arg-type]


def _clipped(wanted: SubspaceScores, d: int) -> list[str]:
    above = sorted({rank for rank in (*wanted.ks, *wanted.cleans) if rank > d})
    found = [f"Ranks above the model's width {d} were left out: {', '.join(map(str, above))}."]
    return (found if above else []) + (
        [f"The broad rank is the model's width {d}, not {wanted.broad}."] if wanted.broad > d else []
    )


class _Watched:
    """Reports progress, and stops a cancelled job before the next array is read or candidate built."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.steps = lab, 1

    def go_on(self) -> None:
        if self.lab.should_stop():
            raise JobError("The job was cancelled.")

    def built(self, done: int, total: int) -> None:
        """Building takes about four fifths of the time."""
        self.go_on()
        self.steps = total
        self.lab.report(done=4 * done, total=5 * total)

    def scored(self, done: int, layers: int) -> None:
        """The rest is scoring."""
        self.go_on()
        done, total = 4 * self.steps + self.steps * done // layers, 5 * self.steps
        self.lab.report(done=done, total=total, message="Scoring them at every rank.")

    def item(self, item: Item) -> Item:
        def read(layer: int) -> ArrayLike:
            self.go_on()
            return item(layer)

        return read

    def inputs(self, inputs: Inputs) -> Inputs:
        """The same with every item watched."""
        found: dict[str, Any] = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        items = {name: item for name, item in found.items() if callable(item) and name != "activation"}
        watched: dict[str, Any] = {name: self.item(item) for name, item in items.items()}
        return replace(inputs, **watched)

    def target(self, target: Target) -> Target:
        return replace(target, label=self.item(target.label), label_fit=self.item(target.label_fit))
