"""The one selection every page shares, and its two-way translation to the URL.

A `Selection` is plain data. `parse` turns query parameters into one, replacing whatever it cannot
use by the default and saying so; `to_params` writes only what differs from the defaults, so links
stay short. `parse(to_params(s)) == s` for every valid selection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out")
KINDS = ("raw", "literal", "self", "mean")
METHODS = (
    "ScaledProcrustes",
    "RidgeTransport",
    "PCAProcrustes",
    "LogitSubspaceRidge",
    "MomentMatching",
    "MeanShift",
    "Identity",
)
"""Transport maps offered; per-cluster ones are these with more than one cluster."""
FIXED: dict[str, tuple[str, ...]] = {
    "estimator": ("debiased", "biased"),
    "interval": ("bootstrap", "jackknife"),
    "mean": ("ratio_of_means", "mean_of_ratios"),
    "scale": ("r", "r_over_chance"),
    "view": ("values", "null"),
    "parts": ("shown", "hidden"),
    "kind": KINDS,
    "read_at": ("patched", "decision"),
    "amplitude": ("vector", "deviation"),
    "alphas": ("one", "curve"),
    "layers": ("one", "every"),
    "sites": ("one", "every"),
    "method": METHODS,
    "lam_mode": ("auto", "set"),
    "patch": ("table", "one"),
    "raw_alpha": ("fixed", "scaled"),
    "substitute": ("head_z", "head_out"),
    "vectors": ("literal", "raw"),
    "basis": ("map", "difference"),
    "part": ("rank", "steering"),
    "joined": ("blocks", "kernels"),
    "weights": ("relative", "norm", "effective_rank"),
    "head_part": ("o", "q", "k", "v"),
    "way": ("forth", "back"),
    "fit": ("ridge", "minimum_norm"),
    "pairing": ("any", "category"),
    "objective": ("contrastive", "paired"),
    "penalty": ("0.001", "0.01", "0.1"),
    "start": ("cold", "svd", "random"),
    "rule": ("outlier", "mixture", "fixed", "median"),
}
FREE = (
    "run",
    "heads",
    "measure",
    "contrast",
    "words",
    "steered",
    "neutral",
    "z",
    "tensor",
    "deltas",
    "delta",
    "candidate",
    "averaged",
)
"""Fields whose text only their page can judge: a run's id, heads or blocks as "0,2", names, settings of Z."""
MAX_ALPHA = 2.0
MAX_CLUSTERS = 8


@dataclass(frozen=True)
class Facts:
    """What a store offers: the bounds of every selection.

    Args:
        models: model names, the default pair first.
        n_layers: blocks of each model.
        head_dim: width of one head of each model, the largest k of a Z basis.
        sites: components that can be shown (`head_out` only exists for patching).
        positions: captured positions with one row per prompt.
        languages, categories, splits: values found in the prompts table.
        large: whether a pass over all activations takes seconds; such parts start hidden.
        width: the smallest width of the models' streams, the largest rank of a map.
    """

    models: tuple[str, ...]
    n_layers: Mapping[str, int]
    head_dim: Mapping[str, int]
    sites: tuple[str, ...]
    positions: tuple[str, ...]
    languages: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    large: bool = False
    width: int = 64

    @property
    def max_layer(self) -> int:
        """Largest block index that every model has."""
        return min(self.n_layers.values()) - 1

    @property
    def max_k(self) -> int:
        """Largest subspace rank offered: the smallest head width among the models."""
        return min(self.head_dim.values())


