"""From arrays that were computed elsewhere to a finished store, which the pages that run no model read."""

from __future__ import annotations

import datetime
import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.build.fresh_folder import nothing_left
from app.build.grams import derive
from app.build.progress import Progress
from app.build.provenance import machine, versions
from app.imported.files import plain
from app.imported.names import Place, places
from engine.errors import StoreError
from engine.names import check_apart, check_key, check_title
from store.layout import COMPONENTS
from store.reader import Store
from store.sources import check_writable, open_source
from store.writer import ModelPlan, PositionPlan, StorePlan, StoreWriter

__all__ = ["Position", "import_arrays"]

Position = Literal["last_content", "decision", "mean"]
Floats = NDArray[np.float32]
IDENTITY, ROUNDED = 0.02, 2.0**-8
"""Limits: of the residual identity beside what a block adds; of stored values, and of states' rounding."""


@dataclass(frozen=True)
class _Model:
    """One model's activations by place, each (prompt, width), and heads where head_z is there."""

    values: Mapping[Place, Floats]
    heads: tuple[int, int] | None
    remarks: tuple[str, ...]

    @property
    def blocks(self) -> int:
        """How many blocks the model has, as far as the places tell."""
        return max(number + (component != "resid") for component, number in self.values)

    def components(self) -> set[str]:
        return {component for component, _ in self.values}

    def whole(self, components: set[str]) -> set[int]:
        """Blocks of which everything is there: the stream before and after, and what the block adds."""

        def needed(block: int) -> set[Place]:
            stream = {("resid", block), ("resid", block + 1)} if "resid" in components else set()
            return stream | {(component, block) for component in components - {"resid"}}

        return {block for block in range(self.blocks) if needed(block) <= self.values.keys()}


