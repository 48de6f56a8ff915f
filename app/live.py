"""Wires a store, its models and a patch condition together; no Streamlit.

`run_live` is the whole way, for scripts; `LiveRunner` is what the worker process keeps. Vectors are never
taken from rounded storage when the model can be run: a store that keeps bfloat16 of a float32 model is used
for them only if the source model cannot be loaded, and the result says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from app.jobs import JobResult, Outcome, Report
from app.live_request import Request, build_request
from engine.condition import Condition
from engine.errors import JobError, ModelError, StoreError
from store.reader import Store
from store.runs import RunLog

if TYPE_CHECKING:
    from app.model_cache import ModelCache
    from engine.intervene import PatchEngine
    from engine.model import LoadedModel
    from engine.patching import ConditionResult
    from engine.study import Study

log = logging.getLogger("patchbay.worker")


class StoreRuns:
    """The worker's view of stored runs (`app.worker.RunIndex`), read anew each time."""

    def fingerprint(self, store_path: str) -> str:
        """The fingerprint of the study the store was made from; raises StoreError."""
        return Store(store_path).fingerprint

    def find(self, store_path: str, key: str) -> str | None:
        """The run with this content hash, or None."""
        return RunLog(store_path).find(key)

    def open(self, store_path: str, run_id: str) -> JobResult:
        """A stored run; raises StoreError when it is damaged or gone."""
        run = RunLog(store_path).open(run_id)
        return JobResult(run.condition, run.summary, run.table)


def partial_curve(condition: Condition, kl: np.ndarray) -> dict[str, Any]:
    """Mean KL per amplitude over the prompts done so far.

    Args:
        kl: (alpha, prompt), NaN where not done.

    Returns:
        {"curve": [{"alpha", "kl", "n"}, ...] for amplitudes with a prompt done, "kl": the mean at the
        amplitude nearest to 1}.
    """
    done = np.isfinite(kl).sum(axis=1)
    sums = np.nansum(kl, axis=1)
    rows = [
        {"alpha": alpha, "kl": float(total / n), "n": int(n)}
        for alpha, total, n in zip(condition.alphas, sums, done, strict=True)
        if n
    ]
    if not rows:
        return {"curve": []}
    return {"curve": rows, "kl": min(rows, key=lambda row: abs(row["alpha"] - 1.0))["kl"]}


class LiveRunner:
    """Runs conditions with models that stay loaded; one job at a time (`app.jobs.Runner`)."""

    def __init__(self, device: str = "auto", max_models: int = 2) -> None:
        from transformers.utils import logging as transformers_logging

        from app.model_cache import ModelCache

        transformers_logging.disable_progress_bar()  # a process without a terminal: its bars fill the log
        self._cache = ModelCache(device, max_models)

    def run(
        self, store_path: str, condition: Condition, report: Report, should_stop: Callable[[], bool]
    ) -> Outcome:
        """Runs a condition and appends its result to the store."""
        store = Store(store_path)
        result = compute(store, condition, self._cache, report, should_stop)
        try:
            run_id, message = save(store_path, store.fingerprint, result), ""
        except (StoreError, OSError) as error:
            log.warning("a result could not be stored: %s", error)
            kept = JobResult(condition.to_json(), result.summary(), result.table)
            return Outcome(None, _curve(result), f"Not saved: {error}", kept)
        return Outcome(run_id, _curve(result), message)


def run_live(
    store_path: str, condition: Condition, device: str = "auto", report: Report | None = None
) -> tuple[str, ConditionResult]:
    """Runs one condition on a store without a worker and appends the result; for scripts.

    Returns:
        the stored run's id and the result. Raises what `compute` and the store raise.
    """
    from app.model_cache import ModelCache

    store = Store(store_path)
    result = compute(store, condition, ModelCache(device), report or _silent, _never)
    return save(store_path, store.fingerprint, result), result


def save(store_path: str, fingerprint: str, result: ConditionResult) -> str:
    """Appends a result to the store's runs and returns its id, the condition's content hash."""
    key = result.condition.content_hash(fingerprint)
    return RunLog(store_path).append(
        result.condition.to_json(), result.summary(), result.table, content_hash=key
    )


def compute(
    store: Store,
    condition: Condition,
    cache: ModelCache,
    report: Report,
    should_stop: Callable[[], bool],
) -> ConditionResult:
    """Runs a condition on the prompts of a store.

    Raises:
        PatchError, SiteError, ModelError: the condition, a model or the self-patch check fails.
        JobError: `should_stop` was true between batches.
    """
    from engine.patching import run_condition

    session = _Session(store, build_request(store, condition), cache, report, should_stop)
    source = session.source_vectors()
    target_train = session.target_train()
    engine = session.engine(condition.target, session.request.rows)
    count, amplitudes = session.request.prompts.height, len(condition.alphas)
    report(message=f"Patching {count} prompts at {amplitudes} amplitudes.", device=str(engine.lm.device))
    return run_condition(
        condition,
        engine,
        session.table(),
        source=source.reported,
        source_train=source.train,
        target_train=target_train,
        source_origin=source.origin,
        notes=source.notes,
        on_progress=lambda done, total: report(done=done, total=total),
        on_partial=lambda kl: report(partial=partial_curve(condition, kl)),
        should_stop=should_stop,
    )


@dataclass(frozen=True)
class _Source:
    reported: np.ndarray | None = None
    train: np.ndarray | None = None
    origin: str = "not needed"
    notes: tuple[str, ...] = ()


