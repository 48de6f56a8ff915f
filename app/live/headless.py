"""Live experiments without a browser: `python precompute.py run STORE --condition …`."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.live.lab import NotYet
from app.live.own_code import with_own_code
from app.live.run import check_trusted, compute, save
from app.live.terminal import Share, say
from app.workers.asked import HERE, Workers
from app.workers.hire import hire
from engine.errors import PatchbayError, PatchError, StoreError
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment
from engine.reading import parse_json, read_json
from engine.subspaces.spec import SubspaceScores
from store.reader import Store
from store.runs import RunLog
from store.sources import as_place

if TYPE_CHECKING:
    from app.live.model_cache import ModelCache

log = logging.getLogger("patchbay.headless")

LARGEST = 64 << 20
"""Bytes of a file of experiments."""
SHOWN = ("done", "total", "message")
"""What is told of a running experiment."""

__all__ = ["command", "read_experiments", "run_all"]


def read_experiments(texts: Sequence[str]) -> list[Experiment]:
    """Experiments from JSON texts or the names of JSON files; each holds one object or a list of them.

    Raises:
        PatchError: no JSON, no such file, or an experiment that cannot be used; says which.
    """
    found: list[Experiment] = []
    for text in texts:
        inline = text.lstrip().startswith(("{", "["))
        try:
            data = parse_json(text) if inline else read_json(Path(text), LARGEST)
        except (OSError, ValueError) as error:
            raise PatchError(
                "The experiments to run cannot be read.",
                expected="JSON, or a file of JSON: an object, or a list of objects",
                given=f"{text[:60]!r} ({error})",
                next_step="copy the command from the experiment's page.",
            ) from error
        items = data if isinstance(data, list) else [data]
        if not all(isinstance(item, dict) for item in items):
            raise PatchError(
                "An experiment is a JSON object.",
                expected="{…} or [{…}, …]",
                given=text[:60],
                next_step="copy the command from the experiment's page.",
            )
        found += [experiment_from_json(item) for item in items]
    unique = {json.dumps(experiment.to_json(), sort_keys=True): experiment for experiment in found}
    return list(unique.values())


def part_of(experiments: Sequence[Experiment], part: str | None) -> list[Experiment]:
    """Every N-th experiment from the I-th on, for part "I/N" (from 1); all of them without one."""
    if part is None:
        return list(experiments)
    first, _, count = part.partition("/")
    if not (first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count)):
        raise PatchError("There is no such part.", expected="I/N with 1 ≤ I ≤ N, e.g. 2/8", given=repr(part))
    return list(experiments[int(first) - 1 :: int(count)])


@dataclass(frozen=True)
class Asked:
    """An experiment to be run: its content hash in the store's study, what it is called, and the content
    hashes of those before it that are not over."""

    key: str
    experiment: Experiment
    name: str
    awaited: frozenset[str] = frozenset()


class NotKept(StoreError):
    """A result that is there can't be written into the store."""


@dataclass
class Experimenter:
    """Runs experiments on a store and keeps their results in it (`app.workers.hands.Worker`)."""

    store_path: str
    device: str
    allow_code: bool
    kept: tuple[Store, ModelCache] | None = field(default=None, init=False)

    def do(self, asked: Asked, tell: Callable[..., None]) -> tuple[str, list[str]]:
        """Runs an experiment, unless its result is there; returns the run's id and what is to be said."""
        from app.live.model_cache import ModelCache

        begun, experiment = time.perf_counter(), asked.experiment
        self.kept = store, cache = self.kept or (Store(self.store_path), ModelCache(self.device))
        known = RunLog(self.store_path).find(asked.key)
        if known is not None:
            return known, []

        def report(**changes: Any) -> None:
            tell(**{key: value for key, value in changes.items() if key in SHOWN and value is not None})

        waits_for = asked.awaited
        result = compute(store, experiment, cache, report, lambda: False, self.allow_code, waits_for)
        seconds = time.perf_counter() - begun
        try:
            run_id = save(self.store_path, store.fingerprint, experiment, result, seconds)
        except StoreError as error:
            raise NotKept(
                error.what, expected=error.expected, given=error.given, next_step=error.next_step
            ) from error
        return run_id, [*result.summary.get("notes", []), *_unscored(experiment, result.summary)]


