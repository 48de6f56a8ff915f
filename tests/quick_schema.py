"""Says quickly that a value fits a JSON schema; whatever it doesn't call fitting is left to jsonschema.

Altair checks a chart and each of its parts by jsonschema, which collects every error below every branch of an
`anyOf` even where another branch fits: a third of the time of the page tests. Here the first branch that fits
ends the search. A keyword that isn't known fits nothing, so that jsonschema looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from altair.utils import schemapi
from jsonschema import Draft7Validator
from jsonschema._utils import equal

Fits = Callable[[Any], bool]
_SAID = {"description", "default", "$schema", "definitions"}
"""Keywords that ask for nothing."""
_slow = schemapi._get_errors_from_spec
_known: dict[int, tuple[dict[str, Any], Schema]] = {}


class Schema:
    """The checks of one root schema, made when they're first asked for."""

    def __init__(self, root: dict[str, Any]) -> None:
        self.root = root
        self.named: dict[str, Fits] = {}

    def fits(self, value: Any, schema: dict[str, Any]) -> bool:
        return self._check(schema)(value)

    def _check(self, schema: Any) -> Fits:
        if not isinstance(schema, dict):
            return lambda _: schema is True
        if "$ref" in schema:  # what stands beside it doesn't count in this draft
            return self._ref(schema["$ref"])
        checks = [self._keyword(name, schema) for name in sorted(schema, key=_dear) if name not in _SAID]
        if len(checks) == 1:
            return checks[0]
        return lambda value: all(check(value) for check in checks)

    def _ref(self, name: str) -> Fits:
        def later(value: Any) -> bool:  # definitions name each other in circles
            if name not in self.named:
                found: Any = self.root
                for step in name.removeprefix("#/").split("/"):
                    found = found[step]
                self.named[name] = self._check(found)
            return self.named[name](value)

        return later if name.startswith("#/") and not {"%", "~"} & set(name) else _none

    def _keyword(self, name: str, schema: dict[str, Any]) -> Fits:
        limit = schema[name]
        if name in _LIMITS:
            kind, within = _LIMITS[name]
            return lambda value: not _KINDS[kind](value) or within(value, limit)
        if name == "additionalProperties" and "patternProperties" not in schema:
            own, rest = schema.get("properties", {}), self._check(limit)
            return lambda value: (
                not isinstance(value, dict) or all(rest(value[key]) for key in value if key not in own)
            )
        made: dict[str, Callable[[Any], Fits]] = {
            "type": _of_a_type,
            "enum": _one_of,
            "const": lambda only: _one_of([only]),
            "anyOf": self._any,
            "items": self._items,
            "properties": self._properties,
        }
        return made[name](limit) if name in made else _none

    def _any(self, parts: list[Any]) -> Fits:
        checks = [self._check(part) for part in parts]
        return lambda value: any(check(value) for check in checks)

    def _items(self, part: Any) -> Fits:
        each = self._check(part)  # a list of schemas, one for each place, fits nothing here
        return lambda value: not isinstance(value, list) or all(map(each, value))

    def _properties(self, parts: dict[str, Any]) -> Fits:
        checks = {key: self._check(part) for key, part in parts.items()}
        return lambda value: (
            not isinstance(value, dict) or all(checks[key](value[key]) for key in value if key in checks)
        )


def _of_a_type(named: str | list[str]) -> Fits:
    kinds = [_KINDS[kind] for kind in ([named] if isinstance(named, str) else named)]
    return lambda value: any(kind(value) for kind in kinds)


def _one_of(allowed: list[Any]) -> Fits:
    return lambda value: any(equal(one, value) for one in allowed)


def _none(_: Any) -> bool:
    return False


def _dear(keyword: str) -> int:
    """What is told at one glance comes first."""
    order = ("type", "const", "enum", "required", "additionalProperties", "properties", "items", "anyOf")
    return order.index(keyword) if keyword in order else -1


_KINDS: dict[str, Fits] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: Draft7Validator.TYPE_CHECKER.is_type(value, "integer"),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value, limit: not value < limit),
    "maximum": ("number", lambda value, limit: not value > limit),
    "minLength": ("string", lambda value, limit: len(value) >= limit),
    "maxLength": ("string", lambda value, limit: len(value) <= limit),
    "minItems": ("array", lambda value, limit: len(value) >= limit),
    "maxItems": ("array", lambda value, limit: len(value) <= limit),
    "minProperties": ("object", lambda value, limit: len(value) >= limit),
    "required": ("object", lambda value, limit: all(name in value for name in limit)),
    "format": ("string", Draft7Validator.FORMAT_CHECKER.conforms),
}


def fits(spec: Any, schema: dict[str, Any], rootschema: dict[str, Any] | None = None) -> bool:
    """Whether the value certainly fits; False says nothing."""
    root = rootschema or schema
    if id(root) not in _known:
        _known[id(root)] = (root, Schema(root))
    return _known[id(root)][1].fits(spec, schema)


def errors_of(spec: Any, schema: dict[str, Any], rootschema: dict[str, Any] | None = None) -> Any:
    """In place of Altair's function of this meaning."""
    return [] if fits(spec, schema, rootschema) else _slow(spec, schema, rootschema=rootschema)


def install() -> None:
    """Lets Altair ask here first, in this process."""
    schemapi._get_errors_from_spec = errors_of
