"""What every live experiment is: a frozen description that a lab can run, found again by its content.

An `Experiment` is plain data and imports no model code, so that pages can make, compare and store one.
`run` imports the experiment's runner, which asks a `Lab` for activations, patch engines and models. The
store's lab is in `app.live.lab`; a notebook may bring its own.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.errors import PatchbayError, PatchError
from engine.lab import grids
from engine.prompts.positions import KINDS, kind_of
from engine.prompts.span_spec import is_name
from engine.spec import Lasting

if TYPE_CHECKING:
    from engine.models.loading import LoadedModel
    from engine.models.sites import Site
    from engine.passes.patch_engine import PatchEngine
    from engine.subspaces.numbers import Inputs, Target
    from engine.subspaces.own_candidates import OwnFile
    from engine.weights.deltas import WeightDelta

Component = Literal["resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out"]
ReadAt = Literal["patched", "decision"]
Split = Literal["train", "validation", "all"]

POSITIONS = tuple(name for name, kind in KINDS.items() if kind == "one")
"""Positions that are one token, and can therefore be patched; a study may define others."""

_HASH_FORMAT = 2


class Where(BaseModel):
    """Which prompts of a split: one language and/or one category; None is all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: str | None = None
    category: str | None = None

    def describe(self) -> str:
        """ "language zh, category add", or all of them."""
        chosen = [f"{key} {value}" for key, value in self.model_dump().items() if value is not None]
        return ", ".join(chosen) or "all languages and categories"


EVERYWHERE = Where()

_kinds: dict[str, type[Experiment]] = {}


