"""A lab without a store: models, token ids and places in memory, activations by plain patch engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl

from engine.lab.experiment import Experiment, Result
from engine.models.loading import LoadedModel
from engine.models.sites import Site
from engine.passes.capture import token_clouds
from engine.passes.patch_engine import PatchEngine
from engine.weights.deltas import WeightDelta, weight_deltas

Rows = Sequence[int] | np.ndarray


class Letters:
    """A tokenizer that calls token 17 "t17"."""

    eos_token_id = None

    def decode(self, ids: list[int], **_how: bool) -> str:
        return f"t{ids[0]}"


@dataclass
class MemoryLab:
    """See `engine.lab.experiment.Lab`. Every position is the same token, `at[model][row]`."""

    models: dict[str, LoadedModel]
    ids: dict[str, list[list[int]]]
    at: dict[str, list[int]]
    prompts: pl.DataFrame
    seed: int = 0
    notes: list[str] = field(default_factory=list)
    reported: list[dict[str, Any]] = field(default_factory=list)
    stop_after: int | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    done: dict[str, Result] = field(default_factory=dict)
    noise: dict[str, dict[str, Any]] = field(default_factory=dict)
    _engines: dict[Any, PatchEngine] = field(default_factory=dict)

    @property
    def first(self) -> str:
        return next(iter(self.models))

    def sizes(self, model: str) -> Mapping[str, int]:
        taps = self.models[model].taps
        return {
            "n_layers": taps.n_layers,
            "n_heads": taps.n_heads,
            "head_dim": taps.head_dim,
            "d": taps.d,
        }

    def rounding(self, model: str) -> Mapping[str, Any] | None:
        return self.noise.get(model)

    def model(self, model: str) -> LoadedModel:
        return self.models[model]

    def tokenizer(self, model: str) -> Any:
        return self.models[model].tokenizer

    def token_ids(self, model: str, rows: Rows) -> list[list[int]]:
        return [self.ids[model][row] for row in rows]

    def typed(self, model: str, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
        return [int(word) for word in text.split()]

    def places(self, model: str, position: str, rows: Rows) -> np.ndarray:
        return np.array([self.at[model][row] for row in rows], dtype=np.int64)

    def characters_before(self, model: str, position: str, rows: Rows) -> np.ndarray:
        """Every token is one character."""
        return self.places(model, position, rows) + 1

    def engine(
        self, model: str, rows: Rows, position: str, read_at: Literal["patched", "decision"]
    ) -> PatchEngine:
        key = (model, read_at, tuple(rows))
        if key not in self._engines:
            places = self.places(model, position, rows).tolist()
            ids = self.token_ids(model, rows)
            self._engines[key] = PatchEngine(self.models[model], ids, places, read_at=read_at)
        return self._engines[key]

    def activations(self, model: str, site: Site, position: str, rows: Rows) -> np.ndarray:
        values: np.ndarray = self.engine(model, rows, position, "patched").activations(site).numpy()
        return values

    def clouds(self, model: str, site: Site, rows: Rows) -> tuple[list[np.ndarray], str]:
        """Every token counts as the prompt's own."""
        ids = self.token_ids(model, rows)
        where = [np.arange(len(tokens)) for tokens in ids]
        found = token_clouds(self.models[model], ids, where, site, batch_tokens=256)
        return found, f"run with {model}"

    def origin(self, model: str, site: Site, position: str) -> str:
        return f"recomputed with {model}"

    def delta(self, model: str) -> Iterator[WeightDelta]:
        first = next(iter(self.models.values()))
        return weight_deltas(first.model, self.models[model].model)

    def array(self, name: str, first: int | None = None) -> np.ndarray:
        return self.arrays[name] if first is None else self.arrays[name][first]

    def stored(self, experiment: Experiment) -> tuple[str, Result] | None:
        """What `done` has under the experiment's content hash in a study without a name."""
        key = experiment.content_hash("")
        return (key[:16], self.done[key]) if key in self.done else None

    def report(self, **changes: Any) -> None:
        self.reported.append(changes)

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.reported) > self.stop_after