@dataclass(frozen=True)
class Selection:
    """Everything a page needs to know about what the reader is looking at.

    `a`, `b` name the pair; `layer` and `ref` are block indices; `target` is `a` or `b`, the model
    that a live patch runs, on the prompts of split `report`; `alphas` and `layers` say whether one or
    a whole curve of them is run; `run` names an earlier live result. `rank` 0 is a map's full rank, `lam`
    the decimal logarithm of ridge's λ. `joined` says how heads make one Z. `threshold` is the least
    shared-vocabulary ratio of a prompt. `way` is the direction between two languages, `fit` and `pairing`
    the bridge's method and null; `objective` to `cloud` are those of fitted lengthscales. `delta` is a weight
    change, scored by subspaces of rank `dims`, away from `broad` directions and from `clean` ones.
    """

    a: str = ""
    b: str = ""
    site: str = "resid_post"
    layer: int = 0
    position: str = "last_content"
    k: int = 8
    ref: int = 0
    alpha: float = 1.0
    split: str = "all"
    report: str = "all"
    language: str = "all"
    category: str = "all"
    estimator: str = "debiased"
    interval: str = "bootstrap"
    mean: str = "ratio_of_means"
    scale: str = "r"
    view: str = "values"
    parts: str = "shown"
    model: str = "a"
    target: str = "b"
    kind: str = "raw"
    read_at: str = "patched"
    amplitude: str = "vector"
    alphas: str = "one"
    layers: str = "one"
    sites: str = "one"
    method: str = "ScaledProcrustes"
    rank: int = 0
    shrink: float = 0.05
    lam_mode: str = "auto"
    lam: float = 2.0
    q: int = 16
    clusters: int = 1
    patch: str = "table"
    raw_alpha: str = "fixed"
    substitute: str = "head_z"
    vectors: str = "literal"
    basis: str = "map"
    part: str = "rank"
    joined: str = "blocks"
    way: str = "forth"
    fit: str = "ridge"
    pairing: str = "any"
    objective: str = "contrastive"
    penalty: str = "0.01"
    start: str = "cold"
    rule: str = "outlier"
    cut: float = 0.5
    steps: int = 600
    cloud: int = 400
    heads: str = ""
    measure: str = ""
    contrast: str = ""
    words: str = ""
    steered: str = ""
    neutral: str = ""
    z: str = ""
    threshold: float = 0.0
    run: str = ""
    weights: str = "relative"
    head_part: str = "o"
    tensor: str = ""
    deltas: str = ""
    strength: float = 1.0
    delta: str = ""
    dims: int = 8
    broad: int = 64
    clean: int = 8
    averaged: str = ""
    candidate: str = ""


FIELDS = tuple(f.name for f in dataclasses.fields(Selection))
_INTEGERS = (
    "layer",
    "ref",
    "k",
    "rank",
    "q",
    "clusters",
    "steps",
    "cloud",
    "dims",
    "broad",
    "clean",
)


def defaults(facts: Facts) -> Selection:
    """The selection a fresh visitor sees."""
    pair = (facts.models[0], facts.models[1] if len(facts.models) > 1 else facts.models[0])
    middle = (facts.max_layer + 1) // 2
    return Selection(
        a=pair[0],
        b=pair[1],
        site="resid_post" if "resid_post" in facts.sites else facts.sites[0],
        layer=middle,
        ref=middle,
        substitute="head_z" if pair[0] == pair[1] else "head_out",
        position="last_content" if "last_content" in facts.positions else facts.positions[0],
        k=min(8, facts.max_k),
        q=min(16, facts.width),
        dims=min(8, facts.width),
        clean=min(8, facts.width),
        report="validation" if "validation" in facts.splits else "all",
        parts="hidden" if facts.large else "shown",
    )


def choices(facts: Facts) -> dict[str, tuple[str, ...]]:
    """Allowed values of every categorical field."""
    return {
        **FIXED,
        "a": facts.models,
        "b": facts.models,
        "site": tuple(s for s in SITES if s in facts.sites),
        "position": facts.positions,
        "split": ("all", *facts.splits),
        "report": ("all", *facts.splits),
        "language": ("all", *facts.languages),
        "category": ("all", *facts.categories),
        "model": ("a", "b"),
        "target": ("a", "b"),
    }


