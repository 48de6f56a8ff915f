"""The one selection every page shares, and its two-way translation to the URL.

A `Selection` is plain data: what analyses share, and in `own` what single ones declare for themselves
(`Fields`). `parse` turns query parameters into one, replacing whatever it cannot use by the default and
saying so; `to_params` writes only what differs from the defaults, so links stay short.
`parse(to_params(s)) == s` for every valid selection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from app.frame.fields import Facts, Rule, choice, is_text, listed, number, rules, start, text, whole
from engine.lab.experiment import Where

__all__ = ["Facts", "Fields", "Selection", "listed", "parse", "to_params", "update", "whole"]
STORE = "store"
"""What a link names the store by; no setting of it."""
__all__ += ["place_changes", "place_of", "where_changes", "where_of"]

SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_z", "head_out")
MOST_NOTICES = 8
MAX_ALPHA = 2.0


def _blocks(facts: Facts) -> tuple[float, float]:
    return 0.0, float(facts.max_layer)


def _middle(facts: Facts) -> int:
    return facts.middle


def _usual_position(facts: Facts) -> str:
    """The position that is shown first; "" in a store whose positions all have many rows a prompt."""
    offered = facts.positions
    return "last_content" if "last_content" in offered else next(iter(offered), "")


@dataclass(frozen=True)
class Selection:
    """What the reader is looking at, as far as more than one analysis asks.

    `a`, `b` name the pair; `layer` and `ref` are block indices; `target` is `a` or `b`, the model
    that a live patch runs, on the prompts of split `report`; `layers` says whether one block or all of
    them are run, with `stride` every n-th; `run` names an earlier live result. `joined` says how heads
    make one Z. `delta` is a weight change, `candidate` a subspace that a chart was clicked at. `own` has
    the settings of single analyses by name, in order.
    """

    a: str = choice(among=lambda facts: facts.models, usual=lambda facts: facts.pair[0])
    b: str = choice(among=lambda facts: facts.models, usual=lambda facts: facts.pair[1])
    site: str = choice(
        "resid_post",
        among=lambda facts: tuple(s for s in SITES if s in facts.sites),
        usual=lambda facts: "resid_post" if "resid_post" in facts.sites else facts.sites[0],
    )
    layer: int = number(0, within=_blocks, usual=_middle)
    position: str = choice("last_content", among=lambda facts: facts.positions, usual=_usual_position)
    k: int = number(
        8, within=lambda facts: (1.0, float(facts.max_k)), usual=lambda facts: min(8, facts.max_k)
    )
    ref: int = number(0, within=_blocks, usual=_middle)
    alpha: float = number(1.0, 0.0, MAX_ALPHA)
    split: str = choice("all", among=lambda facts: ("all", *facts.splits))
    report: str = choice(
        "all",
        among=lambda facts: ("all", *facts.splits),
        usual=lambda facts: "validation" if "validation" in facts.splits else "all",
    )
    language: str = choice("all", among=lambda facts: ("all", *facts.languages))
    category: str = choice("all", among=lambda facts: ("all", *facts.categories))
    estimator: str = choice("debiased", "biased")
    interval: str = choice("bootstrap", "jackknife")
    mean: str = choice("ratio_of_means", "mean_of_ratios")
    scale: str = choice("r", "r_over_chance")
    parts: str = choice("shown", "hidden", usual=lambda facts: "hidden" if facts.large else "shown")
    model: str = choice("a", "b")
    target: str = choice("b", among=lambda _facts: ("a", "b"))
    read_at: str = choice("patched", "decision")
    amplitude: str = choice("vector", "deviation")
    raw_alpha: str = choice("fixed", "scaled")
    layers: str = choice("one", "every")
    stride: int = number(1, within=lambda facts: (1.0, float(max(1, facts.max_layer))))
    joined: str = choice("blocks", "kernels")
    measure: str = text()
    contrast: str = text()
    delta: str = text()
    run: str = text()
    candidate: str = text()
    own: tuple[tuple[str, Any], ...] = ()


_OWN: dict[str, type[Fields]] = {}


@dataclass(frozen=True)
class Fields:
    """Settings of one analysis, declared like those of a `Selection`; links know every class imported."""

    def __init_subclass__(cls) -> None:
        _OWN[cls.__qualname__] = cls

    @classmethod
    def of(cls, selection: Selection) -> Self:
        """Their values in a selection."""
        found = dict(selection.own)
        return cls(**{name: found[name] for name in rules(cls) if name in found})


def _groups() -> tuple[Any, ...]:
    return (Selection, *_OWN.values())


def known() -> dict[str, Rule]:
    """Every setting of a link, the shared ones first."""
    return {name: rule for group in _groups() for name, rule in rules(group).items()}


def values(selection: Selection) -> dict[str, Any]:
    """Every value of a selection by the name of its setting."""
    found = {name: getattr(selection, name) for name in rules(Selection)}
    return found | {n: v for own in _OWN.values() for n, v in vars(own.of(selection)).items()}


def value(selection: Selection, name: str) -> Any:
    """The value of one setting."""
    if name in rules(Selection):
        return getattr(selection, name)
    return getattr(next(own for own in _OWN.values() if name in rules(own)).of(selection), name)


def changed(selection: Selection, **changes: Any) -> Selection:
    """A copy with other values, which are not checked."""
    shared = {name: value for name, value in changes.items() if name in rules(Selection)}
    own = dict(selection.own) | {name: value for name, value in changes.items() if name not in shared}
    return dataclasses.replace(selection, **shared, own=tuple(sorted(own.items())))


def without(selection: Selection, *names: str) -> Selection:
    """A copy in which an analysis's own settings of these names are the usual ones again."""
    own = tuple((name, value) for name, value in selection.own if name not in names)
    return dataclasses.replace(selection, own=own)


