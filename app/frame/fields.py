"""What a setting of a link may be: one of some values, a number within bounds, or a text.

A dataclass declares its settings with `choice`, `number` and `text`; whoever reads or writes links finds the
rules there. Names are what links say and are never used twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

LONGEST = 2000
"""Characters of a text in a link; every head of a large model, written out, has fewer."""
_RULE = "rule"
T = TypeVar("T")


@dataclass(frozen=True)
class Facts:
    """What a store offers: the bounds of every selection.

    Args:
        models: model names, the default pair first.
        n_layers: blocks of each model.
        head_dim: width of one head of each model, the largest k of a Z basis.
        sites: components that can be shown (`head_out` only exists for patching).
        positions: captured positions with one row per prompt.
        averages: those of them that are means over several tokens, and can't be patched.
        languages, categories, splits: values found in the prompts table.
        large: whether a pass over all activations takes seconds; such parts start hidden.
        captured: blocks whose activations every model has; none where that is not known.
        width: the smallest width of the models' streams, the largest rank of a map.
        store: what links call the store. several: whether the server has others, so that they name it.
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
    averages: tuple[str, ...] = ()
    captured: tuple[int, ...] = ()
    store: str = ""
    several: bool = False

    @property
    def middle(self) -> int:
        """The block that is shown first: the middle one, or the captured one next to it."""
        half = (self.max_layer + 1) // 2
        return min(self.captured, key=lambda block: abs(block - half), default=half)

    @property
    def tokens(self) -> tuple[str, ...]:
        """Captured positions that are one token, and can be patched."""
        return tuple(name for name in self.positions if name not in self.averages)

    @property
    def pair(self) -> tuple[str, str]:
        """The two models shown first; one model twice where the store has no other."""
        return self.models[0], self.models[1] if len(self.models) > 1 else self.models[0]

    @property
    def max_layer(self) -> int:
        """Largest block index that every model has."""
        return min(self.n_layers.values()) - 1

    @property
    def max_k(self) -> int:
        """Largest subspace rank offered: the smallest head width among the models."""
        return min(self.head_dim.values())


Asked = Callable[[Facts], T]


@dataclass(frozen=True)
class Rule:
    """What a setting may be in a store: values, or bounds; a text that only its page can judge has neither.

    Args:
        allowed: the values of a choice. limits: inclusive bounds of a number; whole: an integer.
        usual: the default where that depends on the store.
    """

    allowed: Asked[tuple[str, ...]] | None = None
    limits: Asked[tuple[float, float]] | None = None
    whole: bool = False
    usual: Asked[Any] | None = None

    def read(self, raw: str, facts: Facts) -> tuple[str | int | float | None, str]:
        """The value that a text stands for, or None and what is wrong with it."""
        if self.allowed is not None:
            allowed = self.allowed(facts)
            return (raw, "") if raw in allowed else (None, f"is not in this store ({', '.join(allowed)})")
        if self.limits is not None:
            return _number(raw, *self.limits(facts), whole=self.whole)
        return (raw, "") if is_text(raw) else (None, "is no text that can be used")


def choice(*values: str, among: Asked[tuple[str, ...]] | None = None, usual: Asked[str] | None = None) -> Any:
    """One of given values, the first by default; or of those that a store has."""
    rule = Rule(allowed=among or (lambda _facts: values), usual=usual)
    return dataclasses.field(default=values[0] if values else "", metadata={_RULE: rule})


def number(
    default: float,
    low: float = 0.0,
    high: float = 0.0,
    *,
    within: Asked[tuple[float, float]] | None = None,
    usual: Asked[float] | None = None,
) -> Any:
    """A number from low to high, whole if its default is an integer; or within bounds that a store has."""
    limits = within or (lambda _facts: (float(low), float(high)))
    rule = Rule(limits=limits, whole=isinstance(default, int), usual=usual)
    return dataclasses.field(default=default, metadata={_RULE: rule})


def text() -> Any:
    """A text that only its page can judge: a run's id, heads as "0,2", names."""
    return dataclasses.field(default="", metadata={_RULE: Rule()})


def rules(declared: Any) -> Mapping[str, Rule]:
    """The settings that a dataclass declares, by name."""
    return _rules(declared)


@functools.cache
def _rules(declared: Any) -> Mapping[str, Rule]:
    return {f.name: f.metadata[_RULE] for f in dataclasses.fields(declared) if _RULE in f.metadata}


def start(declared: Any, facts: Facts) -> dict[str, Any]:
    """Their defaults in a store."""
    usual = {f.name: f.default for f in dataclasses.fields(declared) if _RULE in f.metadata}
    found = rules(declared).items()
    return usual | {name: rule.usual(facts) for name, rule in found if rule.usual is not None}


def is_text(raw: str) -> bool:
    """Whether a free text is short enough, without control and half characters."""
    return len(raw) <= LONGEST and not any(unicodedata.category(mark) in ("Cc", "Cs") for mark in raw)


def power(exponent: float) -> float:
    """10^exponent; where that is, but for rounding, a number of at most nine digits, that number."""
    found = 10.0**exponent
    near = float(f"{found:.9g}")
    return near if math.isclose(found, near, rel_tol=1e-13) else found


def exponent(value: float) -> float:
    """The decimal logarithm of which `power` gives `value` again, in few digits where these do."""
    full = math.log10(value)
    few = round(full, 6)
    return few if power(few) == value else full


def whole(text: str) -> int | None:
    """A whole number from 0 to 999999 written in digits, or None for any other text."""
    return int(text) if re.fullmatch(r"\s*[0-9]{1,6}\s*", text) else None


def listed(text: str, allowed: Collection[str], most: int) -> list[str]:
    """The allowed ones among names with commas between them, each once, at most so many."""
    return [name for name in dict.fromkeys(text.split(",")) if name in allowed][:most]


def _number(raw: str, low: float, high: float, *, whole: bool) -> tuple[float | int | None, str]:
    try:
        found = float(raw)
    except ValueError:
        return None, "is not a number"
    if not math.isfinite(found):
        return None, "is not a finite number"
    if whole and found != int(found):
        return None, "is not a whole number"
    if not low <= found <= high:
        return None, f"is outside {low:g} to {high:g}"
    return (int(found) if whole else found), ""
