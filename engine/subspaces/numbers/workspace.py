"""What candidates are given: checked float64 inputs, and what several of them share, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from engine.errors import AnalysisError
from engine.subspaces.numbers.inputs import HIDDEN, TENSORS, Inputs, Target
from engine.subspaces.numbers.linear import RANK_TOLERANCE, signed

Array = NDArray[np.float64]

READS = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")
WRITES = ("o_proj", "down_proj")
MOMENTS = ("act", "o_proj", "down_proj", "combined")


class Cache:
    """Arrays by name and layer, the oldest leaving first when they take more than `limit` bytes."""

    def __init__(self, limit: int = 2**30) -> None:
        self.limit = limit
        self._held: dict[tuple[str, int], Array] = {}
        self._kept: dict[tuple[str, int], Array] = {}

    def once(self, name: str, layer: int, compute: Callable[[], Array], keep: bool = False) -> Array:
        """The array of this name and layer, computed if it isn't held. `keep`: never given up."""
        key = (name, layer)
        for held in (self._kept, self._held):
            if key in held:
                return held[key]
        value = compute().view()
        value.flags.writeable = False
        if keep:
            self._kept[key] = value
            return value
        self._held[key] = value
        total = sum(array.nbytes for array in self._held.values())
        for oldest in list(self._held):
            if total <= self.limit or oldest == key:
                break
            total -= self._held.pop(oldest).nbytes
        return value

    def drop_above(self, layer: int) -> None:
        """Gives up what belongs to later layers, other than kept arrays."""
        for key in [key for key in self._held if key[1] > layer]:
            del self._held[key]

    def drop(self, layer: int, *prefixes: str) -> None:
        """Gives up a layer's arrays whose names begin like this, other than kept ones."""
        for key in [key for key in self._held if key[1] == layer and key[0].startswith(prefixes)]:
            del self._held[key]


@dataclass(frozen=True)
class Moment:
    """A second moment of trace 1, S = U diag(λ) Uᵀ: where in the stream some energy lies.

    Attributes:
        vectors: (d, m) orthonormal. energy: (m,), descending, summing to 1; empty when there is no energy.
    """

    vectors: Array
    energy: Array

    @classmethod
    def of(cls, columns: Float[np.ndarray, "d m"]) -> Moment:
        """S = C Cᵀ/‖C‖_F²."""
        d, m = columns.shape
        total = float(np.linalg.norm(columns))
        if total == 0:
            return cls(np.zeros((d, 0)), np.zeros(0))
        if m > d:
            energy, vectors = np.linalg.eigh(columns @ columns.T / total**2)
            energy, vectors = energy[::-1], vectors[:, ::-1]
        else:
            vectors, sigma, _ = np.linalg.svd(columns / total, full_matrices=False)
            energy = sigma**2
        keep = energy > RANK_TOLERANCE**2
        return cls(signed(vectors[:, keep]), energy[keep] / energy[keep].sum())

    @property
    def columns(self) -> Float[np.ndarray, "d m"]:
        """C with S = C Cᵀ."""
        found: Array = self.vectors * np.sqrt(self.energy)
        return found

    def inside(self, basis: Float[np.ndarray, "d r"]) -> Float[np.ndarray, " r"]:
        """Energy along each column of a basis."""
        return ((self.vectors.T @ basis) ** 2 * self.energy[:, None]).sum(axis=0)