def defaults(facts: Facts) -> Selection:
    """The selection a fresh visitor sees."""
    usual = {name: value for group in _groups() for name, value in start(group, facts).items()}
    return changed(Selection(), **usual)


def choices(facts: Facts) -> dict[str, tuple[str, ...]]:
    """Allowed values of every categorical field."""
    return {name: rule.allowed(facts) for name, rule in known().items() if rule.allowed is not None}


def bounds(facts: Facts) -> dict[str, tuple[float, float]]:
    """Inclusive lower and upper bound of every numeric field."""
    return {name: rule.limits(facts) for name, rule in known().items() if rule.limits is not None}


def limits(facts: Facts, name: str) -> tuple[float, float]:
    """Inclusive lower and upper bound of a numeric field."""
    asked = _rule(name).limits
    if asked is None:
        raise KeyError(name)
    return asked(facts)


def _rule(name: str) -> Rule:
    return next(rules(group)[name] for group in _groups() if name in rules(group))


def free() -> tuple[str, ...]:
    """Fields whose text only their page can judge."""
    return tuple(n for n, rule in known().items() if rule.allowed is None and rule.limits is None)


def parse(params: Mapping[str, str], facts: Facts) -> tuple[Selection, list[str]]:
    """Read a selection from query parameters.

    Args:
        params: raw strings of the URL; any of them may be nonsense.
        facts: what the store offers.

    Returns:
        The selection, and one sentence for each parameter that could not be used.
    """
    fresh, every = defaults(facts), known()
    usual, found, notices = values(fresh), {}, []
    if params.get(STORE, facts.store) != facts.store:
        notices.append(f"The link names a store {_short(params[STORE])}, which this server doesn't have.")
    for name, raw in params.items():
        if name == STORE:
            continue
        if name not in every:
            notices.append(f"The link has a setting {_short(name)} that does not exist; it was left out.")
            continue
        value, complaint = every[name].read(raw, facts)
        if value is not None:
            found[name] = value
            continue
        instead = f"showing {usual[name]} instead" if name not in free() else "it was left out"
        notices.append(f"{name} = {_short(raw)} {complaint}; {instead}.")
    if len(notices) > MOST_NOTICES:
        notices = [*notices[:MOST_NOTICES], f"{len(notices) - MOST_NOTICES} more were left out."]
    return changed(fresh, **found), notices


def _short(text: str) -> str:
    return ascii(text)[:60] if not is_text(text[:24]) else repr(text if len(text) <= 24 else text[:23] + "…")


def written(value: str | int | float) -> str:
    """A value as a link has it: what reads back as the same, but for the last digit of sliders' sums."""
    if not isinstance(value, float):
        return str(value)
    short = f"{value:.14g}"
    return short if math.isclose(float(short), value, rel_tol=1e-15) else repr(value)


def to_params(selection: Selection, facts: Facts) -> dict[str, str]:
    """Query parameters that differ from the defaults, in the order of the fields."""
    usual, place = values(defaults(facts)), {STORE: facts.store} if facts.several else {}
    return place | {name: written(value) for name, value in values(selection).items() if value != usual[name]}


def update(selection: Selection, facts: Facts, **changes: Any) -> Selection:
    """A copy with `changes`, each checked like a URL parameter; unusable ones are the default."""
    fresh = values(parse({name: written(value) for name, value in changes.items()}, facts)[0])
    return changed(selection, **{name: fresh[name] for name in changes if name in fresh})


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


def pair_of(selection: Selection) -> tuple[str, str]:
    """(target, source) of a selection."""
    return (selection.a, selection.b) if selection.target == "a" else (selection.b, selection.a)


def offered(facts: Facts, name: str, only: Sequence[str] | None = None) -> tuple[str, ...]:
    """Values a control offers for `name`, optionally restricted to `only`."""
    allowed = _rule(name).allowed
    if allowed is None:
        raise KeyError(name)
    return tuple(v for v in allowed(facts) if only is None or v in only)


def where_of(selection: Selection) -> Where:
    """The selected language and category."""
    chosen = {name: getattr(selection, name) for name in Where.model_fields}
    return Where(**{name: None if value == "all" else value for name, value in chosen.items()})


def where_changes(condition: Mapping[str, Any]) -> dict[str, str]:
    """Changes to a selection under which `where_of` gives a stored condition's prompts again."""
    where = condition.get("where") or {}
    return {name: where.get(name) or "all" for name in Where.model_fields}


def place_of(selection: Selection) -> dict[str, Any]:
    """The selected models, direction and place, as an experiment names them."""
    target, source = pair_of(selection)
    return {
        "target": target,
        "source": source,
        "component": selection.site,
        "layer": selection.layer,
        "position": selection.position,
        "read_at": selection.read_at,
    }


def place_changes(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `place_of` gives a stored condition's models and place again."""
    return {
        **pair_changes(condition, selection),
        "site": condition["component"],
        "layer": condition["layer"],
        "position": condition["position"],
        "read_at": condition["read_at"],
    }