class Experiment(Lasting):
    """A live experiment, frozen; `to_json` and `from_json` are inverse to each other.

    Attributes:
        job: name of the kind of experiment.
        n_boot, level, seed: bootstrap of every interval, and whatever else is drawn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runner: ClassVar[str]
    """Where the experiment is run: "package.module:function", called with it and a lab."""

    job: str
    n_boot: int = Field(default=2000, ge=100, le=100_000)
    level: float = Field(default=0.95, gt=0.5, lt=1.0)
    seed: int = 0

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        job = cls.model_fields["job"].default
        if isinstance(job, str):
            _kinds[job] = cls

    def models(self) -> tuple[str, ...]:
        """Names of the study's models that take part."""
        raise NotImplementedError

    def describe(self) -> str:
        """One line for lists of jobs."""
        raise NotImplementedError

    def run(self, lab: Lab) -> Result:
        """Runs it; raises PatchbayError for whatever doesn't fit."""
        if hasattr(self, "alphas"):
            grids.check(self.alphas, getattr(self, "ks", ()))
        module, _, name = self.runner.partition(":")
        return getattr(importlib.import_module(module), name)(self, lab)

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON types."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Reads `to_json`'s dict; raises PatchError naming the first unusable key."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "condition"
            raise PatchError(
                f"The experiment cannot be used: {key}: {first['msg']}.",
                given=repr(first["input"]),
                next_step=f"{'add' if first['type'] == 'missing' else 'correct'} {key!r}.",
            ) from error

    def content_hash(self, fingerprint: str) -> str:
        """Hex SHA-256 of the experiment together with the fingerprint of the study it runs in."""
        payload = {"format": _HASH_FORMAT, "fingerprint": fingerprint, "condition": self.to_json()}
        text = json.dumps(payload, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def experiment_from_json(data: Mapping[str, Any]) -> Experiment:
    """The experiment that `to_json` described; PatchError for an unknown job or an unusable key.

    Known is every kind whose class was imported: all of them after `import engine.kinds`.
    """
    job = data.get("job", "patch")
    if job not in _kinds:
        raise unknown_job(job, sorted(_kinds))
    return _kinds[job].from_json(data)


def one_reading(data: Any) -> Any:
    """The patched token at "decision" is the last one: reading at either is one experiment."""
    if isinstance(data, Mapping) and data.get("position") == "decision":
        return {key: value for key, value in data.items() if (key, value) != ("read_at", "decision")}
    return data


class PatchExperiment(Experiment):
    """What all experiments share that patch one site of a target model.

    Two descriptions of one experiment are equal, so that its result is found again.

    Attributes:
        target, source: model names of the study; the target is run, the source gives the vectors.
        component, layer: the site, the same in both models.
        position: a one-token position, resolved in each model's own tokenisation.
        read_at: where the next-token distribution is read: the patched token, or the last one ("decision").
        reverse_kl: KL(unpatched || patched) instead of KL(patched || unpatched).
        where: the prompts that α and the like are chosen on (train) and reported on.
    """

    target: str
    source: str
    component: Component
    layer: int = Field(ge=0)
    position: str = "last_content"
    read_at: ReadAt = "patched"
    reverse_kl: bool = False
    where: Where = Where()

    @model_validator(mode="before")
    @classmethod
    def _read_once(cls, data: Any) -> Any:
        return one_reading(data)

    @field_validator("position")
    @classmethod
    def _one_token(cls, value: str) -> str:
        if kind_of(value) != "one" and (value in KINDS or not is_name(value)):
            raise PatchError(
                f"The position {value!r} cannot be patched: it is not one token of the prompt.",
                expected="one of " + ", ".join(POSITIONS) + ", or a one-token position of the study",
                given=repr(value),
                next_step="choose a one-token position; of a sample, one draw: sample(k=4,draw=1).",
            )
        return value

    def models(self) -> tuple[str, ...]:
        """Target and source."""
        return self.target, self.source

    def site_text(self) -> str:
        """The site as text: "resid_post@4"."""
        return f"{self.component}@{self.layer}"

    def describe(self) -> str:
        """One line for lists of jobs: "tuned ← base, resid_post@4 at last_content, mapped"."""
        return f"{self.target} ← {self.source}, {self.site_text()} at {self.position}, {self.job}"


class Result(Protocol):
    """What a runner hands back: a summary of plain JSON types, and tables, the main one named "table"."""

    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def tables(self) -> dict[str, pl.DataFrame]: ...


@dataclass(frozen=True)
class ExperimentResult:
    """A finished experiment as it is stored. See `Result`."""

    summary: dict[str, Any]
    tables: dict[str, pl.DataFrame] = field(repr=False)

    @property
    def table(self) -> pl.DataFrame:
        """The main table."""
        return self.tables["table"]


class Lab(Protocol):
    """What an experiment may ask for. Rows are rows of `prompts`.

    Attributes:
        prompts: every prompt of the study: id, text, and pair_id, language, category, split, answer,
            choices, label where there are any.
        seed: the study's. first: the study's first model, from which weight differences are.
        notes: remarks about where vectors came from that a reader needs; the lab adds to it.
    """

    @property
    def prompts(self) -> pl.DataFrame: ...
    @property
    def seed(self) -> int: ...
    @property
    def first(self) -> str: ...
    @property
    def notes(self) -> list[str]: ...

    def sizes(self, model: str) -> Mapping[str, int]:
        """n_layers, n_heads, head_dim and d, known without loading; PatchError for an unknown model."""

    def rounding(self, model: str) -> Mapping[str, Any] | None:
        """The model's measured rounding noise (`engine.passes.rounding`); None where it was not measured."""

    def model(self, model: str) -> LoadedModel:
        """The loaded model."""

    def tokenizer(self, model: str) -> Any:
        """The model's tokenizer; ModelError where it is not on this machine."""

    def token_ids(self, model: str, rows: Sequence[int] | np.ndarray) -> list[list[int]]:
        """Stored token ids of some prompts."""

    def typed(self, model: str, text: str, *, system: str | None = None, raw: bool = False) -> list[int]:
        """Token ids of a prompt that the study doesn't have, rendered as its own ones are; PromptsError.

        `system`: in the place of the study's system message. `raw`: without a chat template.
        """

    def places(self, model: str, position: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Index in each prompt of a one-token position, (n,) int64, in a model's tokens; else PatchError."""

    def characters_before(self, model: str, position: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Characters of each prompt's own text before the end of a one-token position, (n,) int64."""

    def engine(
        self, model: str, rows: Sequence[int] | np.ndarray, position: str, read_at: ReadAt
    ) -> PatchEngine:
        """The patch engine over some prompts, kept for the next experiment."""

    def activations(
        self, model: str, site: Site, position: str, rows: Sequence[int] | np.ndarray
    ) -> np.ndarray:
        """Unpatched activations, float32 (n, width); never rounded ones where the model can be run."""

    def clouds(
        self, model: str, site: Site, rows: Sequence[int] | np.ndarray
    ) -> tuple[list[np.ndarray], str]:
        """Activations of every token of each prompt's own text, float32 (tokens, width) a prompt, and where
        they came from ("stored float32", "run with base")."""

    def origin(self, model: str, site: Site, position: str) -> str:
        """Where `activations` got them: "stored float32", "recomputed with base"."""

    def delta(self, model: str) -> Iterable[WeightDelta]:
        """What a model's weights differ by from the study's first model's; nothing for the first model.

        StoreError or ModelError where that is not defined for every tensor.
        """

    def array(self, name: str, first: int | None = None) -> np.ndarray:
        """A stored array, e.g. "weights/base/unembedding", or only entry `first` of its first axis."""

    def stored(self, experiment: Experiment) -> tuple[str, Result] | None:
        """The id and the result of another experiment that was run in this study before, or None."""

    def subspaces(self) -> tuple[str, Inputs, Sequence[Target]]:
        """What a sweep over subspaces takes: the model's name, its weights and activations, and the weight
        changes of the study; StoreError where the study has no `[subspaces]`."""

    def own_file(self) -> OwnFile | None:
        """The file of own candidates that the study names."""

    def report(
        self,
        *,
        done: int | None = None,
        total: int | None = None,
        message: str | None = None,
        partial: dict[str, Any] | None = None,
    ) -> None:
        """Tells whoever waits how far the experiment is."""

    def should_stop(self) -> bool:
        """Whether it was cancelled; asked between batches."""


def check_site(lab: Lab, model: str, component: str, layer: int, heads: Sequence[int] | None = None) -> None:
    """PatchError for an unknown model, or a layer or head that it doesn't have; loads nothing."""
    sizes = lab.sizes(model)
    for what, asked, count in (
        ("Layer", [layer], int(sizes["n_layers"])),
        ("Head", list(heads or ()), int(sizes["n_heads"])),
    ):
        if max(asked, default=0) >= count:
            raise PatchError(
                f"{what} {max(asked)} is out of range for {model}.",
                expected=f"0 to {count - 1}",
                given=max(asked),
            )


def width_text(lab: Lab, model: str, component: str, heads: Sequence[int] | None = None) -> str:
    """The width of a site in words, equal for two models exactly when their widths are."""
    sizes = lab.sizes(model)
    if component != "head_z":
        return f"width {sizes['d']}"
    count = sizes["n_heads"] if heads is None else len(heads)
    return f"{count} heads of width {sizes['head_dim']}"


def chosen_rows(prompts: pl.DataFrame, split: Split, where: Where = EVERYWHERE) -> np.ndarray:
    """Rows of the prompts of a split, language and category, int64, ascending.

    Raises:
        PatchError: none is left, or a single prompt or pair, whose mean has no interval.
    """
    table = prompts.with_row_index("row_number")
    chosen = table if split == "all" else table.filter(pl.col("split") == split)
    for column, wanted in where.model_dump().items():
        if wanted is not None:
            chosen = chosen.filter(pl.col(column) == wanted) if column in chosen.columns else chosen.clear()
    given = f"split {split}, {where.describe()}"
    if chosen.is_empty():
        raise PatchError(
            "No prompt fits this choice.",
            expected="prompts of the split, language and category asked for",
            given=given,
            next_step="choose another split, language or category.",
        )
    if np.unique(resampling_groups(chosen)).size < 2:
        raise PatchError(
            "This choice leaves a single prompt or pair: its mean has no interval.",
            expected="at least 2 prompts that are not of one pair",
            given=f"{chosen.height} of {given}",
            next_step="choose a wider split, language or category.",
        )
    return chosen["row_number"].to_numpy().astype(np.int64)


def train_rows(prompts: pl.DataFrame) -> np.ndarray:
    """Rows of the whole train split, int64, ascending: what maps and moments are fitted on."""
    return prompts.select((pl.col("split") == "train").arg_true()).to_series().to_numpy().astype(np.int64)


def resampling_groups(prompts: pl.DataFrame) -> np.ndarray:
    """Group number per prompt: one per `pair_id`, and one for each prompt without a pair; int64 (n,)."""
    if "pair_id" not in prompts.columns:
        return np.arange(prompts.height)
    pairs = prompts["pair_id"].cast(pl.String).to_list()
    keys = [("pair", p) if p is not None else ("row", str(i)) for i, p in enumerate(pairs)]
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def unknown_job(job: object, known: Sequence[str]) -> PatchbayError:
    """The error for an experiment of a kind that is not known here."""
    expected = ", ".join(known)
    return PatchError(
        "There is no such kind of experiment.", expected=expected, given=repr(job), next_step="correct 'job'."
    )
