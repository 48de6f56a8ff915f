"""What is said to fit the schema of Vega-Lite at a glance fits by jsonschema; whatever it refuses doesn't."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import altair as alt
import polars as pl
import pytest
import quick_schema

from app.charts.bars import interval_bars
from app.charts.palette import LIGHT

CHANGES = 80
NULL = {"type": "null"}
OTHERS: list[Any] = [None, True, -1, 1.5, "x", [], {}, {"field": 1}, ["a"], [1, "a"]]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    table = pl.DataFrame({"name": ["a", "b"], "series": ["one", "two"], "value": [1.0, 2.0]})
    table = table.with_columns(low=pl.col("value") - 0.5, high=pl.col("value") + 0.5)
    colors = {"one": LIGHT.a, "two": LIGHT.b}
    return interval_bars(
        table, x_title="x", y_title="y", colors=colors, palette=LIGHT, references={"all": 9.0}
    ).spec()


def places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    steps = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for step, below in steps:
        yield (*above, step)
        yield from places(below, (*above, step))


def changed(spec: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """With one value replaced, taken away, or under another name."""
    made = copy.deepcopy(spec)
    *folders, last = rng.choice([place for place in places(made) if "values" not in place])
    node: Any = made
    for step in folders:
        node = node[step]
    how = rng.random()
    if how < 0.2 and isinstance(node, dict):
        node[f"{last}X"] = node.pop(last)
    elif how < 0.4:
        del node[last]
    else:
        node[last] = rng.choice(OTHERS)
    return made


def test_charts_fit_and_changed_ones_as_jsonschema_says(spec: dict[str, Any]) -> None:
    schema, root, rng = alt.LayerChart._schema, alt.LayerChart._rootschema, random.Random(0)
    assert quick_schema.fits(spec, schema, root)
    found = []
    for _ in range(CHANGES):
        one = changed(spec, rng)
        found.append(quick_schema.fits(one, schema, root))
        assert found[-1] == (not quick_schema._slow(one, schema, rootschema=root)), one
    assert 10 < sum(found) < CHANGES - 10


@pytest.mark.parametrize(
    ("schema", "fit", "not_fit"),
    [
        ({"type": "number"}, [1, 1.5], [True, "1", None]),
        ({"type": ["integer", "null"]}, [1, 1.0, None], [1.5, True]),
        ({"enum": [1, "a"]}, [1, "a"], [True, "b", [1]]),
        ({"const": 0}, [0, 0.0], [False]),
        ({"minimum": 2, "maximum": 3}, [2, 3, "text"], [1.9, 4]),
        ({"minLength": 2, "maxLength": 3}, ["ab", 7], ["a", "abcd"]),
        ({"minItems": 1, "maxItems": 1, "items": {"type": "string"}}, [["a"], {}], [[], [1], ["a", "b"]]),
        ({"required": ["a"], "minProperties": 2}, [{"a": 1, "b": 2}, 3], [{"b": 1, "c": 2}, {"a": 1}]),
        ({"properties": {"a": NULL}, "additionalProperties": False}, [{}, {"a": None}], [{"a": 1}, {"b": 1}]),
        ({"properties": {"a": True}, "additionalProperties": NULL}, [{"a": 1, "b": None}], [{"b": 1}]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["a", 5, None], [4]),
    ],
)
def test_each_keyword_by_hand(schema: dict[str, Any], fit: list[Any], not_fit: list[Any]) -> None:
    for value in fit:
        assert quick_schema.fits(value, schema)
        assert not quick_schema._slow(value, schema, rootschema=schema)
    for value in not_fit:
        assert not quick_schema.fits(value, schema)
        assert quick_schema._slow(value, schema, rootschema=schema)


def test_what_is_unknown_is_left_to_jsonschema() -> None:
    """A keyword that nobody thought of never makes a value fit, and what jsonschema says then counts."""
    odd = {"multipleOf": 2}
    assert not quick_schema.fits(4, odd)
    assert quick_schema.errors_of(4, odd) == []
    assert quick_schema.errors_of(3, odd)
    with pytest.raises(alt.utils.schemapi.SchemaValidationError):
        alt.Chart(alt.NamedData(name="x")).mark_bar(opacity="much").to_dict()
