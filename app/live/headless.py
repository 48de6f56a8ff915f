"""Live experiments without a browser: `python precompute.py run STORE --condition …`."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.live.own_code import with_own_code
from app.live.run import check_trusted, compute, save
from app.live.terminal import Share, say
from engine.errors import PatchbayError, PatchError
from engine.kinds import experiment_from_json
from engine.lab.experiment import Experiment
from engine.reading import parse_json, read_json
from engine.subspaces.spec import SubspaceScores
from store.reader import Store
from store.runs import RunLog

log = logging.getLogger("patchbay.headless")

LARGEST = 64 << 20
"""Bytes of a file of experiments."""

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


def run_all(
    store_path: str,
    experiments: Sequence[Experiment],
    *,
    device: str = "auto",
    quiet: bool = False,
    allow_code: bool = False,
    despite_failed_checks: bool = False,
) -> list[tuple[Experiment, Exception]]:
    """Runs experiments one after the other and stores each result as it is there; models stay loaded.

    Those with a stored result are passed over. One that fails, for whatever reason, doesn't keep the others
    from running; an error that isn't one of this project's goes to the log with its traceback.

    Args:
        allow_code: let the study's own candidates run; subspace scores then have them.
        despite_failed_checks: run on a store that failed its own checks, too.

    Returns:
        (experiment, error) of those that failed.

    Raises:
        StoreError: no store, or one that failed its own checks.
    """
    from app.live.model_cache import ModelCache

    store, cache = Store(store_path), ModelCache(device)
    RunLog(store_path).writable()
    check_trusted(store, despite_failed_checks)
    failed: list[tuple[Experiment, Exception]] = []
    for number, asked in enumerate(experiments, 1):
        experiment = with_own_code(asked, store, allow_code)
        key = experiment.content_hash(store.fingerprint)
        name = f"[{number}/{len(experiments)}] {experiment.describe()}"
        known = RunLog(store_path).find(key)
        if known is not None:
            say(f"{name}: stored already, run {known}", quiet)
            continue
        begun = time.perf_counter()
        with Share(name, quiet) as share:
            try:
                result = compute(store, experiment, cache, share, lambda: False, allow_code)
            except Exception as error:
                if not isinstance(error, PatchbayError):
                    log.exception("%s: not foreseen", name)
                failed.append((experiment, error))
                say(f"{name}: failed. {error}", quiet)
                continue
        run_id = save(store_path, store.fingerprint, experiment, result, time.perf_counter() - begun)
        say(f"{name}: run {run_id}", quiet)
        for note in (*result.summary.get("notes", []), *_unscored(experiment, result.summary)):
            say(f"  {note}", quiet)
    return failed


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
