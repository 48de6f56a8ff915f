"""The `[prompts]` part of a study: where prompts come from, which are kept, and how they become text."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from engine.spec import Frozen, LocalPath

__all__ = ["PromptColumn", "PromptFilter", "PromptSource", "PromptsSpec"]

PromptColumn = Literal[
    "id", "text", "messages", "pair_id", "language", "category", "split", "answer", "choices", "label"
]
Place = str | Annotated[int, Field(ge=1)]
"""A column of a file: its name in the header or, without a header, its position from 1."""
Columns = dict[PromptColumn, Place]


def _names(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _iso_date(value: Any) -> Any:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, str):
        datetime.date.fromisoformat(value)
    return value


def _one_way(columns: Columns) -> Columns:
    if len({type(place) for place in columns.values()}) > 1:
        raise ValueError("columns by name, or all by position (a file without a header), not both")
    return columns


class PromptSource(Frozen):
    """One file of prompts, or one split of a Hugging Face dataset.

    Exactly one of `path` (JSON lines, JSON, CSV, TSV, Parquet) and `dataset` ("owner/name", with `split`,
    and optionally `config` and a pinned `revision`). `key` names the list inside a JSON object. `language`
    and `category` hold for every row. `columns` takes the place of the study's for this source.
    """

    path: LocalPath | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    key: str | None = None
    language: str | None = None
    category: str | None = None
    columns: Columns | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, (str, Path)) else value

    @field_validator("columns")
    @classmethod
    def _by_name_or_position(cls, value: Columns | None) -> Columns | None:
        return value if value is None else _one_way(value)

    @model_validator(mode="after")
    def _one_origin(self) -> PromptSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("exactly one of 'path' and 'dataset'")
        if self.dataset is None and (self.split or self.config or self.revision):
            raise ValueError("'split', 'config' and 'revision' need 'dataset': a file has none")
        if self.dataset is not None and self.split is None:
            raise ValueError("'dataset' needs the 'split' to read, such as \"train\"")
        if self.dataset is not None and self.dataset.startswith((".", "/", "~")):
            raise ValueError("'dataset' is an id on the Hub; local files are named with 'path'")
        if self.key is not None and (self.path is None or self.path.suffix != ".json"):
            raise ValueError("'key' needs a 'path' to a .json file")
        return self

    @property
    def title(self) -> str:
        """Its name in messages and made ids: the file's stem and key, or the dataset and config."""
        if self.path is not None:
            return ".".join(filter(None, (self.path.stem, self.key)))
        return "/".join(filter(None, (self.dataset, self.config)))


class PromptFilter(Frozen):
    """Prompts by category, language, and a regular expression searched for in the text."""

    category: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    language: Annotated[tuple[str, ...], BeforeValidator(_names)] = ()
    text: str | None = None

    @field_validator("category", "language")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(sorted(set(value)))

    @field_validator("text")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"a regular expression ({error})") from None
        return value

    @model_validator(mode="after")
    def _says_something(self) -> PromptFilter:
        if not (self.category or self.language or self.text):
            raise ValueError("at least one of 'category', 'language' and 'text'")
        return self


class PromptsSpec(Frozen):
    """Which prompts are used and how they become text.

    `files` are paths, or tables with more to say of a file or a dataset (`PromptSource`).
    `columns` maps our column names to the files' own, e.g. {text = "prompt"}; positions from 1, e.g.
    {text = 1, answer = 2}, are for CSV and TSV files without a header.
    `ids` "given" takes them from the files; "row" makes them of file and row, e.g. "mgsm_en:17".
    `paired_by_row` makes one pair of row i of every file.
    `include` keeps the prompts that match all it names, `exclude` drops those that match any.
    `min_shared_ratio` keeps prompts with at least this share of tokens that all models' vocabularies have
    (`engine.fairness.shared_ratios`).
    `limit` keeps about that many prompts, whole groups, taken in turn from the categories.
    `template` "chat" renders through the tokenizer's chat template, "plain" uses the text as it is.
    `date` is given to templates that print today's date, so that a study renders the same every day.
    """

    files: tuple[PromptSource, ...] = Field(min_length=1)
    columns: Columns = Field(default_factory=dict)
    ids: Literal["given", "row"] = "given"
    paired_by_row: bool = False
    include: PromptFilter | None = None
    exclude: PromptFilter | None = None
    min_shared_ratio: float | None = Field(default=None, ge=0.0, le=1.0)
    template: Literal["chat", "plain"] = "chat"
    system: str | None = None
    date: Annotated[str | None, BeforeValidator(_iso_date)] = None
    validation: float = Field(default=0.3, ge=0.0, lt=1.0)
    limit: int | None = Field(default=None, ge=1)

    @field_validator("columns")
    @classmethod
    def _by_name_or_position(cls, value: Columns) -> Columns:
        return _one_way(value)

    @model_validator(mode="after")
    def _fits_together(self) -> PromptsSpec:
        if self.template == "plain" and self.system is not None:
            raise ValueError("'system' needs template = \"chat\": plain text has no system message")
        if self.paired_by_row and len(self.files) < 2:
            raise ValueError("'paired_by_row' needs at least two files: row i of every file is one pair")
        return self

    def local_paths(self) -> dict[str, Path]:
        """The local files, by key."""
        return {f"files[{i}]": source.path for i, source in enumerate(self.files) if source.path is not None}
