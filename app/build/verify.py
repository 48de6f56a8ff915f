"""`precompute.py --verify`: every checksum, the kept self-checks, and a sample of prompts run again."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from app.build.answers import stored_answers
from app.build.build import stored_equals_recomputed
from app.build.prepare import Prepared
from app.build.progress import Progress
from app.build.subspaces import subspace_checks
from app.live.subspaces import deltas_of
from engine.errors import StoreError
from engine.models.loading import load
from engine.models.memory import free
from engine.passes.blockwise import in_float32
from engine.study.fingerprints import diff_studies
from engine.study.study import Study
from store.manifest import verify as verify_bytes
from store.reader import Store

__all__ = ["verify"]


def verify(study: Study, path: str | Path) -> int:
    """Checks a store against its ledger and against the models; prints what it finds.

    Returns:
        0 when everything agrees, 1 otherwise.

    Raises:
        StoreError: no store, or one of another study.
    """
    store = Store(path)
    if store.fingerprint != study.fingerprint():
        raise StoreError(
            f"The store at {path} was made from another study.",
            expected=f"fingerprint {study.fingerprint()[:12]}",
            given=f"{store.fingerprint[:12]}, which differs in: "
            + "; ".join(diff_studies(store.manifest["study"], study.to_json())),
            next_step="verify with the study file and the options that the store was made with.",
        )
    problems = verify_bytes(path)
    for problem in problems:
        tqdm.write(f"DAMAGED {problem}")
    if problems:
        tqdm.write("The same command without --verify computes again what belongs to models and prompts.")
        return 1
    tqdm.write("checksums: every file is as it was written")
    failed = 0
    for kept in store.self_checks():
        if not kept["passed"]:
            failed += 1
            value, limit = float(kept["value"]), float(kept["limit"])
            tqdm.write(
                f"FAILED {kept['model']}: {kept['name']}: {value:.3g} (limit {limit:.3g}), when it was made"
            )
    prepared = Prepared.of(study, stored_answers(study, path))
    for name, spec in study.models.items():
        lm = load(spec, name)
        checks = [stored_equals_recomputed(prepared, store, lm)]
        if prepared.subspaces is not None and name == store.models[0]:
            with in_float32(lm):
                checks += subspace_checks(prepared, store, lm, deltas_of(store), Progress(quiet=True))
        for check in checks:
            failed += not check.passed
            verdict = "ok" if check.passed else "FAILED"
            tqdm.write(f"{verdict} {name}: {check.name}: {check.value:.3g} (limit {check.limit:.3g})")
        del lm
        free()
    return 1 if failed else 0
