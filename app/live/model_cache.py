"""Models and patch engines that a worker process keeps between jobs, least recently used ones dropped."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from engine.errors import ModelError
from engine.models.loading import LoadedModel, load
from engine.models.memory import free, out_of_memory
from engine.passes.patch_engine import PatchEngine
from engine.study.file_hashes import content_hash
from engine.study.study import ModelSpec, Study

log = logging.getLogger("patchbay.worker")


class ModelCache:
    """Loads the models of studies and keeps up to `max_models` of them with their patch engines.

    Args:
        device: "auto" leaves the device to the study; another name is used instead of the study's.
        max_models: models in memory at the same time.
        max_engines: patch engines (a cached unpatched run each) kept for all models together.
    """

    def __init__(self, device: str = "auto", max_models: int = 2, max_engines: int = 6) -> None:
        self.device = device
        self._max_models, self._max_engines = max(1, max_models), max(1, max_engines)
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self._engines: OrderedDict[Hashable, PatchEngine] = OrderedDict()

    def model(
        self, study: Study, name: str, content: Mapping[str, Any], say: Callable[[str], None]
    ) -> LoadedModel:
        """The model `name` of a study, loaded when it isn't here.

        Args:
            content: the content hashes kept with the store; a local file that changed since is refused, so
                that a live number is never shown beside activations of another model.
            say: told when loading takes place.

        Raises:
            ModelError: it cannot be loaded, or is not the model that the store was made from.
        """
        spec = study.models[name]
        key = _model_key(spec)
        _same_files(spec, name, content)
        if key not in self._models:
            self._keep(self._max_models - 1)
            say(f"Loading the model {name}.")
            self._models[key] = self._load(spec, name, say)
        self._models.move_to_end(key)
        return self._models[key]

    @property
    def loaded(self) -> list[str]:
        """Names of the models in memory, the least recently used one first."""
        return [lm.name for lm in self._models.values()]

    def engine(
        self,
        lm: LoadedModel,
        token_ids: Sequence[Sequence[int]],
        positions: Sequence[int],
        read_at: Literal["patched", "decision"],
    ) -> PatchEngine:
        """A patch engine over these prompts, from the cache when the same one was used before."""
        flat = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in token_ids])
        lengths = np.array([len(ids) for ids in token_ids])
        key = (id(lm), read_at, flat.tobytes(), lengths.tobytes(), np.asarray(positions).tobytes())
        if key not in self._engines:
            while len(self._engines) >= self._max_engines:
                self._engines.popitem(last=False)
            self._engines[key] = PatchEngine(lm, token_ids, positions, read_at=read_at)
        self._engines.move_to_end(key)
        return self._engines[key]

    def _keep(self, count: int) -> None:
        """Drops the least recently used models until `count` are left."""
        while len(self._models) > count:
            _, dropped = self._models.popitem(last=False)
            log.info("dropping the model %s", dropped.name)
            self._engines = OrderedDict((k, e) for k, e in self._engines.items() if e.lm is not dropped)
            del dropped
            free()

    def _load(self, spec: ModelSpec, name: str, say: Callable[[str], None]) -> LoadedModel:
        if self.device != "auto":
            spec = spec.model_copy(update={"device": self.device})
        try:
            return load(spec, name)
        except Exception as error:
            if not out_of_memory(error.__cause__ or error) or not (self._models or self._engines):
                raise
        self._engines.clear()
        self._keep(0)
        say(f"Memory ran out: the other models were dropped and {name} is loaded again.")
        return load(spec, name)


def _model_key(spec: ModelSpec) -> str:
    """Identifies a model's numbers and place: its whole spec and the content of its local files."""
    hashes = [f"{key}={content_hash(p)}" for key, p in spec.local_paths().items() if p.exists()]
    return "\n".join([spec.model_dump_json(), *hashes])


def _same_files(spec: ModelSpec, name: str, content: Mapping[str, Any]) -> None:
    for key, path in spec.local_paths().items():
        stored = content.get(f"models.{name}.{key}")
        if not path.exists():
            raise ModelError(
                f"The files of the model {name} ({key}) are not on this machine.",
                expected=str(path),
                given="nothing at that path",
                next_step="put the model back there; stored results can be read without it.",
            )
        if stored is not None and content_hash(path) != stored:
            raise ModelError(
                f"The files of the model {name} ({key}) have changed since the store was written.",
                expected=f"content {stored[:12]}…",
                given=f"content {content_hash(path)[:12]}… in {path}",
                next_step="restore the files, or run precompute.py into a new store.",
            )
