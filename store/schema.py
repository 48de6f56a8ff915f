"""What the JSON files of a store may say: one model a file, with bounds from what the files can hold.

A seal or a hash tells that a file is as somebody wrote it; these models tell that it is what a store's
writer writes, so that whatever reads it later meets no other type, sign or size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from engine.errors import StoreError
from store.layout import COMPONENTS, DTYPES, SITES, ArraySpec, activation_spec, slug
from store.strict import REPAIR

MOST_PROMPTS = 10_000_000
MOST_UNITS = 1 << 20
MOST_BYTES = 1 << 50
CHUNK_LIMIT = (1 << 31) - 1  # what blosc packs at once
ENTRY_NAME = re.compile(r"(layout|[\w.-]+-[0-9]{5,}|tables/\w[\w.-]*|arrays(/[^/\x00]+)+)\.json", re.ASCII)
PATH = re.compile(r"[^/\x00]+(/[^/\x00]+)*")

M = TypeVar("M", bound=BaseModel)


def _plain_path(path: str) -> str:
    if not PATH.fullmatch(path) or any(part.startswith(".") for part in path.split("/")):
        raise ValueError("not a path inside the store")
    return path


def _entry_name(name: str) -> str:
    if not ENTRY_NAME.fullmatch(name) or any(part.startswith(".") for part in name.split("/")):
        raise ValueError("not the name of a ledger entry")
    return name


def _iso(text: str) -> str:
    datetime.fromisoformat(text)
    return text


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Path = Annotated[str, AfterValidator(_plain_path), Field(max_length=1000)]
EntryName = Annotated[str, AfterValidator(_entry_name), Field(max_length=1000)]
Size = Annotated[int, Field(ge=0, le=MOST_BYTES)]
Small = Annotated[int, Field(ge=1, le=1 << 24)]
Index = Annotated[int, Field(ge=0, le=1 << 20)]
Name = Annotated[str, Field(min_length=1, max_length=400)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Finite | Literal["nan", "inf", "-inf"]
Facts = dict[str, Any]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Open(_Record):
    """A record with free facts besides those that something depends on."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class ModelSizes(_Record):
    """Sizes of one model, and what was captured of it."""

    d: Small
    n_layers: Small
    n_heads: Small
    head_dim: Small
    layers: Annotated[list[Index], Field(min_length=1)]
    states: Annotated[list[Index], Field(min_length=1)]

    @model_validator(mode="after")
    def _agree(self) -> ModelSizes:
        if self.layers != sorted(set(self.layers)) or self.layers[-1] >= self.n_layers:
            raise ValueError(f"layers must ascend and lie below n_layers = {self.n_layers}")
        if self.states != sorted({s for block in self.layers for s in (block, block + 1)}):
            raise ValueError("states must be what enters and leaves the layers")
        return self


class Position(_Record):
    """One token position."""

    kind: Literal["one", "mean", "many"]
    rows_per_unit: dict[str, Annotated[int, Field(ge=0, le=1 << 31)]]


