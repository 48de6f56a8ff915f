"""Patchbay in a notebook: `import patchbay as pb`.

    store = pb.open("runs/demo")
    x, y = (store.activations(model, "resid_post", 4, "decision") for model in ("base", "tuned"))
    pb.cka(x, y)
    pb.patch("runs/demo", target="tuned", source="base", component="attn_out", layer=4)

Functions take numpy arrays or torch tensors on any device; rows are prompts, columns coordinates of the
stream. What isn't here is one import away: `engine` (`patchbay.engine` where it was installed from a wheel)
holds every analysis as plain functions, without Streamlit and Zarr.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.imported.files import plain as array
from engine.errors import PatchbayError
from engine.similarity.cka import linear_cka
from engine.transport import (
    ClusteredTransport,
    Identity,
    LogitSubspaceRidge,
    MeanShift,
    MomentMatching,
    PCAProcrustes,
    RidgeTransport,
    ScaledProcrustes,
    TransportScores,
    evaluate_transport,
)
from engine.transport.named import MapSpec
from store.reader import Store

if TYPE_CHECKING:
    import polars as pl

    from engine.lab.experiment import Experiment, Result
    from engine.similarity.cka import Cka
    from engine.transport import TransportMap

__all__ = [
    "ClusteredTransport",
    "Identity",
    "LogitSubspaceRidge",
    "MeanShift",
    "MomentMatching",
    "PCAProcrustes",
    "PatchbayError",
    "RidgeTransport",
    "ScaledProcrustes",
    "Store",
    "cka",
    "evaluate",
    "from_arrays",
    "open",
    "patch",
    "precompute",
    "run",
]


def open(path: str | Path) -> Store:
    """An activation store, at a folder or a URL; raises StoreError when there is none, or it is damaged."""
    return Store(path)


def precompute(study: str | Path, store: str | Path | None = None) -> Store:
    """Computes the store of a study file, or finishes one that was interrupted; raises PatchbayError.

    Args:
        store: its folder; `runs/<name of the study>` where it isn't given.
    """
    from app.build.build import build
    from engine.study.study import Study

    asked = Study.load(study)
    return build(asked, Path("runs") / asked.name if store is None else store)


def from_arrays(
    path: str | Path,
    activations: Mapping[str, Mapping[str, Any]],
    prompts: str | Path | pl.DataFrame | Sequence[Mapping[str, Any]],
    **settings: Any,
) -> Store:
    """Makes a store of activations that were computed elsewhere; `patchbay serve` opens it.

        cache = model.run_with_cache(tokens)[1]  # TransformerLens
        pb.from_arrays("runs/mine", {"gpt2": cache.cache_dict}, rows, token=-1)

    Args:
        activations: model -> name of the array -> (prompt, width), or (prompt, token, width) with `token`.
        prompts: a file, a table or rows: one for each row of the arrays, `text` at least.
        settings: those of `app.imported.store.import_arrays`: token, position, name, dtype.

    Raises:
        PatchbayError: names that are no sites, shapes that don't fit, values that are not finite.
    """
    from app.imported.command import prompts_table
    from app.imported.store import import_arrays

    return import_arrays(path, activations, prompts_table(prompts), **settings)


def cka(x: Any, y: Any, debiased: bool = True) -> Cka:
    """Linear centred kernel alignment of two sets of activations of the same prompts.

    Args:
        x, y: (n, d) and (n, e).
        debiased: the estimator whose expectation does not grow with d / n.

    Raises:
        AnalysisError: other shapes, too few rows, or numbers that are not finite.
    """
    return linear_cka(array(x), array(y), debiased)


def evaluate(
    transport: TransportMap, train: tuple[Any, Any], validation: tuple[Any, Any], **settings: Any
) -> TransportScores:
    """Fits a map on the train pairs and judges it on the others, with its shuffled null.

    Args:
        train, validation: source (n, d) and target (n, e), a row a prompt.
        settings: those of `engine.transport.evaluate_transport`.

    Raises:
        AnalysisError: other shapes, or too few rows.
    """
    pairs = [array(side) for pair in (train, validation) for side in pair]
    return evaluate_transport(transport, *pairs, **settings)


def patch(store: str | Path, *, map: str | Mapping[str, Any] | None = None, **condition: Any) -> Result:
    """Puts an activation of one model into another one, live, and keeps the result in the store.

    Args:
        map: carry it over by a transport map: a name such as "RidgeTransport", or the fields of
            `engine.transport.named.MapSpec`; None puts it in without one.
        condition: fields of `engine.patching.spec.Condition`, with a map of
            `engine.patching.mapped_spec.MappedPatch`: target, source, component, layer, position, alphas, …

    Returns:
        its `summary` and `tables`; KL in nats, a row a prompt.

    Raises:
        PatchbayError: a condition that these models can't have; a model that can't be loaded.
    """
    from engine.patching.mapped_spec import MappedPatch
    from engine.patching.spec import Condition

    if map is None:
        return run(store, Condition(**condition))
    spec = MapSpec(**({"method": map} if isinstance(map, str) else map))
    return run(store, MappedPatch(map=spec, **condition))


def run(store: str | Path, experiment: Experiment, device: str = "auto") -> Result:
    """Runs any experiment of `engine.kinds` on a store and keeps its result there; raises PatchbayError."""
    from app.live.run import run_live

    return run_live(str(store), experiment, device)[1]