def import_arrays(
    path: str | Path,
    activations: Mapping[str, Mapping[str, Any]],
    prompts: pl.DataFrame,
    *,
    name: str = "imported",
    position: Position = "last_content",
    token: int | Sequence[int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    quiet: bool = True,
) -> Store:
    """Writes a store of given activations, and what the pages derive from them.

    Args:
        path: folder of the new store; stopped at any moment, the same call goes on.
        activations: model -> name of the array -> numpy array or torch tensor. Names as in
            `app.imported.names.KNOWN`. Arrays are (prompt, width) or, with `token`, (prompt, token, width);
            head_z has (head, head width) in place of the width.
        prompts: a row for each row of the arrays, in their order: columns id, text and split, and pair_id,
            language, category … where they are known (`engine.prompts.table`).
        position: which token the rows are of, as pages say it.
        token: the token to take, negative from the end; one for all prompts, or one for each.
        dtype: how values are kept.

    Raises:
        StoreError: names that are no sites, shapes that don't fit one another or the prompts, values that
            are not finite, no block of which everything is there, or another store in the folder.
    """
    started, say, source = time.time(), Progress(quiet), open_source(path)
    check_writable(source)
    _named(name, list(activations), position)
    if prompts.height < 2:
        raise StoreError("A store needs several prompts.", expected="at least two rows", given=prompts.height)
    models = {model: _model(model, arrays, token, prompts.height) for model, arrays in activations.items()}
    plan, remarks = _plan(models, prompts.height, position, dtype)
    study: dict[str, Any] = {
        "name": name,
        "seed": 0,
        "models": {model: {} for model in models},
        "imported": {"position": position, "token": "given" if token is None else _said(token)},
    }
    print_of = _fingerprint(study, models, prompts)
    with (
        nothing_left(source),
        StoreWriter.create_or_resume(path, plan, study, print_of) as writer,
    ):
        if writer.manifest["state"] == "complete":
            return Store(path)
        for remark in remarks:
            say.say(f"note: {remark}")
            if quiet:
                warnings.warn(remark, stacklevel=2)
        _write(writer, plan, models, prompts, position)
        store = Store(path)
        derive(store, writer, say)
        checks = [
            check for model, found in models.items() for check in _checks(store, model, found, position)
        ]
        writer.finish(_provenance(models, checks, remarks, dtype, started))
    return Store(path)


def _write(
    writer: StoreWriter,
    plan: StorePlan,
    models: Mapping[str, _Model],
    prompts: pl.DataFrame,
    position: str,
) -> None:
    """Writes the prompts, and every unit that isn't there."""
    writer.write_table("prompts", prompts)
    for model, found in models.items():
        kept = _kept(found, plan, model)
        for unit in writer.pending(model):
            rows = list(plan.prompts_of(unit))
            writer.commit(model, unit, {position: {place: kept[place][rows] for place in kept}})


def _named(name: str, models: list[str], position: str) -> None:
    try:
        check_title(name, "store's")
        for model in models:
            check_key(model, "model")
        check_apart(models, "model")
    except ValueError as error:
        raise StoreError(f"A name cannot be used: {error}.") from None
    if not models:
        raise StoreError("There are no activations.", expected="at least one model's", given="none")
    if position not in get_args(Position):
        raise StoreError(
            "This is no position of imported rows.", expected=", ".join(get_args(Position)), given=position
        )


def _model(model: str, arrays: Mapping[str, Any], token: int | Sequence[int] | None, prompts: int) -> _Model:
    found, remarks = places(arrays)
    values: dict[Place, Floats] = {}
    heads: tuple[int, int] | None = None
    for name, place in found.items():
        rows = _rows(f"{name} of {model}", plain(arrays[name]), place, token, prompts)
        if place[0] == "head_z":
            if heads not in (None, rows.shape[1:]):
                raise StoreError(
                    f"Arrays of {model} differ in their heads.",
                    expected=f"{heads} in every block",
                    given=f"{name}: {rows.shape[1:]}",
                )
            heads = (rows.shape[1], rows.shape[2])
        rows = np.ascontiguousarray(rows.reshape(prompts, -1), dtype=np.float32)
        if not np.isfinite(rows).all():
            bad = int((~np.isfinite(rows)).any(axis=1).argmax())
            raise StoreError(
                f"{name} of {model} has values that are not finite.",
                expected="finite numbers in float32",
                given=f"NaN or infinity, first in row {bad}",
                next_step="find where the forward pass overflowed; bfloat16 or float32 may help.",
            )
        if place in values and not np.array_equal(values[place], rows):
            raise StoreError(
                f"{model} has two arrays of residual state {place[1]}, which differ.",
                expected="the output of a block to be the input of the next one",
                given=f"{name} and another",
                next_step="leave one of them out.",
            )
        values[place] = rows
    _same_widths(model, values)
    return _Model(values, heads, tuple(f"{model}: {remark}" for remark in remarks))


def _rows(
    what: str, array: NDArray[Any], place: Place, token: int | Sequence[int] | None, prompts: int
) -> NDArray[Any]:
    """(prompt, width), or (prompt, head, head width) for head_z."""
    wanted = (2 if place[0] != "head_z" else 3) + (token is not None)
    axes = ("prompt, " + ("token, " if token is not None else "")) + (
        "width" if place[0] != "head_z" else "head, head width"
    )
    if array.ndim != wanted or array.shape[0] != prompts or not array.size:
        more = (
            "" if token is not None or array.ndim != wanted + 1 else " Say with `token` which token to take."
        )
        raise StoreError(
            f"{what} has another shape than its prompts.",
            expected=f"({axes}), {prompts} prompts",
            given=str(tuple(array.shape)),
            next_step="bring the rows into the prompts' order, one for each." + more,
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise StoreError(
            f"{what} holds no activations.", expected="floating-point numbers", given=str(array.dtype)
        )
    if token is None:
        return array
    at = np.full(prompts, token) if np.ndim(token) == 0 else np.asarray(token)
    length = array.shape[1]
    if at.shape != (prompts,) or at.dtype.kind not in "iu" or ((at < -length) | (at >= length)).any():
        raise StoreError(
            f"The tokens to take are not in {what}.",
            expected=f"one for all or {prompts}, each from {-length} to {length - 1}",
            given=_said(token),
        )
    return np.asarray(array[np.arange(prompts), at])


def _said(token: int | Sequence[int]) -> str:
    if np.ndim(token) == 0:
        return str(token)
    numbers = [int(value) for value in np.asarray(token).ravel()]
    return f"{len(numbers)} numbers, {min(numbers, default=0)} to {max(numbers, default=0)}"


def _same_widths(model: str, values: Mapping[Place, Floats]) -> None:
    for parts, what in ((("resid", "attn_out", "mlp_out"), "the stream"), (("head_z",), "head_z")):
        widths = {values[place].shape[1] for place in values if place[0] in parts}
        if len(widths) > 1:
            raise StoreError(
                f"Arrays of {model} differ in width.",
                expected=f"one width for {what}",
                given=", ".join(map(str, sorted(widths))),
            )


def _plan(
    models: Mapping[str, _Model], prompts: int, position: str, dtype: str
) -> tuple[StorePlan, tuple[str, ...]]:
    """The plan of what all models have, and what was left out, in sentences."""
    remarks = [remark for found in models.values() for remark in found.remarks]
    components = set.intersection(*(found.components() for found in models.values()))
    given = set.union(*(found.components() for found in models.values()))
    if given - components:
        remarks.append(f"{', '.join(sorted(given - components))}: not of every model, left out.")
    whole = {model: found.whole(components) for model, found in models.items()}
    common = set.intersection(*whole.values())
    if not components or not common:
        raise StoreError(
            "No block is whole in every model.",
            expected="of at least one block the stream before and after it, and all else that others have",
            given="; ".join(
                f"{model}: " + ", ".join(f"{c} {n}" for c, n in sorted(found.values))[:200]
                for model, found in models.items()
            ),
            next_step="give resid_pre and resid_post of the same block, or leave sites out.",
        )
    every = all(blocks == set(range(models[model].blocks)) for model, blocks in whole.items())
    if not every:
        remarks.append(
            f"Blocks that are whole in every model, and kept: {', '.join(map(str, sorted(common)))}."
        )
    plan = StorePlan(
        models={model: _sizes(found) for model, found in models.items()},
        positions={position: PositionPlan("mean" if position == "mean" else "one")},
        n_prompts=prompts,
        components=tuple(c for c in COMPONENTS if c in components),
        layers=None if every else tuple(sorted(common)),
        dtype=dtype,
    )
    return plan, tuple(remarks)


def _sizes(found: _Model) -> ModelPlan:
    stream = [values.shape[1] for place, values in found.values.items() if place[0] != "head_z"]
    heads, width = found.heads or (1, stream[0])
    return ModelPlan(stream[0] if stream else heads * width, found.blocks, heads, width)


def _kept(found: _Model, plan: StorePlan, model: str) -> dict[Place, Floats]:
    """What the plan keeps of a model."""
    states, blocks = plan.states(model), plan.blocks(model)
    return {
        (component, number): found.values[component, number]
        for component in plan.components
        for number in (states if component == "resid" else blocks)
    }


def _checks(store: Store, model: str, found: _Model, position: str) -> list[dict[str, Any]]:
    """That what is stored is what was given, and that blocks add up where all of their parts are there."""
    worst = 0.0
    for component in store.components():
        for number in store.states(model) if component == "resid" else store.layers(model):
            given = found.values[component, number]
            worst = max(worst, _relative(store.activations(model, component, number, position), given))
    limit = ROUNDED if store.dtype == "bfloat16" else 0.0
    checks = [_check("stored = given", model, worst, limit, "largest relative L2 of an array")]
    if {"resid", "attn_out", "mlp_out"} <= set(store.components()):
        errors = [_identity(found, block) for block in store.layers(model)]
        at = int(np.argmax(errors))
        where = f"relative L2, worst at block {store.layers(model)[at]}"
        detail = f"{where}: resid_post = resid_pre + attn_out + mlp_out"
        checks.append(_check("residual identity", model, errors[at], IDENTITY, detail))
    return checks


def _check(name: str, model: str, value: float, limit: float, detail: str) -> dict[str, Any]:
    passed = value <= limit
    return {
        "name": name,
        "model": model,
        "value": value,
        "limit": limit,
        "passed": passed,
        "detail": detail,
    }


def _relative(x: NDArray[np.floating[Any]], y: Floats) -> float:
    """‖x − y‖ ÷ ‖y‖, 0 for two of nothing."""
    norm = float(np.linalg.norm(y.astype(np.float64)))
    return float(np.linalg.norm(x.astype(np.float64) - y)) / norm if norm else float(np.abs(x).max() > 0)


def _identity(found: _Model, block: int) -> float:
    """What its input, attention and MLP leave unexplained of a block's output, over what the block adds.

    Rounding of the states to bfloat16 counts as explained. What it hides of rows in another order shows when
    the update is held against the next prompt's: with u for what is added, the squared error grows by
    ‖u − next u‖² where the order is right, and by nothing where it isn't; less than half of that is told as
    unexplained, where chance (12 standard errors) can't do it.
    """
    before, attn, mlp, after = (
        found.values[place].astype(np.float64)
        for place in (("resid", block), ("attn_out", block), ("mlp_out", block), ("resid", block + 1))
    )
    change, added = after - before, attn + mlp
    left, size = float(np.linalg.norm(change - added)), float(np.linalg.norm(added))
    if not size:
        return float(left > 0)
    room = ROUNDED * float(np.linalg.norm(after))
    following = np.roll(added, 1, axis=0)
    other, apart = (float(np.linalg.norm(one - following)) for one in (change, added))
    known = apart > 12 * left / np.sqrt(added.size)
    wrong = known and other**2 - left**2 < apart**2 / 2
    return (left if wrong else max(0.0, left - room)) / size


def _fingerprint(study: Mapping[str, Any], models: Mapping[str, _Model], prompts: pl.DataFrame) -> str:
    digest = hashlib.sha256(json.dumps(study, sort_keys=True).encode())
    digest.update(prompts.write_json().encode())
    for model in sorted(models):
        for place in sorted(models[model].values):
            digest.update(f"\0{model}\0{place}".encode())
            digest.update(models[model].values[place].tobytes())
    return digest.hexdigest()


def _provenance(
    models: Mapping[str, _Model],
    checks: list[dict[str, Any]],
    remarks: Sequence[str],
    dtype: str,
    started: float,
) -> dict[str, Any]:
    now = time.time()
    facts = {"class": "imported activations", "dtype": dtype}
    return {
        "models": dict.fromkeys(models, facts),
        "self_checks": checks,
        "device": "elsewhere",
        "created": datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round(now - started, 3),
        "machine": machine(),
        "versions": versions(),
    } | ({"prompt_notes": list(remarks)} if remarks else {})
