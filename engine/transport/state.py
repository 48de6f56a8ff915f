"""Fitted maps as plain arrays and JSON, and back: nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from engine.errors import AnalysisError
from engine.transport.base import TransportMap
from engine.transport.clustered import ClusteredTransport
from engine.transport.logit import LogitSubspaceRidge
from engine.transport.procrustes import PCAProcrustes, ScaledProcrustes
from engine.transport.ridge import RidgeTransport
from engine.transport.simple import Identity, MeanShift, MomentMatching

FORMAT = 1

TRANSPORTS: dict[str, type[TransportMap]] = {
    cls.__name__: cls
    for cls in (
        Identity,
        MeanShift,
        MomentMatching,
        RidgeTransport,
        PCAProcrustes,
        ScaledProcrustes,
        LogitSubspaceRidge,
        ClusteredTransport,
    )
}
"""Every map by name. `register_transport` adds to it."""


def register_transport(cls: type[TransportMap]) -> type[TransportMap]:
    """Decorator: makes a map known by its class name, so that it can be listed, exported and loaded."""
    if cls.__name__ in TRANSPORTS:
        raise AnalysisError(
            "A transport map has this name already.", expected="a new name", given=cls.__name__
        )
    TRANSPORTS[cls.__name__] = cls
    return cls


def export_map(fitted: TransportMap) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """A fitted map as a JSON-ready description and named arrays.

    Arrays given as parameters (an unembedding) and the decompositions kept for other shrinkages are left
    out: a loaded map predicts, moves along its path, and is scored, but isn't fitted again.
    """
    check_is_fitted(fitted, "single_output_")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    return {"format": FORMAT, **_encode_map(fitted, "", arrays)}, arrays


def import_map(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> TransportMap:
    """The map that `export_map` described.

    Raises:
        AnalysisError: another format, a map of an unknown kind, or an array that is missing.
    """
    if description.get("format") != FORMAT:
        raise AnalysisError(
            "This map was saved in another format.",
            expected=f"format {FORMAT}",
            given=description.get("format"),
            next_step="Fit the map again with this version.",
        )
    return _decode_map(description, arrays)


def _encode_map(fitted: TransportMap, prefix: str, arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    made = [k for k, v in vars(type(fitted)).items() if isinstance(v, cached_property) and hasattr(fitted, k)]
    names = [k for k in {**vars(fitted), **dict.fromkeys(made)} if k.endswith("_")]
    names = [k for k in names if k != "feature_names_in_"]
    return {
        "map": type(fitted).__name__,
        "params": {k: _encode_parameter(v) for k, v in fitted.get_params(deep=False).items()},
        "state": {k: _encode(getattr(fitted, k), f"{prefix}{k}", arrays) for k in names},
    }


def _encode_parameter(value: Any) -> Any:
    """Plain values, and maps without what they fitted; arrays become None."""
    if isinstance(value, np.ndarray):
        return None
    return _encode(clone(value) if isinstance(value, TransportMap) else value, "", {})


def _encode(value: Any, key: str, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[key] = np.ascontiguousarray(value)
        return {"array": key}
    if isinstance(value, TransportMap):
        return _encode_map(value, f"{key}.", arrays)
    if isinstance(value, (tuple, list)):
        return [_encode(v, f"{key}.{i}", arrays) for i, v in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _decode_map(description: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> TransportMap:
    kind = description.get("map")
    if kind not in TRANSPORTS:
        raise AnalysisError(
            "The saved map is of a kind that isn't known here.",
            expected=", ".join(sorted(TRANSPORTS)),
            given=kind,
            next_step="Import the module that registers it first.",
        )
    fitted = TRANSPORTS[kind](**{k: _decode(v, {}) for k, v in description["params"].items()})
    for name, value in description["state"].items():
        setattr(fitted, name, _decode(value, arrays))
    return fitted


def _decode(value: Any, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v, arrays) for v in value)
    if not isinstance(value, Mapping):
        return value
    if "map" in value:
        return _decode_map(value, arrays)
    if value["array"] not in arrays:
        raise AnalysisError(
            "An array of the saved map is missing.", expected=value["array"], given=sorted(arrays)
        )
    return np.asarray(arrays[value["array"]])
