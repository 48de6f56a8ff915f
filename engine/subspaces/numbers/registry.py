"""The registry of candidate subspaces: one function and one decorator for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.geometry.z import check_basis
from engine.subspaces.numbers.inputs import OF_TARGET, Inputs
from engine.subspaces.numbers.workspace import Workspace

Array = NDArray[np.float64]
AxisKind = Literal["write", "read", "mixed", "ceiling"]
Build = Callable[[Workspace, int, int], Array]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What tables say of a candidate.

    Attributes:
        name, family, source, definition: the definition is one line.
        axis_kind: "write" or "read": the side of the weights that it comes from; "mixed" otherwise. A
            "ceiling" may look at the weight change.
        needs: items of `Inputs` (or "label", "label_fit", "delta") that it takes.
    """

    name: str
    family: str
    axis_kind: AxisKind
    source: str
    needs: tuple[str, ...]
    definition: str


@dataclass(frozen=True, kw_only=True)
class Candidate(Description):
    """A rule that gives a subspace of the residual stream for every layer.

    Attributes:
        build: (inputs, layer, k) -> column-orthonormal (d, r), r ≤ k.
        nested: the basis for k is the first k columns of the one for any larger k, so that it is built once.
        expands: the basis may have up to 2k columns, e.g. a union; it is scored at its true rank. Not nested.
        shared: one basis for all layers; `build` is called for one of them.
        detail: more numbers to show beside the basis, e.g. cosines of an intersection.
    """

    build: Build
    nested: bool = False
    expands: bool = False
    shared: bool = False
    detail: Build | None = None

    def described(self) -> Description:
        """The same without the rule."""
        return Description(**{name: getattr(self, name) for name in Description.__dataclass_fields__})

    def basis(self, inputs: Workspace, layer: int, k: int) -> Array:
        """Builds the basis and refuses what is none.

        Raises:
            AnalysisError: complex, wrong width, more than k columns, not finite, not orthonormal.
        """
        built = np.asarray(self.build(inputs, layer, k))
        if np.iscomplexobj(built) and np.any(built.imag):
            raise AnalysisError(
                f"The candidate {self.name} is complex.",
                expected="real numbers",
                given=f"imaginary parts up to {np.abs(built.imag).max():.2g} at layer {layer}",
                next_step="of a complex pair of directions, take the real and the imaginary part as two.",
            )
        basis = np.asarray(built.real if np.iscomplexobj(built) else built, dtype=np.float64)
        most = 2 * k if self.expands else k
        if basis.ndim != 2 or basis.shape[0] != inputs.d or basis.shape[1] > most:
            raise AnalysisError(
                f"The candidate {self.name} gave no basis of the stream.",
                expected=f"shape ({inputs.d}, r) with r ≤ {most}",
                given=f"shape {basis.shape}",
                next_step="return one column for each direction.",
            )
        if not np.isfinite(basis).all():
            raise AnalysisError(
                f"The candidate {self.name} is not finite.",
                expected="numbers",
                given=f"{int((~np.isfinite(basis)).sum())} NaN or inf at layer {layer}",
            )
        check_basis(basis, inputs.d)
        exact = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max(initial=0.0) < 1e-12
        return basis if exact else np.linalg.qr(basis)[0]  # leading columns keep their span


class Registry(Mapping[str, Candidate]):
    """Candidates by name, in the order in which they were registered."""

    def __init__(self, entries: Mapping[str, Candidate] | None = None) -> None:
        self._entries: dict[str, Candidate] = dict(entries or {})

    def __getitem__(self, name: str) -> Candidate:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Candidate) -> None:
        """Adds a candidate.

        Raises:
            AnalysisError: words that are no text, a name that is taken, an unknown axis kind or need, a
                definition of several lines, or a need that only a ceiling may have.
        """
        for what in ("name", "family", "source", "definition"):
            said = getattr(entry, what)
            if not isinstance(said, str) or not said.strip():
                raise AnalysisError(
                    f"The candidate {entry.name!r} is not described well.",
                    expected=f"a text for {what}",
                    given=repr(said),
                )
        if entry.name in self._entries:
            raise AnalysisError(
                "This candidate name is taken.",
                expected="a new name",
                given=repr(entry.name),
                next_step="choose another name, or remove the other entry first.",
            )
        if entry.axis_kind not in get_args(AxisKind) or "\n" in entry.definition.strip():
            raise AnalysisError(
                f"The candidate {entry.name} is not described well.",
                expected=f"axis_kind one of {', '.join(get_args(AxisKind))} and a definition of one line",
                given=f"{entry.axis_kind!r} and {entry.definition!r}",
            )
        known = (*Inputs.__dataclass_fields__, *OF_TARGET)
        unknown = [need for need in entry.needs if need not in known]
        if unknown:
            raise AnalysisError(
                f"The candidate {entry.name} needs what no inputs have.",
                expected=", ".join(known),
                given=", ".join(unknown),
            )
        if entry.axis_kind != "ceiling" and set(entry.needs) & set(OF_TARGET):
            raise AnalysisError(
                f"The candidate {entry.name} looks at the weight change.",
                expected=f"axis_kind ceiling, or none of {', '.join(OF_TARGET)} among its needs",
                given=f"{entry.axis_kind!r} and {', '.join(entry.needs)}",
            )
        self._entries[entry.name] = entry

    def remove(self, name: str) -> None:
        """Takes a candidate out again; nothing happens where there is none."""
        self._entries.pop(name, None)


REGISTRY = Registry()
_registry: ContextVar[Registry] = ContextVar("registry", default=REGISTRY)


@contextmanager
def registering_in(registry: Registry) -> Iterator[None]:
    """Inside it, `candidate` adds to this registry instead of to `REGISTRY`."""
    token = _registry.set(registry)
    try:
        yield
    finally:
        _registry.reset(token)


def candidate(
    *,
    name: str,
    family: str,
    axis_kind: AxisKind,
    source: str,
    needs: tuple[str, ...],
    definition: str,
    nested: bool = False,
    expands: bool = False,
    shared: bool = False,
    detail: Build | None = None,
    registry: Registry | None = None,
) -> Callable[[Build], Build]:
    """Registers a function (inputs, layer, k) -> (d, r ≤ k) as a candidate; see `Candidate`."""

    def register(build: Build) -> Build:
        entry = Candidate(
            build=build,
            name=name,
            family=family,
            axis_kind=axis_kind,
            source=source,
            needs=needs,
            definition=definition,
            nested=nested,
            expands=expands,
            shared=shared,
            detail=detail,
        )
        (_registry.get() if registry is None else registry).add(entry)
        return build

    return register


def definitions(registry: Mapping[str, Description] = REGISTRY) -> str:
    """The registry as a Markdown table."""
    lines = ["| name | family | axis kind | source | needs | definition |", "|---|---|---|---|---|---|"]
    for entry in registry.values():
        cells = (entry.family, entry.axis_kind, entry.source, ", ".join(entry.needs), entry.definition)
        escaped = (cell.replace("|", "\\|") for cell in cells)
        lines.append(f"| `{entry.name}` | {' | '.join(escaped)} |")
    return "\n".join(lines) + "\n"