def bounds(facts: Facts) -> dict[str, tuple[float, float]]:
    """Inclusive lower and upper bound of every numeric field."""
    last = float(facts.max_layer)
    return {
        "layer": (0.0, last),
        "ref": (0.0, last),
        "k": (1.0, float(facts.max_k)),
        "alpha": (0.0, MAX_ALPHA),
        "rank": (0.0, float(facts.width)),
        "shrink": (0.0, 1.0),
        "lam": (-2.0, 6.0),
        "q": (1.0, float(facts.width)),
        "clusters": (1.0, float(MAX_CLUSTERS)),
        "strength": (-MAX_ALPHA, MAX_ALPHA),
        "threshold": (0.0, 1.0),
        "cut": (-2.0, 4.0),
        "steps": (50.0, 1000.0),
        "cloud": (10.0, 1000.0),
        "dims": (1.0, float(facts.width)),
        "broad": (0.0, max(64.0, float(facts.width))),
        "clean": (0.0, float(facts.width)),
    }


def parse(params: Mapping[str, str], facts: Facts) -> tuple[Selection, list[str]]:
    """Read a selection from query parameters.

    Args:
        params: raw strings of the URL; any of them may be nonsense.
        facts: what the store offers.

    Returns:
        The selection, and one sentence for each parameter that could not be used.
    """
    start = defaults(facts)
    allowed, limits = choices(facts), bounds(facts)
    values: dict[str, object] = {}
    notices: list[str] = []
    for name, raw in params.items():
        fallback = getattr(start, name, None)
        if name not in FIELDS:
            notices.append(f"The link has a setting {_short(name)} that does not exist; it was left out.")
        elif name in FREE:
            values[name] = raw
        elif name in limits:
            number, complaint = _number(name, raw, *limits[name])
            if number is None:
                notices.append(f"{name} = {_short(raw)} {complaint}; showing {fallback} instead.")
            else:
                values[name] = number
        elif raw in allowed[name]:
            values[name] = raw
        else:
            known = ", ".join(allowed[name])
            notices.append(
                f"{name} = {_short(raw)} is not in this store ({known}); showing {fallback} instead."
            )
    return dataclasses.replace(start, **values), notices  # type: ignore[arg-type]


def _number(name: str, raw: str, low: float, high: float) -> tuple[float | int | None, str]:
    try:
        number = float(raw)
    except ValueError:
        return None, "is not a number"
    if not math.isfinite(number):
        return None, "is not a finite number"
    if name in _INTEGERS and number != int(number):
        return None, "is not a whole number"
    if not low <= number <= high:
        return None, f"is outside {low:g} to {high:g}"
    return (int(number) if name in _INTEGERS else number), ""


def _short(text: str) -> str:
    return repr(text if len(text) <= 24 else text[:23] + "…")


def to_params(selection: Selection, facts: Facts) -> dict[str, str]:
    """Query parameters that differ from the defaults, in the order of the fields."""
    start = defaults(facts)
    return {
        name: f"{value:g}" if isinstance(value, float) else str(value)
        for name in FIELDS
        if (value := getattr(selection, name)) != getattr(start, name)
    }


def update(selection: Selection, facts: Facts, **changes: object) -> Selection:
    """A copy with `changes`, each checked like a URL parameter; unusable ones are ignored."""
    fresh, _ = parse({n: f"{v:g}" if isinstance(v, float) else str(v) for n, v in changes.items()}, facts)
    return dataclasses.replace(selection, **{n: getattr(fresh, n) for n in changes if n in FIELDS})


def pair_changes(condition: Mapping[str, Any], selection: Selection) -> dict[str, str]:
    """Changes that make a patch's models the selected pair, and its target the patched one.

    A patch without another model's activation names its target twice: any pair with it will do.
    """
    target, source = condition["target"], condition["source"]
    pair = (selection.a, selection.b)
    if target == source and target not in pair:
        pair = (pair[0], target)
    elif target != source and {target, source} != set(pair):
        pair = (source, target)
    return {"a": pair[0], "b": pair[1], "target": "a" if target == pair[0] else "b"}


def offered(facts: Facts, name: str, only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Values a control offers for `name`, optionally restricted to `only`."""
    return tuple(v for v in choices(facts)[name] if only is None or v in only)
