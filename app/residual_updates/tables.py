"""Cached computations behind the residual-updates page.

Lengths of every block's update inside and outside Z are measured for all offered ranks at once: slow once
for each reference block, after which a move of the rank slider only resamples.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import streamlit as st

from app.frame import store_rounding
from app.frame.opened import Key, Opened
from app.frame.prompts import LEVEL, SEED, Filter, chosen_filter, require, rows, units
from app.frame.selection import Selection
from engine.geometry.z import multi_head_bases, multi_head_basis
from engine.residual_updates.numbers import (
    MeanNorms,
    ResidualUpdates,
    UpdateNorms,
    UpdateSplit,
    mean_norms,
    residual_updates,
    split_updates,
    update_norms,
)
from store.layout import slug

RESAMPLES = 500
GRID = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
KEPT = 8

Progress = Callable[[str], Callable[[int, int], None]]


def offered_ranks(most: int) -> tuple[int, ...]:
    """Ranks of Z that the slider offers: all of a narrow head, a growing grid of a wide one."""
    return tuple(range(1, most + 1)) if most <= 16 else tuple(k for k in GRID if k <= most)


def kernel_name(model: str) -> str:
    """Array with the right singular vectors of every head kernel."""
    return f"weights/{slug(model)}/kernel_right"


def key_heads(opened: Opened, model: str) -> int | None:
    """Key heads of a model, or None where the store doesn't say."""
    found = opened.store.model_info(model).get("n_kv_heads")
    return None if found is None else int(found)


class Kept:
    """The last few results of a slow computation; safe to share between sessions."""

    def __init__(self, most: int) -> None:
        self._most, self._found, self._lock = most, OrderedDict[Any, Any](), threading.Lock()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """The result under `key`, made now when it is not there."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()
        with self._lock:
            self._found[key] = made
            while len(self._found) > self._most:
                self._found.popitem(last=False)
        return made


@st.cache_resource(show_spinner=False)
def _kept() -> Kept:
    return Kept(KEPT)


def norms(opened: Opened, model: str, selection: Selection, progress: Progress | None = None) -> UpdateNorms:
    """Lengths of all updates inside and outside Z, for every offered rank."""
    which = chosen_filter(selection)
    key = ("norms", opened.key, model, selection.position, selection.ref, which)
    return _kept().get(key, lambda: _measure(opened, model, selection, which, progress))


def _measure(
    opened: Opened, model: str, selection: Selection, which: Filter, progress: Progress | None
) -> UpdateNorms:
    ranks = offered_ranks(opened.facts.max_k)
    blocks = tuple(opened.store.layers(model))
    total = len(ranks) + len(blocks) + 1
    advance = progress("Measuring every block's update against Z…") if progress else _silent
    right = opened.store.array(kernel_name(model), first=selection.ref)
    sigma = opened.store.array(
        kernel_name(model).replace("kernel_right", "kernel_sigma"), first=selection.ref
    )
    heads = key_heads(opened, model)
    bases = multi_head_bases(
        right, sigma, ranks, kv_heads=heads, advance=lambda done, _: advance(done, total)
    )
    keep = require(rows(opened, which), 8)

    rounding: list[float] = []

    def deltas() -> Iterator[np.ndarray]:
        found = store_rounding.updates(opened.store, model, selection.position, keep)
        for done, (delta, share) in enumerate(found):
            rounding.append(share)
            yield delta
            advance(len(ranks) + done + 1, total)

    found = update_norms(deltas(), bases, ranks)
    advance(total, total)
    return dataclasses.replace(found, rounding=np.array(rounding), blocks=blocks)


def _silent(done: int, total: int) -> None:
    """Progress that nobody watches."""


def result(opened: Opened, model: str, selection: Selection) -> ResidualUpdates:
    """R of every block at the selected rank, with band, chance, languages and verdict."""
    return _result(opened.key, opened, selection, model, chosen_filter(selection), selection.k, selection.ref)


def _relevant(selection: Selection) -> tuple[str, ...]:
    return selection.position, selection.mean


@st.cache_data(show_spinner=False, max_entries=256, hash_funcs={Selection: _relevant})
def _result(
    key: Key, _opened: Opened, selection: Selection, model: str, which: Filter, k: int, ref: int
) -> ResidualUpdates:
    keep, prompts = rows(_opened, which), _opened.store.prompts
    spoken = None
    if "language" in prompts.columns and not prompts["language"].null_count():
        spoken = prompts["language"].to_numpy()[keep]
        spoken = spoken if len(set(spoken)) > 1 else None
    return residual_updates(
        norms(_opened, model, selection),
        k,
        kind=selection.mean,  # type: ignore[arg-type]
        languages=spoken,
        groups=units(_opened, keep),
        n_boot=RESAMPLES,
        level=LEVEL,
        seed=SEED,
    )


def lengths(opened: Opened, model: str, selection: Selection) -> MeanNorms:
    """Mean lengths of every block's update inside and outside Z at the selected rank."""
    which = chosen_filter(selection)
    return mean_norms(
        norms(opened, model, selection),
        selection.k,
        groups=units(opened, rows(opened, which)),
        n_boot=RESAMPLES,
        level=LEVEL,
        seed=SEED,
    )


def split(opened: Opened, model: str, selection: Selection) -> UpdateSplit:
    """Attention's and the MLP's part of every update at the selected rank."""
    return _split(opened.key, opened, selection, model, chosen_filter(selection), selection.k, selection.ref)


@st.cache_data(
    show_spinner="Splitting updates into parts…", max_entries=64, hash_funcs={Selection: _relevant}
)
def _split(
    key: Key, _opened: Opened, selection: Selection, model: str, which: Filter, k: int, ref: int
) -> UpdateSplit:
    keep, store = rows(_opened, which), _opened.store
    right = store.array(kernel_name(model), first=ref)
    sigma = store.array(kernel_name(model).replace("kernel_right", "kernel_sigma"), first=ref)

    def part(component: str) -> Iterator[np.ndarray]:
        for block in store.layers(model):
            yield store.activations(model, component, block, selection.position, rows=keep)

    return split_updates(
        part("attn_out"),
        part("mlp_out"),
        multi_head_basis(right, sigma, k),
        kind=selection.mean,  # type: ignore[arg-type]
        groups=units(_opened, keep),
        n_boot=RESAMPLES,
        level=LEVEL,
        seed=SEED,
    )
