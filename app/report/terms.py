"""Every term of a report: what it means, its formula, and where it comes from. One table, used once."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import polars as pl


@dataclass(frozen=True)
class Term:
    """One line of the definitions."""

    term: str
    meaning: str
    formula: str = ""
    source: str = ""


TERMS = (
    Term(
        "site",
        "Where in block ℓ an activation is taken: resid_pre and resid_post are the residual stream "
        "entering and leaving the block, attn_out and mlp_out what the two sub-blocks add to it, head_z "
        "the heads' value mixes before the output projection, head_out their contributions behind it.",
        "resid_pre + attn_out + mlp_out = resid_post",
    ),
    Term(
        "position",
        "The token an activation belongs to. decision: last token of the rendered prompt; last_content: "
        "last token of the user's own text, by character offsets; mean: average over the user's own text.",
    ),
    Term(
        "target ← source",
        "The target model runs; the source model gives the vector that is put in. Both directions are "
        "different experiments.",
    ),
    Term(
        "CKA (biased)",
        "Similarity of two sets of activations of the same prompts, 1 for equal geometry up to rotation "
        "and scale; rises towards 1 when there are fewer prompts than dimensions. X, Y centred per column.",
        "‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖), Frobenius norms",
        "Kornblith et al. 2019",
    ),
    Term(
        "CKA (debiased)",
        "The same from unbiased estimates of the three terms; about 0 for unrelated activations, and "
        "sometimes slightly below.",
        "HSICᵤ(K, L) / √(HSICᵤ(K, K) HSICᵤ(L, L)), diagonals of the Gram matrices K, L left out",
        "Song et al. 2012",
    ),
    Term(
        "transport map",
        "A map from the source's activations to the target's at one site, fitted on the train split. CKA "
        "raw compares the two models' own activations, CKA mapped the carried-over ones with the target's.",
        "ŷ = f(x), fitted on (xᵢ, yᵢ), i in train",
    ),
    Term(
        "ScaledProcrustes",
        "Shrink both covariances, whiten, rotate and rescale, colour again; rank k keeps the k leading "
        "directions.",
        "C = (1−γ)Σ + γ tr(Σ)/d I;  USVᵀ = X_wᵀY_w;  ŷ = s_k (x−μ_x) C_x^(−1/2) U_k V_kᵀ C_y^(1/2) + μ_y;"
        "  s_k = Σ_{i≤k} S_i / ‖X_w U_k‖²",
        "Schönemann 1966; Ledoit & Wolf 2004 for the shrinkage target",
    ),
    Term(
        "Ridge, λ",
        "The map with the smallest penalised error on standardised sides; λ by leave-one-out over train "
        "prompts, or pairs of them, unless it was set.",
        "Σᵢ ‖yᵢ − xᵢW‖² + λ‖W‖²",
        "Hoerl & Kennard 1970",
    ),
    Term(
        "R²",
        "Share of the target's variance that a map explains, pooled over dimensions; below 0 the mean does"
        " better. Shuffled: refitted on wrongly paired train prompts, scored on the right validation "
        "pairs.",
        "1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²",
    ),
    Term(
        "KL",
        "How far a patch moves the target's next-token distribution, in nats, averaged over prompts. The "
        "model's own activation must give 0; the limit is in the captions.",
        "KL(patched ‖ unpatched) = Σ_v p̃_v ln(p̃_v / p_v)",
        "Kullback & Leibler 1951",
    ),
    Term(
        "KL_raw",
        "KL when the source's activation is put in after each dimension was brought to the target's mean "
        "and spread on the train split (moment matching).",
    ),
    Term(
        "KL_mapped",
        "KL when the source's activation is put in after it was carried over by a transport map.",
    ),
    Term(
        "ΔKL",
        "What the map saves; negative where it does worse than moment matching.",
        "KL_raw − KL_mapped",
    ),
    Term(
        "drop%",
        "The share of KL_raw that the map saves: a ratio of means over prompts, with a paired bootstrap "
        "interval. Undefined where KL_raw is not above the self-patch limit.",
        "100 · ΔKL / KL_raw",
    ),
    Term(
        "α",
        "Amplitude: multiplies the vector that is put in, or only its deviation from the target's train "
        "mean μ; the captions say which. α auto gives mapped vectors the target's typical length.",
        "α·ŷ, or μ + α(ŷ − μ);  α auto = median ‖y‖/‖ŷ‖ on train",
    ),
    Term(
        "best α",
        "The amplitude with the smallest mean KL_mapped on the train split. Everything said of it is "
        "measured on the validation split, which had no part in the choice.",
        "argmin_α mean_train KL_mapped(α)",
    ),
    Term(
        "controls",
        "bogus: the map of another block; shuffled: a map fitted on wrongly paired prompts; random: the "
        "map followed by a random rotation, same spectrum; mean: the target's train mean; self: its own "
        "activation, which must change nothing.",
    ),
    Term(
        "rank k",
        "truncated: the map of rank k; projector: only the part of (mapped − own) inside k directions is "
        "swapped. The smallest sufficient k is within one standard error of the best on the train split.",
        "own + B_k B_kᵀ (mapped − own)",
    ),
    Term(
        "coverage",
        "How much of the effect of all heads of a block a set S of them has; a ratio of means, which can "
        "exceed 100.",
        "100 · KL_S / KL_all",
    ),
    Term(
        "steering, ablation",
        "Steering adds α times a unit direction v in units of the site's mean norm; ablation removes the "
        "part along v. The side effect is the KL on prompts that should not change.",
        "own + α m v, m the mean norm;  own − (own·v)v",
    ),
    Term(
        "soft refusal, multiple choice, agreement",
        "Differences of length-normalised log-probabilities of given continuations: refusal openings "
        "against neutral ones, the right choice against the wrong ones, Yes against No over all surface "
        "forms.",
        "mean log p per token, log-mean-exp over openings or forms",
    ),
    Term(
        "R(ℓ)",
        "Length of a block's update of the residual stream inside the subspace Z over its length outside. "
        "Z holds the leading key-side directions of the heads of a reference block. Chance is the R of an "
        "update unrelated to Z; it is not 1.",
        "mean ‖P_Z Δ‖ / mean ‖P_Z⊥ Δ‖;  chance Γ((k+1)/2)Γ((d−k)/2) / (Γ(k/2)Γ((d−k+1)/2))",
    ),
    Term(
        "shared-vocabulary ratio",
        "For two tokenizers: the smaller, over the two models, of the share of a prompt's content tokens "
        "whose string the other tokenizer has too.",
        "min_m (shared content tokens)_m / (content tokens)_m",
    ),
    Term(
        "interval",
        "95 % unless said otherwise, by resampling prompts, or pairs of prompts where they come in pairs; "
        "never tokens. Two values are told apart only where their intervals are.",
        "percentile bootstrap; rates: Wilson; differences of paired rates: Newcombe",
        "Efron 1979; Wilson 1927; Newcombe 1998",
    ),
    Term(
        "weight difference",
        "Frobenius norm of tuned − base for each weight, relative to the base's norm; its numerical rank "
        "where the difference is low-rank.",
        "‖W_tuned − W_base‖ / ‖W_base‖",
    ),
    Term(
        "R_act, R_w",
        "How much a k-dimensional subspace of the stream holds, over what a random one of its rank would: of "
        "D, what ±ΔW does to the stream (R_act), or of the weight change itself (R_w; combined: o_proj and "
        "down_proj at unit norm). 1 is chance. Candidates are named without looking at ΔW; ceilings look.",
        "tr(BᵀSB) / (r/d);  S = mean of d̂d̂ᵀ over D's unit rows, or ΔWΔWᵀ/‖ΔW‖²;  D = stream(α=+1) − "
        "stream(α=−1)",
    ),
    Term(
        "joint, gap, specificity",
        "One score of both, how far they differ, and R_act when the leading directions of the stream without "
        "persona are taken out. Means over the blocks that ΔW changes.",
        "√(R_act · R_w);  log₂ R_act − log₂ R_w",
    ),
)


def table() -> pl.DataFrame:
    """The terms as a table: term, meaning, formula, source."""
    return pl.DataFrame(
        [astuple(term) for term in TERMS], schema=["term", "meaning", "formula", "source"], orient="row"
    )