class Workspace:
    """Inputs as float64 arrays checked for NaN, with shared intermediates.

    Attributes:
        raw: the inputs as given. target: what ceilings look at and everything is scored against.
        broad: rank of the subspaces that others are taken away from. widest: rank up to which nested bases
            are built, so that a smaller k only takes columns.
    """

    def __init__(
        self,
        raw: Inputs,
        broad: int = 64,
        widest: int = 64,
        target: Target | None = None,
        cache: Cache | None = None,
    ):
        self.raw, self.broad, self.widest = raw, broad, max(widest, broad)
        self.target, self.cache = target or raw.target, cache or Cache()
        self.d, self.n_layers = raw.d, raw.n_layers
        self.n_heads, self.n_kv_heads = raw.n_heads, raw.n_kv_heads

    @cached_property
    def blind(self) -> Workspace:
        """The same, without the weight change."""
        return Workspace(replace(self.raw, target=HIDDEN), self.broad, self.widest, HIDDEN, self.cache)

    def get(self, name: str, layer: int) -> Array:
        """An item of the inputs.

        Raises:
            AnalysisError: not there, not finite, or a last axis that doesn't fit the model.
        """
        item = getattr(self.raw, name, None)
        if item is None:
            raise AnalysisError(f"There is no {name}.", expected="inputs that hold it", given="none")
        return self.once(f"input/{name}", layer, lambda: checked(item(layer), f"{name} of layer {layer}"))

    def once(
        self,
        name: str,
        layer: int,
        compute: Callable[[], Array],
        keep: bool = False,
        owner: Callable[..., Array] | None = None,
    ) -> Array:
        """Computed once for all candidates: see `Cache.once`.

        Names are those of the module that `owner` (by default `compute`) is from, so that a user's own never
        meet the built-in ones.
        """
        module = getattr(owner or compute, "__module__", None) or ""
        own = "" if module.startswith(f"{__package__}.") else f"{module}:"
        return self.cache.once(f"{own}{name}", layer, compute, keep)

    def leading(
        self, name: str, layer: int, k: int, build: Callable[[int], Array], keep: bool = False
    ) -> Array:
        """The first k columns of a nested basis that several candidates take from; built for `widest`."""
        wide = max(k, self.widest)
        return self.once(f"{name}/{wide}", layer, lambda: build(wide), keep, owner=build)[:, :k]

    def read_weight(self, name: str, layer: int) -> Array:
        """q/k/v/up/gate_proj with the gains of its norms folded in: its rows read the stream."""
        weight, gain = self.unscaled(name, layer), self.stream_gain(name, layer)
        return weight if gain is None else weight * gain

    def unscaled(self, name: str, layer: int) -> Array:
        """A reading weight with the query or key norm's gain on its rows, the stream norm's left out."""
        weight, own = self.get(name, layer), {"q_proj": "q_norm", "k_proj": "k_norm"}.get(name)
        if own is None or getattr(self.raw, own) is None:
            return weight
        gain = self.get(own, layer)
        return weight * np.tile(gain, len(weight) // len(gain))[:, None]

    def stream_gain(self, name: str, layer: int) -> Float[np.ndarray, " d"] | None:
        """Gain of the norm between the stream and a reading weight, if there is one."""
        norm = "attn_norm" if name in ("q_proj", "k_proj", "v_proj") else "mlp_norm"
        return None if getattr(self.raw, norm) is None else self.get(norm, layer)

    def read_gram(self, name: str, layer: int) -> Float[np.ndarray, "d d"]:
        """WᵀW of one reading weight."""

        def compute() -> Array:
            weight, gain = self.unscaled(name, layer), self.stream_gain(name, layer)
            gram = weight.T @ weight
            return gram if gain is None else gram * (gain[:, None] * gain)

        return self.once(f"read_gram/{name}", layer, compute)

    def reads_gram(self, names: tuple[str, ...], layer: int) -> Float[np.ndarray, "d d"]:
        """Gram matrix of several reading weights stacked."""
        return np.sum([self.read_gram(name, layer) for name in names], axis=0)

    def input_gram(self, layer: int) -> Float[np.ndarray, "d d"]:
        """Gram matrix of all that a block reads, [q; k; v; up; gate]."""
        return self.once("input_gram", layer, lambda: self.reads_gram(READS, layer))

    def write_gram(self, name: str, layer: int) -> Float[np.ndarray, "d d"]:
        """W Wᵀ of o_proj or down_proj."""

        def compute() -> Array:
            weight = self.get(name, layer)
            return weight @ weight.T

        return self.once(f"write_gram/{name}", layer, compute)

    def writes_gram(self, layer: int) -> Float[np.ndarray, "d d"]:
        """Gram matrix of [W_o | W_down]."""
        return self.once(
            "writes_gram",
            layer,
            lambda: self.write_gram("o_proj", layer) + self.write_gram("down_proj", layer),
        )

    def unembedding_gram(self) -> Float[np.ndarray, "d d"]:
        """WᵀW of the unembedding, the final norm's gain folded in; float32 rows are read in blocks."""

        def compute() -> Array:
            item = self.raw.unembedding
            assert item is not None
            weight = np.asarray(item(0))
            gram = np.zeros((self.d, self.d))
            for start in range(0, len(weight), 8192):
                block = checked(weight[start : start + 8192], "unembedding")
                gram += block.T @ block
            if self.raw.final_norm is not None:
                gain = self.get("final_norm", 0)
                gram *= gain[:, None] * gain
            return gram

        return self.once("unembedding_gram", 0, compute, keep=True)

    def global_read_gram(self) -> Float[np.ndarray, "d d"]:
        """All blocks' reads and the unembedding."""

        def compute() -> Array:
            gram = np.array(self.unembedding_gram())
            for layer in range(self.n_layers):
                gram += self.input_gram(layer)
                self._release(layer)
            return gram

        return self.once("global_read_gram", 0, compute, keep=True)

    def downstream_read_gram(self, layer: int) -> Float[np.ndarray, "d d"]:
        """Reads of all later blocks and the unembedding; quick when layers are visited from the last one."""

        def compute() -> Array:
            if layer == self.n_layers - 1:
                return self.unembedding_gram().copy()
            return self.downstream_read_gram(layer + 1) + self.input_gram(layer + 1)

        return self.once("downstream_read_gram", layer, compute)

    def global_write_gram(self) -> Float[np.ndarray, "d d"]:
        """Writes of all blocks side by side."""

        def compute() -> Array:
            gram = np.zeros((self.d, self.d))
            for layer in range(self.n_layers):
                gram += self.writes_gram(layer)
                self._release(layer)
            return gram

        return self.once("global_write_gram", 0, compute, keep=True)

    def _release(self, layer: int) -> None:
        """Gives up a layer's weights and the parts of its sums."""
        self.cache.drop(layer, "input/", "read_gram/", "write_gram/")

    def label(self, layer: int, which: str = "label") -> Float[np.ndarray, "n d"]:
        """D's rows at unit length over √n: their second moment is what R_act measures. Zero rows leave."""
        item = self.target.label if which == "label" else self.target.label_fit
        rows = checked(item(layer), f"{which} of layer {layer}")
        norms = np.linalg.norm(rows, axis=1)
        keep = norms > 1e-12 * max(float(norms.max(initial=0.0)), 1e-300)
        return rows[keep] / norms[keep, None] / np.sqrt(max(int(keep.sum()), 1))

    def delta_columns(self, layer: int) -> dict[str, Array]:
        """The changed tensors of a layer as columns, see `Delta.columns`; unchanged ones are left out."""
        out = {}
        for name, delta in self.target.delta(layer).items():
            columns = checked(delta.columns(), f"delta of {name}, layer {layer}")
            if name not in TENSORS or columns.shape[0] != self.d:
                raise AnalysisError(
                    "This weight change does not write into the stream.",
                    expected=f"{' or '.join(TENSORS)} with {self.d} rows",
                    given=f"{name} with shape {columns.shape}",
                )
            if columns.any():
                out[name] = columns
        return out

    def moment(self, which: str, layer: int) -> Moment:
        """Second moment "act" of the label, "o_proj", "down_proj", "combined" (unit-Frobenius tensors side by
        side) or "concatenated" (tensors as they are, side by side)."""
        if which == "act":
            return Moment.of(self.label(layer).T)
        columns = self.delta_columns(layer)
        if which in TENSORS:
            return Moment.of(columns.get(which, np.zeros((self.d, 0))))
        if which == "combined":
            columns = {name: c / np.linalg.norm(c) for name, c in columns.items()}
        return Moment.of(np.concatenate([np.zeros((self.d, 0)), *columns.values()], axis=1))


def checked(values: object, what: str) -> Array:
    """float64, finite.

    Raises:
        AnalysisError: NaN or inf.
    """
    array = np.ascontiguousarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise AnalysisError(
            f"Not finite: {what}.", expected="numbers", given=f"{int((~np.isfinite(array)).sum())} NaN or inf"
        )
    return array