class Plan(_Record):
    """The arrays of a store, as `StorePlan.to_json` keeps them."""

    models: Annotated[dict[Name, ModelSizes], Field(min_length=1, max_length=256)]
    model_order: list[str]
    positions: Annotated[dict[Name, Position], Field(min_length=1, max_length=256)]
    position_order: list[str]
    components: Annotated[list[str], Field(min_length=1)]
    n_prompts: Annotated[int, Field(ge=1, le=MOST_PROMPTS)]
    unit_prompts: Annotated[int, Field(ge=1, le=MOST_PROMPTS)]
    dtype: Literal["bfloat16", "float32"]
    raw_bytes: Size

    @property
    def n_units(self) -> int:
        return -(-self.n_prompts // self.unit_prompts)

    @property
    def sites(self) -> list[str]:
        return [site for site in SITES if site in self.components]

    @model_validator(mode="after")
    def _agree(self) -> Plan:
        for order, named in ((self.model_order, self.models), (self.position_order, self.positions)):
            if sorted(order) != sorted(named) or len({_folder(name) for name in order}) < len(order):
                raise ValueError("the order must list every name once, each with a folder of its own")
        if self.components != [c for c in COMPONENTS if c in self.components]:
            raise ValueError(f"components must be of {', '.join(COMPONENTS)}, in this order")
        if self.n_units > MOST_UNITS:
            raise ValueError(f"{self.n_units} units are more than a store can have")
        full = min(self.unit_prompts, self.n_prompts)
        for name, place in self.positions.items():
            if sorted(place.rows_per_unit) != sorted(self.models):
                raise ValueError(f"position {name!r} must have rows of every model")
            if place.kind != "many" and set(place.rows_per_unit.values()) != {full}:
                raise ValueError(f"position {name!r} must have {full} rows per unit")
        for model, position in ((m, p) for m in self.models for p in self.positions):
            for leaf in self.leaves():
                spec = self.spec(model, position, leaf)
                if spec.chunk_bytes > CHUNK_LIMIT:
                    raise ValueError(f"a chunk of {spec.name} would have {spec.chunk_bytes} bytes")
        return self

    def leaves(self) -> list[str]:
        """Leaf names of every model's and position's arrays."""
        return (["sites"] if self.sites else []) + (["head_z"] if "head_z" in self.components else [])

    def spec(self, model: str, position: str, leaf: str) -> ArraySpec:
        """The array "sites" or "head_z" of one model and position."""
        sizes, place = self.models[model], self.positions[position]
        return activation_spec(
            model,
            position,
            leaf,
            kind=place.kind,
            dtype=self.dtype,
            sites=self.sites,
            states=sizes.states,
            blocks=sizes.layers,
            widths=(sizes.d, sizes.n_heads, sizes.head_dim),
            prompts=(self.n_prompts, self.n_units),
            unit_rows=place.rows_per_unit[model],
        )


def _folder(name: str) -> str:
    try:
        return slug(name)
    except StoreError as error:
        raise ValueError(f"{name!r} cannot be a folder name") from error


class Check(_Open):
    """A self-check of precompute."""

    name: Name
    value: Number
    limit: Number
    passed: bool
    model: Name | None = None
    detail: str = ""


class StudyFacts(_Open):
    """Parts of a study that are read without the rest of it."""

    name: Annotated[str, Field(max_length=1000)] = ""
    prompts: Facts = {}
    capture: Facts = {}
    contrasts: Facts = {}
    content: dict[str, str] = {}
    models: dict[str, Facts] = {}


class RoundingFacts(_Open):
    """Rounding noise of a model."""

    detail: str = ""
    kl: Number = 0.0
    kl_worst: Number = 0.0
    log_prob: Number = 0.0
    relative: Number = 0.0
    n_prompts: Annotated[int, Field(ge=0)] = 0
    sites: dict[str, list[Number]] = {}


class Manifest(_Open):
    """manifest.json."""

    format: str
    version: int
    state: Annotated[str, Field(min_length=1, max_length=100)]
    fingerprint: Sha256
    study: StudyFacts
    plan: Plan
    self_checks: list[Check] = []
    models: dict[str, Facts] = {}
    rounding: dict[str, RoundingFacts] = {}
    ledger: dict[EntryName, Sha256] = {}
    created: str = ""
    seconds: Finite = 0.0
    device: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> Manifest:
        if self.state != "complete":
            return self
        plan = self.plan
        if plan.n_units * len(plan.models) > len(self.ledger):
            raise ValueError(f"{plan.n_prompts} prompts need more units than the ledger has entries")
        wanted = {f"{slug(model)}-{unit:05d}.json" for model in plan.models for unit in range(plan.n_units)}
        missing = sorted(({"layout.json"} | wanted) - self.ledger.keys())
        if missing:
            raise ValueError(f"a complete store lists {missing[0]} in its ledger")
        return self


class FileEntry(_Record):
    """One committed file. chunks: CRC-32C of each inner chunk of a shard, "--------" where absent."""

    path: Path
    size: Size
    sha256: Sha256
    chunks: Annotated[str, Field(pattern=r"^([0-9a-f]{8}|-{8})*$")] | None = None


class LedgerEntry(_Record):
    """A file below ledger/."""

    entry: EntryName
    store: Sha256
    files: Annotated[list[FileEntry], Field(min_length=1)]

    @model_validator(mode="after")
    def _once(self) -> LedgerEntry:
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("files must be listed once each, sorted")
        return self


class TableEntry(_Record):
    """A table of a run."""

    size: Size
    sha256: Sha256


class RunRecord(_Record):
    """run.json."""

    content_hash: Annotated[str, Field(pattern=r"^[0-9A-Za-z]{1,128}$")]
    created: Annotated[str, AfterValidator(_iso)]
    condition: Facts
    summary: Facts
    tables: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$", max_length=200)], TableEntry]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    store: Sha256 | Literal[""]


class NoteRecord(_Record):
    """A note's file."""

    created: Annotated[str, AfterValidator(_iso)]
    author: str
    text: str
    run: str
    store: Sha256 | Literal[""]


class PartsAttrs(_Open):
    """Attributes of a group that reads as an array."""

    parts: Annotated[list[Key], Field(min_length=1)]
    dims: Annotated[list[str], Field(min_length=1, max_length=16)]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=1 << 40)]], Field(min_length=1, max_length=16)]
    whole: bool = False
    dtype: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> PartsAttrs:
        if len(self.dims) != len(self.shape):
            raise ValueError("dims and shape must be of one length")
        if len(self.parts) != (1 if self.whole else self.shape[0]):
            raise ValueError("there must be one part, or one for each entry of the first axis")
        return self


