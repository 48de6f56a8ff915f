"""Subspace scores by the plain formulas in float64: full SVDs of dense matrices, explicit projectors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special
from sklearn.cluster import KMeans
from subspace_inputs import Arrays

Array = NDArray[np.float64]

K, BROAD = 4, 6


def svd_left(matrix: Array, k: int) -> Array:
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :k]


def plain_pca(rows: Array, k: int) -> Array:
    return np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:k].T


def away(basis: Array) -> Array:
    return np.eye(len(basis)) - basis @ basis.T


class Dense:
    """The definitions, one after another, for one layer of `Arrays`."""

    def __init__(self, arrays: Arrays, layer: int) -> None:
        self.a, self.layer, self.held = arrays, layer, arrays.held
        self.lm = self.unembedding()
        self.built: dict[tuple[str, int], Array] = {}

    def w(self, name: str, layer: int | None = None) -> Array:
        layer = self.layer if layer is None else layer
        weight = self.held[name][layer]
        if not self.a.gains or name in ("o_proj", "down_proj"):
            return weight
        if name in ("q_proj", "k_proj"):
            gain = self.held["q_norm" if name == "q_proj" else "k_norm"][layer]
            weight = np.concatenate(
                [np.diag(gain) @ head for head in np.split(weight, len(weight) // len(gain))]
            )
        norm = "mlp_norm" if name in ("up_proj", "gate_proj") else "attn_norm"
        return weight @ np.diag(self.held[norm][layer])

    def unembedding(self) -> Array:
        weight = self.held["unembedding"][0]
        return weight @ np.diag(self.held["final_norm"][0]) if self.a.gains else weight

    def reads(self, layer: int) -> Array:
        return np.concatenate(
            [self.w(n, layer) for n in ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")]
        )

    def writes(self, layer: int) -> Array:
        return np.concatenate([self.w("o_proj", layer), self.w("down_proj", layer)], axis=1)

    def heads(self, name: str) -> list[Array]:
        """One matrix for each query head, key and value heads repeated as whole heads."""
        weight, a = self.w(name), self.a
        if name == "o_proj":
            return np.split(weight, a.n_heads, axis=1)
        if name == "q_proj":
            return np.split(weight, a.n_heads)
        return [head for head in np.split(weight, a.n_kv_heads) for _ in range(a.n_heads // a.n_kv_heads)]

    def right(self, matrix: Array, k: int) -> Array:
        return svd_left(matrix.T, k)

    def x(self, name: str, layer: int | None = None) -> Array:
        return self.held[name][self.layer if layer is None else layer]

    def stacked(self, *names: str) -> Array:
        return np.concatenate([self.x(n, layer) for n in names for layer in range(self.a.layers)])

    def tokens(self, weigh: Callable[[Array, Array, Array], Array], k: int) -> Array:
        rows = []
        for p in range(self.a.fit):
            longest = max(self.a.tokens)
            states, attention = {}, {}
            for persona in ("positive", "negative"):
                own, attends = self.x(f"{persona}_tokens")[p], self.x(f"{persona}_attention")[p]
                states[persona] = np.zeros((longest, self.a.d))
                attention[persona] = np.zeros(longest)
                states[persona][-len(own) :], attention[persona][-len(own) :] = own, attends
            for t in range(longest):
                if states["positive"][t].any() or states["negative"][t].any():
                    diff = states["positive"][t] - states["negative"][t]
                    weight = weigh(attention["positive"][t], attention["negative"][t], np.linalg.norm(diff))
                    rows.append(diff * np.sqrt(weight))
        return plain_pca(np.array(rows), k)

    def change(self) -> Array:
        return np.diff(np.abs(self.stacked("clean").reshape(self.a.layers, -1, self.a.d)), axis=0)

    def chars(self, k: int) -> Array:
        rows = np.concatenate([self.x(n) for n in ("clean", "positive", "negative")])
        centred = rows - rows.mean(axis=0)
        u, sigma, _ = np.linalg.svd(centred, full_matrices=False)
        found = KMeans(k + 1, n_init=1, random_state=0).fit(u * sigma)
        centres = np.array([centred[found.labels_ == c].mean(axis=0) for c in range(k + 1)])
        return plain_pca(centres, k)

    def rotation(self, k: int) -> Array:
        x, y = self.x("negative"), self.x("positive")
        joint = plain_pca(np.concatenate([x, y]), min(32, 2 * self.a.fit - 2, self.a.d))
        u, s, vt = np.linalg.svd(((x - x.mean(0)) @ joint).T @ ((y - y.mean(0)) @ joint))
        r = int((s > 1e-9 * s[0]).sum())
        turn = u[:, :r] @ vt[:r]
        return joint @ svd_left(turn - turn.T, k)

    def qk(self, k: int) -> Array:
        return svd_left(
            sum(q.T @ key for q, key in zip(self.heads("q_proj"), self.heads("k_proj"), strict=True)), k
        )

    def not_downstream(self, k: int) -> Array:
        later = [self.reads(layer) for layer in range(self.layer + 1, self.a.layers)]
        read = self.right(np.concatenate([*later, self.lm]), BROAD)
        return svd_left(away(read) @ self.writes(self.layer), k)

    def basis(self, name: str, k: int) -> Array:
        if (name, k) not in self.built:
            self.built[name, k] = self.build(name, k)
        return self.built[name, k]

    def build(self, name: str, k: int) -> Array:  # noqa: PLR0911, PLR0912, PLR0915
        layers, contrast = range(self.a.layers), self.x("positive") - self.x("negative")
        gate = self.x("clean_mlp_input") @ self.x("gate_proj").T
        gate = gate * special.expit(gate)
        match name:
            case "lm_head_read":
                return self.right(self.lm, k)
            case "logits_null":
                return np.linalg.svd(self.lm)[2][-k:].T
            case "global_read":
                return self.right(np.concatenate([*(self.reads(i) for i in layers), self.lm]), k)
            case "mlp_up_read":
                return self.right(self.w("up_proj"), k)
            case "mlp_gate_read":
                return self.right(self.w("gate_proj"), k)
            case "attn_qkv_read":
                return self.right(np.concatenate([self.w(n) for n in ("q_proj", "k_proj", "v_proj")]), k)
            case "input_super":
                return self.right(self.reads(self.layer), k)
            case "kv_super":
                return self.right(np.concatenate([self.w("k_proj"), self.w("v_proj")]), k)
            case "input_super_not_lm_read":
                return svd_left(away(self.right(self.lm, BROAD)) @ self.basis("input_super", k), k)
            case "global_write":
                return svd_left(np.concatenate([self.writes(i) for i in layers], axis=1), k)
            case "write":
                return svd_left(self.writes(self.layer), k)
            case "attn_write":
                return svd_left(self.w("o_proj"), k)
            case "mlp_write":
                return svd_left(self.w("down_proj"), k)
            case "global_write_not_global_read":
                every = np.concatenate([self.writes(i) for i in layers], axis=1)
                return svd_left(away(self.basis("global_read", BROAD)) @ every, k)
            case "write_not_lm_head_read":
                return svd_left(away(self.right(self.lm, BROAD)) @ self.writes(self.layer), k)
            case "write_not_global_read":
                return svd_left(away(self.basis("global_read", BROAD)) @ self.writes(self.layer), k)
            case "write_not_downstream_read":
                return self.not_downstream(k)
            case "causally_isolated":
                parts = [self.basis(n, 8) for n in ("input_super", "kv_super")]
                parts.append(self.basis("lm_head_read", BROAD))
                return svd_left(
                    away(np.linalg.qr(np.concatenate(parts, axis=1))[0]) @ self.writes(self.layer), k
                )
            case "attn_ov_write":
                pairs = zip(self.heads("o_proj"), self.heads("v_proj"), strict=True)
                return svd_left(sum(o @ v for o, v in pairs), k)
            case "attn_ov_write_rows":
                each = self.a.n_heads // self.a.n_kv_heads
                return svd_left(self.w("o_proj") @ np.repeat(self.w("v_proj"), each, axis=0), k)
            case "attention_sink":
                pairs = zip(self.heads("o_proj"), self.heads("v_proj"), strict=True)
                return plain_pca(np.array([o @ v @ self.x("start_embedding") for o, v in pairs]), k)[
                    :, : self.a.n_heads - 1
                ]
            case "mlp_roundtrip_write":
                return svd_left(self.w("down_proj") @ self.w("up_proj"), k)
            case "gate_kernel":
                return svd_left(self.w("down_proj") @ np.diag(gate.mean(axis=0)) @ self.w("up_proj"), k)
            case "qk_circuit":
                return self.qk(k)
            case "qk_circuit_rows":
                each = self.a.n_heads // self.a.n_kv_heads
                return svd_left(self.w("q_proj").T @ np.repeat(self.w("k_proj"), each, axis=0), k)
            case "qk_circuit_per_head":
                pairs = zip(self.heads("q_proj"), self.heads("k_proj"), strict=True)
                return svd_left(np.concatenate([q.T @ key for q, key in pairs], axis=1), k)
            case "suppressed":
                change = self.change()
                return plain_pca(
                    np.minimum((change * (change > 0)).sum(0), (-change * (change < 0)).sum(0)), k
                )
            case "amplified":
                rise = np.abs(self.x("clean", self.a.layers - 1)) - np.abs(self.x("clean", 0))
                return plain_pca(rise * (rise > 0), k)
            case "added_features":
                change = self.change()
                return plain_pca((change * (change > 0)).sum(0), k)
            case "churn":
                if self.layer == self.a.layers - 1:
                    return np.zeros((self.a.d, 0))
                return plain_pca(self.x("clean", self.layer + 1) - self.x("clean"), k)
            case "global_clean_resid_pca":
                return plain_pca(self.stacked("clean"), k)
            case "global_persona_resid_pca":
                return plain_pca(self.stacked("positive", "negative"), k)
            case "layer_clean_resid_pca":
                return plain_pca(self.x("clean"), k)
            case "TaskDiff_contrast":
                return plain_pca(contrast, k)
            case "attn_min_taskdiff":
                return self.tokens(lambda a, b, _: np.minimum(a, b), k)
            case "attn_max_taskdiff":
                return self.tokens(lambda a, b, _: np.maximum(a, b), k)
            case "attn_diff_taskdiff":
                return self.tokens(lambda a, b, _: np.abs(a - b), k)
            case "attn_min_x_diffnorm_taskdiff":
                return self.tokens(lambda a, b, norm: np.minimum(a, b) * norm, k)
            case "up_proj_input_contrast":
                return plain_pca(self.x("positive_mlp_input") - self.x("negative_mlp_input"), k)
            case "up_proj_output_written_contrast":
                up = [self.x(f"{p}_mlp_input") @ self.x("up_proj").T for p in ("positive", "negative")]
                return plain_pca(up[0] @ self.x("down_proj").T - up[1] @ self.x("down_proj").T, k)
            case "gate_active_written":
                up = self.x("clean_mlp_input") @ self.x("up_proj").T
                return plain_pca((gate * up) @ self.x("down_proj").T, k)
            case "chars_clusters":
                return self.chars(k)
            case "rotation_contrast":
                return self.rotation(k)
            case "qk_x_chars_clusters":
                u, _, vt = np.linalg.svd(self.qk(k).T @ self.chars(k))
                return svd_left(self.qk(k) @ u + self.chars(k) @ vt.T, k)
            case "qk_and_chars_clusters":
                return np.zeros((self.a.d, 0))  # two random 4-dimensional subspaces of 48 dimensions
            case "WNR_union_TaskDiff":
                both = [self.not_downstream(k), plain_pca(contrast, k)]
                return svd_left(np.concatenate(both, axis=1), 2 * k)
            case "TaskDiff_lora_ceiling":
                return plain_pca(self.x("label_fit"), k)
            case "act_ceiling":
                rows = self.x("label")
                return self.right(rows / np.linalg.norm(rows, axis=1, keepdims=True), k)
        tensors = {n: a @ b for n, (a, b) in self.a.delta.get(self.layer, {}).items()}
        if not tensors:
            return np.zeros((self.a.d, 0))
        of = {
            "dW_left_basis_ceiling": np.concatenate(list(tensors.values()), axis=1),
            "dW_o_proj_ceiling": tensors["o_proj"],
            "dW_down_proj_ceiling": tensors["down_proj"],
            "dW_combined_ceiling": np.concatenate([t / np.linalg.norm(t) for t in tensors.values()], axis=1),
        }[name]
        return svd_left(of, min(k, np.linalg.matrix_rank(of)))


def close(a: Array, b: Array) -> float:
    """Largest sine of a principal angle; 1 for different dimensions."""
    if a.shape != b.shape:
        return 1.0
    return 0.0 if not a.size else float(np.linalg.norm(a @ a.T - b @ b.T, 2))


def dense_scores(arrays: Arrays, layer: int, basis: Array, clean: Array) -> dict[str, float]:
    """Scores of one basis by the formulas, with d × d moments."""
    d, rank = basis.shape
    rows = arrays.held["label"][layer]
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    tensors = {n: a @ b for n, (a, b) in arrays.delta.get(layer, {}).items()}
    moments = {"act": unit.T @ unit / len(unit)}
    moments |= {n: t @ t.T / np.trace(t @ t.T) for n, t in tensors.items()}
    if tensors:
        both = np.concatenate([t / np.linalg.norm(t) for t in tensors.values()], axis=1)
        moments["combined"] = both @ both.T / np.trace(both @ both.T)
    out: dict[str, float] = {}
    for name, s in moments.items():
        out |= {f"{key}_{name}": value for key, value in plain_score(s, basis, d).items()}
        top = np.sort(np.linalg.eigvalsh(s))[::-1][:rank].sum()
        out[f"most_{name}"] = top / (rank / d)
    rest = rows @ away(clean)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    left = svd_left(away(clean) @ basis, rank)
    left = left[:, np.linalg.svd(away(clean) @ basis, compute_uv=False) > 1e-6]
    if left.shape[1]:
        found = plain_score(rest.T @ rest / len(rest), left, d - clean.shape[1])
        out |= {f"{key}_specific": found[key] for key in ("r", "z", "p")}
    if tensors:
        joined = np.concatenate(list(tensors.values()), axis=1)
        own = svd_left(joined, min(rank if rank == K else K, np.linalg.matrix_rank(joined)))
        out["cosine"] = float(np.linalg.svd(own.T @ basis, compute_uv=False).mean())
    return out


def plain_score(s: Array, basis: Array, d: int) -> dict[str, float]:
    rank = basis.shape[1]
    fraction = float(np.trace(basis.T @ s @ basis))
    mean = rank / d
    variance = 2 * rank * (d - rank) / (d * (d - 1) * (d + 2)) * (np.trace(s @ s) - 1 / d)
    size = mean * (1 - mean) / variance - 1
    p = 1 - special.betainc(mean * size, (1 - mean) * size, min(fraction, 1.0))
    return {"fraction": fraction, "r": fraction / mean, "z": (fraction - mean) / np.sqrt(variance), "p": p}
