"""A store as a lab: what live experiments ask for, answered from the store and by the study's models.

Vectors are never taken from rounded storage when the model can be run: a store that keeps bfloat16 of a
float32 model is used for them only if the model cannot be loaded, and the result says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from app.live.jobs import Report
from app.live.own_code import own_file, place_of
from engine.errors import JobError, ModelError, PatchError
from engine.lab.experiment import Experiment, ReadAt, Result
from engine.study.roots import confine_all
from store.reader import Store
from store.runs import RunLog

if TYPE_CHECKING:
    from app.live.model_cache import ModelCache
    from engine.models.loading import LoadedModel
    from engine.models.sites import Site
    from engine.passes.patch_engine import PatchEngine
    from engine.study.study import Study
    from engine.subspaces.numbers import Inputs, Target
    from engine.subspaces.own_candidates import OwnFile
    from engine.weights.deltas import WeightDelta

Rows = Sequence[int] | np.ndarray


class NotYet(JobError):
    """An experiment builds on another one, which is being run by somebody else."""


class StoreLab:
    """The lab (`engine.lab.experiment.Lab`) of one job on one store.

    Args:
        allow_code: whether the study's own candidates may be run.
        awaited: content hashes of experiments whose results others are about to store.
    """

    def __init__(
        self,
        store: Store,
        cache: ModelCache,
        tell: Report,
        should_stop: Callable[[], bool],
        allow_code: bool = False,
        awaited: Collection[str] = (),
    ) -> None:
        from engine.study.study import Study

        self.store, self.cache = store, cache
        self.report, self.should_stop, self._allow_code = tell, should_stop, allow_code
        self._awaited = awaited
        self.notes: list[str] = []
        stored: Mapping[str, Any] = store.manifest["study"]
        if "imported" in stored:
            raise JobError(
                "This store holds activations from elsewhere; it names no model that could be run.",
                expected="a store that precompute.py made of a study",
                given=str(store.manifest["study"].get("name", "")),
                next_step="write a study of the same models and prompts, and run precompute.py on it.",
            )
        self._content: Mapping[str, Any] = stored.get("content", {})
        self.study: Study = Study.from_json(stored)
        self._tokenizers: dict[str, Any] = {}
        self._tables: dict[str, pl.DataFrame] = {}
        self._origins: dict[tuple[str, Site, str], str] = {}

    @property
    def prompts(self) -> pl.DataFrame:
        """Every prompt of the store."""
        return self.store.prompts

    @property
    def seed(self) -> int:
        """The study's seed."""
        return self.study.seed

    @property
    def first(self) -> str:
        """The store's first model."""
        return str(self.store.models[0])

    def sizes(self, model: str) -> Mapping[str, int]:
        """n_layers, n_heads, head_dim and d of a model, as stored."""
        if model not in self.store.models:
            raise PatchError(
                f"The store has no model {model!r}.",
                expected=" or ".join(self.store.models),
                given=repr(model),
            )
        info = self.store.model_info(model)
        return {key: int(info[key]) for key in ("n_layers", "n_heads", "head_dim", "d")}

    def rounding(self, model: str) -> Mapping[str, Any] | None:
        """The rounding noise that precompute measured of a model."""
        return self.store.rounding(model)

    def model(self, model: str) -> LoadedModel:
        """The loaded model; JobError when the job was cancelled meanwhile, StudyError as `_confined`."""
        self._go_on()
        self._confined(model)
        return self.cache.model(self.study, model, self._content, lambda text: self.report(message=text))

    def tokenizer(self, model: str) -> Any:
        """The model's tokenizer, without the model; ModelError where it is not on this machine."""
        from engine.models.sources import load_tokenizer

        if model not in self._tokenizers:
            self._confined(model)
            self._tokenizers[model] = load_tokenizer(self.study.models[model])
        return self._tokenizers[model]

    def token_ids(self, model: str, rows: Rows) -> list[list[int]]:
        """Stored token ids of some prompts."""
        found: list[list[int]] = self._tokens(model)["token_ids"].gather(np.asarray(rows)).to_list()
        return found

    def typed(self, model: str, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
        """Token ids of a text that is no prompt of the study, rendered as these are; PromptsError."""
        from engine.prompts.tokens import encode

        spec, messages = self.study.prompts, [{"role": "user", "content": text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        asked = {"template": "plain" if raw else "chat", "answers": None, "prefill": None}
        spec = spec.model_copy(update={**asked, "too_long": "refuse", "unusable": "refuse"})
        table = pl.DataFrame({"id": ["typed"], "text": [text], "messages": [messages]})
        made = encode(table, self.tokenizer(model), spec, self.model(model).taps.max_length)
        found: list[int] = made["token_ids"][0].to_list()
        return found

    def places(self, model: str, position: str, rows: Rows) -> np.ndarray:
        """Index of a one-token position in each prompt, int64 (n,).

        Raises:
            PatchError: a position of several tokens, or one that neither the store nor Patchbay knows.
        """
        from engine.prompts.positions import kind_of, positions

        kept = position in self.store.positions()
        if (self.store.position_kind(position) if kept else kind_of(position)) != "one":
            single = [name for name in self.store.positions() if self.store.position_kind(name) == "one"]
            raise PatchError(
                f"The position {position!r} cannot be patched: it is not one token of the prompt.",
                expected="one of " + ", ".join(dict.fromkeys([*single, "last_content", "decision"])),
                given="a mean or several tokens" if kept else "no position of this store",
                next_step="choose a one-token position; of a sample, one draw: sample(k=4,draw=1).",
            )
        table = f"positions-{model}"
        if table not in self._tables and table in self.store.table_names():
            self._tables[table] = self.store.table(table)
        if table in self._tables and position in self._tables[table].columns:
            every = self._tables[table][position].list.first().to_numpy()
        else:
            found = positions(self._tokens(model), position, self.tokenizer(model), self.seed)
            every = np.array([indices[0] for indices in found.indices])
        return every[np.asarray(rows)].astype(np.int64)

    def characters_before(self, model: str, position: str, rows: Rows) -> np.ndarray:
        """Characters of each prompt's own text before the end of a one-token position; as `places`."""
        from engine.prompts.draws import characters_before

        at = np.asarray(rows)
        return characters_before(self._tokens(model)[at], self.places(model, position, at))

    def engine(self, model: str, rows: Rows, position: str, read_at: ReadAt) -> PatchEngine:
        """The patch engine over some prompts; its unpatched run is kept for the next job."""
        lm = self.model(model)
        ids, places = self.token_ids(model, rows), self.places(model, position, rows)
        self._go_on()
        self.report(message=f"Running {len(ids)} prompts through {model}.", device=str(lm.device))
        return self.cache.engine(lm, ids, places.tolist(), read_at)

    def activations(self, model: str, site: Site, position: str, rows: Rows) -> np.ndarray:
        """Unpatched activations of some prompts, float32 (n, width)."""
        stored, exact = self._stored(model, site, position)
        words = f"stored {self.study.capture.dtype}"
        captured = position in self.store.positions()  # a draw of a captured sample is not: one token
        averaged = stored is not None and captured and self.store.position_kind(position) != "one"
        if averaged and not exact:
            note = f"The vectors at {position} are the stored ones, rounded to {self.study.capture.dtype}."
            self.notes += [] if note in self.notes else [note]
        elif stored is None or not exact:
            try:
                engine = self.engine(model, rows, position, "patched")
                values = engine.activations(site, self.should_stop).numpy()
                self._origins[model, site, position] = f"recomputed with {model}"
                return values
            except ModelError as error:
                if stored is None:
                    raise
                note = f"The vectors of {model} are the stored, rounded ones: {error}"
                self.notes += [] if note in self.notes else [note]
        assert stored is not None
        self._origins[model, site, position] = words
        return stored[np.asarray(rows)]

    def clouds(self, model: str, site: Site, rows: Rows) -> tuple[list[np.ndarray], str]:
        """Activations of every token of each prompt's own text, float32 (tokens, width), and their origin."""
        from engine.passes.capture import token_clouds
        from engine.prompts.positions import content_tokens

        where = [
            content_tokens(row["offsets"], row["content_start"], row["content_end"])
            for row in self._tokens(model)[np.asarray(rows)].iter_rows(named=True)
        ]
        exact = self.study.capture.dtype in ("float32", self.study.models[model].dtype)
        if exact and self._has(model, site, "tokens"):
            starts = self.store.row_index(model, "tokens")["row_start"].to_numpy()[np.asarray(rows)]
            wanted = np.concatenate([start + own for start, own in zip(starts, where, strict=True)])
            values = self.store.activations(model, site.component, site.layer, "tokens", rows=wanted)
            ends = np.cumsum([len(own) for own in where])[:-1]
            return np.split(values, ends), f"stored {self.study.capture.dtype}"
        lm, ids = self.model(model), self.token_ids(model, rows)
        self.report(message=f"Running {len(ids)} prompts through {model}.", device=str(lm.device))
        tokens = self.study.capture.batch_tokens
        found = token_clouds(lm, ids, where, site, batch_tokens=tokens, should_stop=self.should_stop)
        return found, f"run with {model}"

    def origin(self, model: str, site: Site, position: str) -> str:
        """Where the activations of a site came from, in words."""
        return self._origins.get((model, site, position), "not needed")

    def delta(self, model: str) -> Iterator[WeightDelta]:
        """What a model's weights differ by from the first model's, as stored."""
        from app.live.deltas import by_string, read_deltas

        by_string(self.store, model)
        return read_deltas(self.store, model)

    def array(self, name: str, first: int | None = None) -> np.ndarray:
        """An array of the store, or only entry `first` of its first axis."""
        return self.store.array(name, first=first)

    def stored(self, experiment: Experiment) -> tuple[str, Result] | None:
        """The id and the result of an experiment whose run the store keeps, or None; NotYet."""
        log, key = RunLog(self.store.path), experiment.content_hash(self.store.fingerprint)
        run_id = log.find(key)
        if run_id is None and key in self._awaited:
            raise NotYet("This builds on an experiment that is still run.", given=experiment.describe())
        return None if run_id is None else (run_id, log.open(run_id))

    def subspaces(self) -> tuple[str, Inputs, Sequence[Target]]:
        """The first model's name, what a sweep over subspaces takes of it, and the study's weight changes."""
        from app.live.subspaces import deltas_of, inputs_of, notes_of, target_of

        inputs = inputs_of(self.store)
        self.notes += [note for note in notes_of(self.store) if note not in self.notes]
        return self.store.models[0], inputs, [target_of(self.store, name) for name in deltas_of(self.store)]

    def own_file(self) -> OwnFile | None:
        """The file of own candidates that the study names; StudyError where it may run and lies elsewhere."""
        found = own_file(self.store, self._allow_code)
        if found is not None and found.allowed:
            confine_all({"subspaces.candidates": found.path}, place_of(self.store))
        return found

    def _confined(self, model: str) -> None:
        """StudyError when the store says that a model's files lie where it may not send anybody."""
        named = self.study.models[model].local_paths()
        confine_all({f"models.{model}.{key}": path for key, path in named.items()}, place_of(self.store))

    def _tokens(self, model: str) -> pl.DataFrame:
        name = f"tokens-{model}"
        if name not in self._tables:
            self._tables[name] = self.store.tokens(model)
        return self._tables[name]

    def _go_on(self) -> None:
        if self.should_stop():
            raise JobError("The job was cancelled.")

    def _stored(self, model: str, site: Site, position: str) -> tuple[np.ndarray | None, bool]:
        """(stored activations of all prompts or None, whether they are the model's own bits)."""
        store, (name, rows) = self.store, self._kept(model, position)
        if not self._has(model, site, name):
            return None, False
        values = store.activations(model, site.component, site.layer, name, rows=rows)
        if site.heads is not None:
            heads = int(store.model_info(model)["n_heads"])
            values = values.reshape(len(values), heads, -1)[:, list(site.heads)].reshape(len(values), -1)
        dtype = self.study.capture.dtype
        return values, dtype == "float32" or self.study.models[model].dtype == dtype

    def _kept(self, model: str, position: str) -> tuple[str, np.ndarray | None]:
        """The captured position that has a position's rows, and which they are, None for all: a single draw
        may lie in its whole sample, the last one for a prompt of fewer words."""
        from engine.prompts.draws import sample_of

        sample, draw = sample_of(position)
        if position in self.store.positions(model) or sample not in self.store.positions(model):
            return position, None
        index = self.store.row_index(model, sample)
        start, count = (index[column].to_numpy() for column in ("row_start", "row_count"))
        return sample, start + np.minimum(draw, count) - 1

    def _has(self, model: str, site: Site, position: str) -> bool:
        """Whether the site was captured at the position."""
        return (
            site.component != "head_out"
            and position in self.store.positions(model)
            and site.layer in self.store.layers(model)
            and site.component.removesuffix("_pre").removesuffix("_post") in self.store.components(model)
        )