class MapArray(_Record):
    """An array of a saved map."""

    dtype: str
    shape: Annotated[list[Size], Field(max_length=16)]
    crc32c: Annotated[str, Field(pattern=r"^[0-9a-f]{8}$")]


class MapFacts(_Record):
    """The metadata inside a saved map's file."""

    format: str
    name: Annotated[str, Field(max_length=400)]
    created: Annotated[str, AfterValidator(_iso)]
    map: Facts
    provenance: Facts
    arrays: dict[str, MapArray]


class MapEntry(_Record):
    """The record beside a saved map's file: its content, and the content of its header alone."""

    name: Name
    store: Sha256 | Literal[""]
    size: Size
    sha256: Sha256
    head: Sha256


def check(model: type[M], value: Mapping[str, Any], name: str, next_step: str = REPAIR) -> M:
    """`value` as the model has it.

    Args:
        name: the file, for the message.

    Raises:
        StoreError: says which key is wrong, and how.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        shown = [f"{'.'.join(map(str, e['loc'])) or 'the whole'}: {e['msg']}" for e in found[:3]]
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise StoreError(
            f"{name} does not say what a store's file says.",
            expected=f"a {model.__name__} as precompute.py writes it",
            given=("; ".join(shown) + more)[:800],
            next_step=next_step,
        ) from error


def belongs(entry: str, paths: Iterable[str]) -> str | None:
    """The first path that no writer lists in a ledger entry of this name; None when all belong there."""
    kind, _, rest = entry.removesuffix(".json").partition("/")
    for path in paths:
        last = path.rpartition("/")[2]
        if entry == "layout.json":
            own = path == "zarr.json" or (path.startswith("activations/") and last == "zarr.json")
        elif kind == "tables" and rest:
            own = path == f"tables/{rest}.parquet"
        elif kind == "arrays" and rest:
            folder = path.removesuffix(last).rstrip("/")
            above = last == "zarr.json" and (not folder or rest == folder or rest.startswith(f"{folder}/"))
            own = above or (folder == rest and re.fullmatch(r"c(\.0)+", last) is not None)
        else:
            model, _, unit = entry.removesuffix(".json").rpartition("-")
            number = re.escape(str(int(unit)))
            own = path.startswith(f"activations/{model}/") and bool(
                re.fullmatch(rf"c\.0\.(0\.)?{number}\.0(\.0)?", last)
            )
        if not own:
            return path
    return None


__all__ = [
    "DTYPES",
    "Check",
    "FileEntry",
    "LedgerEntry",
    "Manifest",
    "MapEntry",
    "MapFacts",
    "PartsAttrs",
    "Plan",
    "RunRecord",
    "belongs",
    "check",
]
