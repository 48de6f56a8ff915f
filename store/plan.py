"""The plan of a store: models, positions, prompts and units, and the arrays that follow from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from engine.errors import StoreError
from store.layout import (
    COMPONENTS,
    DTYPES,
    METADATA,
    ROWS_PER_CHUNK,
    SITES,
    ArraySpec,
    activation_spec,
    group_metadata,
    groups_above,
    slug,
)

Kind = Literal["one", "mean", "many"]


@dataclass(frozen=True)
class ModelPlan:
    """Sizes of one model: width `d`, blocks, query heads, width of one head's value mix, and free facts."""

    d: int
    n_layers: int
    n_heads: int
    head_dim: int
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PositionPlan:
    """One token position: "one" or "mean" row per prompt, or "many".

    `row_counts` is needed for "many": rows of each prompt, by model, in prompt order.
    """

    kind: Kind = "one"
    row_counts: Mapping[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class StorePlan:
    """Everything that fixes the arrays' names, shapes and chunks before the first activation exists.

    Args:
        models: sizes by model name, in the study's order.
        positions: by position name.
        components: subset of resid, attn_out, mlp_out, head_z.
        layers: captured blocks, or None for all of every model.
        n_prompts, unit_prompts: prompts in all, and per unit of commit.
        dtype: "bfloat16" (kept as uint16, bit by bit) or "float32".
    """

    models: Mapping[str, ModelPlan]
    positions: Mapping[str, PositionPlan]
    n_prompts: int
    components: tuple[str, ...] = COMPONENTS
    layers: tuple[int, ...] | None = None
    unit_prompts: int = 64
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        for what, expected, given in _problems(self):
            step = "Correct the study file and run precompute.py again."
            raise StoreError(what, expected=expected, given=given, next_step=step)

    @property
    def n_units(self) -> int:
        return -(-self.n_prompts // self.unit_prompts)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(site for site in SITES if site in self.components)

    def prompts_of(self, unit: int) -> range:
        """Prompt numbers of one unit."""
        return range(unit * self.unit_prompts, min((unit + 1) * self.unit_prompts, self.n_prompts))

    def blocks(self, model: str) -> tuple[int, ...]:
        """Captured blocks of a model."""
        return (
            tuple(range(self.models[model].n_layers)) if self.layers is None else tuple(sorted(self.layers))
        )

    def states(self, model: str) -> tuple[int, ...]:
        """Residual states on the state axis: every captured block's input and output."""
        return tuple(sorted({state for block in self.blocks(model) for state in (block, block + 1)}))

    def rows(self, model: str, position: str, unit: int) -> int:
        """Rows that one unit fills."""
        counts = self.positions[position].row_counts
        prompts = self.prompts_of(unit)
        return len(prompts) if counts is None else sum(counts[model][p] for p in prompts)

    def rows_per_unit(self, model: str, position: str) -> int:
        """Rows that every unit reserves: the largest unit's, a whole number of chunks."""
        most = max(self.rows(model, position, unit) for unit in range(self.n_units))
        chunk = self._rows_per_chunk(position, most)
        return -(-most // chunk) * chunk

    def _rows_per_chunk(self, position: str, most: int) -> int:
        return max(1, min(ROWS_PER_CHUNK, most) if self.positions[position].kind == "many" else most)

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
            states=self.states(model),
            blocks=self.blocks(model),
            widths=(sizes.d, sizes.n_heads, sizes.head_dim),
            prompts=(self.n_prompts, self.n_units),
            unit_rows=self.rows_per_unit(model, position),
        )

    def specs(self, model: str) -> Iterator[tuple[str, str, ArraySpec]]:
        """(position, leaf, spec) of every activation array of a model."""
        for position in self.positions:
            if self.sites:
                yield position, "sites", self.spec(model, position, "sites")
            if "head_z" in self.components:
                yield position, "head_z", self.spec(model, position, "head_z")

    def raw_bytes(self) -> int:
        """Bytes of all activations before compression."""
        total = 0
        for model in self.models:
            for position, leaf, spec in self.specs(model):
                rows = sum(self.rows(model, position, unit) for unit in range(self.n_units))
                extra = len(self.states(model)) - len(self.blocks(model))
                missing = extra * sum(site != "resid" for site in self.sites) if leaf == "sites" else 0
                vectors = math.prod(spec.shape[: spec.dims.index("row")]) - missing
                width = math.prod(spec.shape[spec.dims.index("row") + 1 :])
                total += vectors * rows * width * spec.dtype.itemsize
        return total

    def to_json(self) -> dict[str, Any]:
        """The plan as the manifest keeps it."""
        return {
            "models": {
                name: {
                    "d": model.d,
                    "n_layers": model.n_layers,
                    "n_heads": model.n_heads,
                    "head_dim": model.head_dim,
                    "layers": list(self.blocks(name)),
                    "states": list(self.states(name)),
                }
                for name, model in self.models.items()
            },
            "model_order": list(self.models),
            "positions": {
                name: {
                    "kind": place.kind,
                    "rows_per_unit": {model: self.rows_per_unit(model, name) for model in self.models},
                }
                for name, place in self.positions.items()
            },
            "position_order": list(self.positions),
            "components": [c for c in COMPONENTS if c in self.components],
            "n_prompts": self.n_prompts,
            "unit_prompts": self.unit_prompts,
            "dtype": self.dtype,
            "raw_bytes": self.raw_bytes(),
        }


def layout_files(
    specs: Mapping[str, Sequence[tuple[str, str, ArraySpec]]],
    make: Callable[[ArraySpec], bytes] = ArraySpec.metadata,
) -> dict[str, bytes]:
    """Metadata of every activation array (by model, as `StorePlan.specs`) and the groups above, by path."""
    files: dict[str, bytes] = {}
    for _, _, spec in (item for several in specs.values() for item in several):
        for group in groups_above(spec.name):
            files[f"{group}/{METADATA}".lstrip("/")] = group_metadata()
        files[f"{spec.name}/{METADATA}"] = make(spec)
    return files


def _problems(plan: StorePlan) -> Iterator[tuple[str, object, object]]:
    """What is wrong with a plan, as (what, expected, given)."""
    if plan.n_prompts < 1 or plan.unit_prompts < 1:
        yield "A store needs prompts.", "one or more, and per unit", (plan.n_prompts, plan.unit_prompts)
    if plan.dtype not in DTYPES:
        yield "Activations cannot be kept in this dtype.", sorted(DTYPES), plan.dtype
    unknown = sorted(set(plan.components) - set(COMPONENTS))
    if unknown or not plan.components:
        yield "Unknown component to capture.", list(COMPONENTS), unknown or "none"
    if not plan.models or not plan.positions:
        yield "A store needs a model and a position.", "at least one of each", "none"
    for what, names in (("model", list(plan.models)), ("position", list(plan.positions))):
        if len({slug(name) for name in names}) < len(names):
            yield f"Two {what} names become the same folder name.", "different names", names
    for name, model in plan.models.items():
        wrong = sorted(set(plan.layers or ()) - set(range(model.n_layers)))
        if wrong or plan.layers == ():
            yield f"Model {name} has no such layer.", f"layers 0..{model.n_layers - 1}", wrong or "no layer"
    for name, place in plan.positions.items():
        if (place.kind == "many") != (place.row_counts is not None):
            yield f"Position {name}: row counts belong to kind 'many' and to it alone.", "both", place.kind
        for model_name in plan.models if place.row_counts is not None else ():
            counts = (place.row_counts or {}).get(model_name, ())
            if len(counts) != plan.n_prompts or min(counts) < 0:
                expected = f"{plan.n_prompts} counts of 0 or more"
                yield f"Row counts of position {name}, model {model_name}.", expected, f"{len(counts)} counts"
