"""One candidate's basis at one layer, whatever its rule does."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError, JobError
from engine.subspaces.numbers.registry import Candidate
from engine.subspaces.numbers.scores import LeftOut
from engine.subspaces.numbers.workspace import Workspace

Array = NDArray[np.float64]


def build(
    entry: Candidate, inputs: Workspace, layer: int, k: int, left_out: dict[str, LeftOut]
) -> Array | None:
    """A candidate's basis, or None and an entry in `left_out`: one bad candidate must not stop the sweep."""
    space = visible(entry, inputs)

    def compute() -> Array:
        if entry.shared and entry.axis_kind != "ceiling":  # a ceiling has one for every weight change
            return inputs.once(f"shared/{entry.name}/{k}", -1, lambda: entry.basis(space, 0, k), keep=True)
        return entry.basis(space, 0 if entry.shared else layer, k)

    return _guarded(entry, layer, compute, left_out)


def detail(
    entry: Candidate, inputs: Workspace, layer: int, k: int, left_out: dict[str, LeftOut]
) -> Array | None:
    """The numbers (k,) that a candidate shows beside its basis, NaN beyond the last; None as for `build`."""
    show, space = entry.detail, visible(entry, inputs)
    if show is None:
        return None
    found = _guarded(entry, layer, lambda: np.asarray(show(space, layer, k), dtype=float)[:k], left_out)
    return None if found is None else np.pad(found, (0, k - len(found)), constant_values=np.nan)


def visible(entry: Candidate, inputs: Workspace) -> Workspace:
    """What a candidate may look at: ceilings at everything, others not at the weight change."""
    return inputs if entry.axis_kind == "ceiling" else inputs.blind


def _guarded(
    entry: Candidate, layer: int, compute: Callable[[], Array], left_out: dict[str, LeftOut]
) -> Array | None:
    try:
        with np.errstate():  # what a candidate changes of it ends with it
            return compute()
    except JobError:  # cancelled
        raise
    except (Exception, SystemExit) as error:
        reason = str(error) if isinstance(error, AnalysisError) else f"{type(error).__name__}: {error}"
        left_out[entry.name] = LeftOut(entry.name, layer, reason + _where(entry, error))
        return None


def _where(entry: Candidate, error: BaseException) -> str:
    """The line of the candidate's own file that an unforeseen error came from."""
    code = getattr(entry.build, "__code__", None)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    if isinstance(error, AnalysisError) or not own:
        return ""
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})"