def run_all(
    store_path: str,
    experiments: Sequence[Experiment],
    *,
    device: str = "auto",
    quiet: bool = False,
    allow_code: bool = False,
    despite_failed_checks: bool = False,
    workers: Workers = HERE,
) -> list[tuple[Experiment, Exception]]:
    """Runs experiments and stores each result as it is there; models stay loaded.

    Those with a stored result are passed over. One that fails, for whatever reason, doesn't keep the others
    from running; an error that isn't one of this project's goes to the log with its traceback. One that
    builds on the result of another one before it waits for that.

    Args:
        allow_code: let the study's own candidates run; subspace scores then have them.
        despite_failed_checks: run on a store that failed its own checks, too.
        workers: where they are run.

    Returns:
        (experiment, error) of those that failed.

    Raises:
        StoreError: no store, one that failed its own checks, or one that takes no result any more.
        JobError: there are no such workers.
    """
    store, place = Store(store_path), as_place(store_path)
    RunLog(store_path).writable()
    check_trusted(store, despite_failed_checks)
    todo = _not_stored(store, [with_own_code(one, store, allow_code) for one in experiments], quiet)
    if not todo:
        return []
    failed: list[tuple[Experiment, Exception]] = []
    worker = Experimenter(str(place.absolute() if isinstance(place, Path) else place), device, allow_code)
    with hire(workers, worker, place, len(todo)) as there, _Shares(quiet) as shares:
        while todo:
            before = [one.key for one in todo] if there.count > 1 else []
            tasks = [replace(one, awaited=frozenset(before[:at])) for at, one in enumerate(todo)]
            todo = []
            for asked, ran, error in there.each(tasks, shares):
                shares.close(asked)
                if isinstance(error, NotYet):
                    todo.append(asked)
                elif isinstance(error, NotKept):
                    raise error  # the next results wouldn't be kept either
                elif error is not None:
                    if not isinstance(error, PatchbayError):
                        log.error("%s: not foreseen", asked.name, exc_info=error)
                    failed.append((asked.experiment, error))
                    say(f"{asked.name}: failed. {error}", quiet)
                else:
                    say(f"{asked.name}: run {ran[0]}", quiet)
                    for note in ran[1]:
                        say(f"  {note}", quiet)
            todo.sort(key=lambda asked: before.index(asked.key))
    return failed


def _not_stored(store: Store, experiments: Sequence[Experiment], quiet: bool) -> list[Asked]:
    """Those of some experiments, each once, that have no stored result; says which have one."""
    found: dict[str, Asked] = {}
    for number, experiment in enumerate(experiments, 1):
        key = experiment.content_hash(store.fingerprint)
        name = f"[{number}/{len(experiments)}] {experiment.describe()}"
        known = RunLog(store.path).find(key)
        if known is None:
            found.setdefault(key, Asked(key, experiment, name))
        else:
            say(f"{name}: stored already, run {known}", quiet)
    return list(found.values())


class _Shares:
    """How far the running experiments are, a bar each."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._open = quiet, dict[str, Share]()

    def __enter__(self) -> _Shares:
        return self

    def __exit__(self, *_error: object) -> None:
        for share in self._open.values():
            share.close()

    def __call__(self, asked: Asked, **changes: Any) -> None:
        if asked.key not in self._open:
            self._open[asked.key] = Share(asked.name, self._quiet)
        self._open[asked.key](**changes)

    def close(self, asked: Asked) -> None:
        """An experiment is over."""
        if asked.key in self._open:
            self._open.pop(asked.key).close()


def _unscored(experiment: Experiment, summary: Mapping[str, Any]) -> list[str]:
    """Candidates of subspace scores that were left out, each with its first reason."""
    reasons: dict[str, str] = {}
    for row in summary["left_out"] if isinstance(experiment, SubspaceScores) else []:
        reasons.setdefault(row["name"], row["reason"])
    return [f"Left out: {name}. {reason}" for name, reason in reasons.items()]


def command(store_path: str, experiments: Sequence[Experiment]) -> str:
    """The shell command that runs these experiments on this store."""
    data = [experiment.to_json() for experiment in experiments]
    text = json.dumps(data[0] if len(data) == 1 else data, ensure_ascii=False)
    allow = " --allow-code" if any(one.get("of", one).get("code") for one in data) else ""
    return f"python precompute.py run {shlex.quote(store_path)} --condition {shlex.quote(text)}{allow}"
