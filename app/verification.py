"""`precompute.py --verify`: every checksum, and a random sample of prompts run again."""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from app.build import SAMPLED_PROMPTS, stored_equals_recomputed
from app.build_subspaces import in_float32, subspace_checks
from app.prepare import Prepared
from app.subspace_inputs import deltas_of
from engine.errors import StoreError
from engine.model import load
from engine.study import Study, diff_studies
from store.manifest import verify as verify_bytes
from store.reader import Store

__all__ = ["verify"]


def verify(study: Study, path: Path) -> int:
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
        return 1
    tqdm.write("checksums: every file is as it was written")
    prepared = Prepared.of(study)
    failed = 0
    for name, spec in study.models.items():
        lm = load(spec, name)
        checks = [stored_equals_recomputed(prepared, store, lm, prepared.sample(SAMPLED_PROMPTS))]
        if prepared.subspaces is not None and name == store.models[0]:
            checks += subspace_checks(prepared, store, in_float32(lm), deltas_of(store))
        for check in checks:
            failed += not check.passed
            verdict = "ok" if check.passed else "FAILED"
            tqdm.write(f"{verdict} {name}: {check.name}: {check.value:.3g} (limit {check.limit:.3g})")
    return 1 if failed else 0