class _Session:
    """One job's way from the store's tokens to vectors."""

    def __init__(
        self,
        store: Store,
        request: Request,
        cache: ModelCache,
        report: Report,
        should_stop: Callable[[], bool],
    ) -> None:
        from engine.study import Study

        self.store, self.request, self.cache = store, request, cache
        self.condition = request.condition
        self._report, self._should_stop = report, should_stop
        stored: Mapping[str, Any] = store.manifest["study"]
        self._content: Mapping[str, Any] = stored.get("content", {})
        self.study: Study = Study.from_json(stored)
        self._tokenizers: dict[str, Any] = {}

    def source_vectors(self) -> _Source:
        """The source's activations on the reported and the train prompts."""
        if not self.condition.needs_source:
            return _Source()
        name = self.condition.source
        rows, train = self.request.rows, self._train_rows_for_moments()
        stored, exact, words = self._stored(name)
        if stored is not None and exact:
            return _Source(stored[rows], stored[train], words)
        union = np.union1d(rows, train)
        try:
            values = self._recomputed(name, union)
        except ModelError as error:
            if stored is None:
                raise
            note = f"The vectors of {name} are the stored, rounded ones: {error}"
            return _Source(stored[rows], stored[train], words, (note,))
        return _Source(
            values[np.searchsorted(union, rows)],
            values[np.searchsorted(union, train)],
            f"recomputed with {name}",
        )

    def target_train(self) -> np.ndarray | None:
        """The target's activations on the train prompts, where the condition uses them."""
        train = self.request.train_rows
        if not len(train):
            return None
        stored, exact, _ = self._stored(self.condition.target)
        return (
            stored[train] if stored is not None and exact else self._recomputed(self.condition.target, train)
        )

    def engine(self, name: str, rows: np.ndarray) -> PatchEngine:
        """The patch engine of a model over some store rows, at the condition's position."""
        lm = self._model(name)
        tokens = self.store.tokens(name)
        token_ids = tokens["token_ids"].gather(rows).to_list()
        places = self._positions(name)[rows]
        if self._should_stop():
            raise JobError("The job was cancelled.")
        self._report(message=f"Running {len(rows)} prompts through {name}.")
        return self.cache.engine(lm, token_ids, places.tolist(), self.condition.read_at)

    def table(self) -> pl.DataFrame:
        """The reported prompts with the patched token of each model as text."""
        rows, table = self.request.rows, self.request.prompts
        names = {"target": self.condition.target}
        if self.condition.needs_source:
            names["source"] = self.condition.source
        for side, name in names.items():
            places = self._positions(name)[rows]
            ids = self.store.tokens(name)["token_ids"].gather(rows).to_list()
            shown = self._token_texts(name, [row[place] for row, place in zip(ids, places, strict=True)])
            table = table.with_columns(
                pl.Series(f"{side}_token", shown, dtype=pl.String),
                pl.Series(f"{side}_index", places, dtype=pl.Int64),
            )
        return table.drop("messages", strict=False)

    def _train_rows_for_moments(self) -> np.ndarray:
        """Train rows on which the source is needed: for moments only."""
        return self.request.train_rows if self.condition.kind == "raw" else self.request.rows[:0]

    def _model(self, name: str) -> LoadedModel:
        if self._should_stop():
            raise JobError("The job was cancelled.")
        return self.cache.model(self.study, name, self._content, lambda text: self._report(message=text))

    def _recomputed(self, name: str, rows: np.ndarray) -> np.ndarray:
        from engine.sites import Site

        site = Site(self.condition.component, self.condition.layer, self.condition.heads)
        return self.engine(name, rows).activations(site, self._should_stop).numpy()

    def _positions(self, name: str) -> np.ndarray:
        """Index of the patched token in every prompt of the store, in the model's own tokenisation."""
        from engine.positions import positions

        table = f"positions-{name}"
        if table in self.store.table_names() and self.condition.position in self.store.table(table).columns:
            return self.store.table(table)[self.condition.position].list.first().to_numpy()
        tokenizer = self._tokenizer(name)
        found = positions(self.store.tokens(name), self.condition.position, tokenizer, self.study.seed)
        return np.array([indices[0] for indices in found.indices])

    def _tokenizer(self, name: str) -> Any:
        from engine.skeleton import load_tokenizer

        if name not in self._tokenizers:
            self._tokenizers[name] = load_tokenizer(self.study.models[name])
        return self._tokenizers[name]

    def _token_texts(self, name: str, token_ids: list[int]) -> list[str]:
        """Tokens as text; as numbers where the tokenizer is not on this machine."""
        from engine.patching import token_text

        try:
            tokenizer = self._tokenizer(name)
        except ModelError:
            tokenizer = None
        return [token_text(tokenizer, token) for token in token_ids]

    def _stored(self, name: str) -> tuple[np.ndarray | None, bool, str]:
        """(stored activations of all prompts or None, whether they are the model's own bits, in words)."""
        condition, store = self.condition, self.store
        captured = (
            condition.component != "head_out"
            and condition.position in store.positions(name)
            and condition.layer in store.layers(name)
            and condition.component.removesuffix("_pre").removesuffix("_post") in store.components(name)
        )
        if not captured:
            return None, False, ""
        values = store.activations(name, condition.component, condition.layer, condition.position)
        if condition.heads is not None:
            heads = int(store.model_info(name)["n_heads"])
            values = values.reshape(len(values), heads, -1)[:, list(condition.heads)].reshape(len(values), -1)
        dtype = self.study.capture.dtype
        exact = dtype == "float32" or self.study.models[name].dtype == dtype
        return values, exact, f"stored {dtype}"


def _curve(result: ConditionResult) -> dict[str, Any]:
    return {**partial_curve(result.condition, result.kl), "curve": result.curve().to_dicts()}


def _silent(**_changes: Any) -> None:
    """A report that goes nowhere."""


def _never() -> bool:
    return False
