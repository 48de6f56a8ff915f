"""Runs the heads of one block: every head alone, left out, in sets and in pairs, and cheap predictors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from engine.errors import PatchError
from engine.heads import numbers as analysis
from engine.heads.numbers import Heads
from engine.heads.spec import HeadSubsets
from engine.heads.swap import HeadSwap, head_swap
from engine.lab.experiment import ExperimentResult, Lab, Split, chosen_rows
from engine.lab.noise import kl_floor, measured
from engine.lab.units import resampling_units, unit_name
from engine.models.sites import Site
from engine.passes.attribution import Gradients, gradients
from engine.patching.run import self_check
from engine.stats.uncertainty import Band

SPLITS: tuple[Split, Split] = ("train", "validation")
PROMPT_COLUMNS = ("id", "pair_id", "language", "category", "split")


def run(wanted: HeadSubsets, lab: Lab) -> ExperimentResult:
    """Runs the experiment on the train and validation prompts of a lab.

    Raises:
        PatchError, SiteError, ModelError: the models' heads don't fit, there is only one, or the self-patch
            check fails. JobError: cancelled between batches.
    """
    if int(lab.sizes(wanted.target)["n_heads"]) < 2:
        raise PatchError(
            f"{wanted.target} has one head a block: there are no sets of heads to tell apart.",
            expected="at least 2 heads",
            given=1,
            next_step="run the map of all blocks, or patch attn_out.",
        )
    prompts = HeadPrompts.of(lab, wanted)
    lab.report(message=f"Reading the heads of block {wanted.layer} in both models.")
    swap = head_swap(lab, wanted, prompts.rows)
    study = _Study(wanted, lab, prompts, swap)
    singles = study.kl([swap.everything, *study.singles], "every head alone")
    rounding = measured(lab, [wanted.target])
    effect = prompts.effect(wanted, singles[0], max(swap.self_kl, kl_floor(rounding)))
    tables = {"table": study.head_table(), "prompts": study.prompt_table()}
    more: dict[str, Any] = {}
    if effect.shown:
        tables, more = study.whole(tables)
    check = self_check(np.array([swap.self_kl]), swap.engine, str(swap.site))
    summary = {
        "effect": effect_row(effect),
        "n_heads": swap.n_heads,
        "n_train": int(prompts.train.sum()),
        "n_validation": int((~prompts.train).sum()),
        "interval": {"level": wanted.level, "unit": prompts.unit},
        "self_check": {
            **check.to_json(),
            "detail": f"largest |KL| in nats with the own {swap.site} put back",
        },
        "rounding": rounding,
        "source_origin": lab.origin(wanted.source, Site("head_z", wanted.layer), wanted.position),
        "notes": [*lab.notes, *swap.notes()],
        **more,
    }
    return ExperimentResult(summary, tables)


def effect_row(effect: analysis.Effect) -> dict[str, Any]:
    """The whole effect as plain JSON types: kl, low, high, floor, threshold, shown, reason."""
    found = effect.interval
    return {
        "kl": found.estimate,
        "low": found.low,
        "high": found.high,
        "floor": effect.floor,
        "threshold": effect.threshold,
        "shown": effect.shown,
        "reason": effect.reason,
    }


@dataclass(frozen=True)
class HeadPrompts:
    """The prompts of both splits together, as they go through one sweep.

    Attributes:
        table: one row per prompt. rows: the lab's row numbers. train: which of them are for choosing.
        groups: resampling unit of each.
    """

    table: pl.DataFrame
    rows: np.ndarray
    train: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, lab: Lab, wanted: Any) -> HeadPrompts:
        """Train and validation prompts of an experiment; PatchError where a split has too few."""
        train, validation = (chosen_rows(lab.prompts, s, wanted.where) for s in SPLITS)
        rows = np.union1d(train, validation)
        table = lab.prompts[rows.tolist()]
        return cls(table, rows, np.isin(rows, train), resampling_units(table))

    @property
    def unit(self) -> str:
        """What is drawn for intervals."""
        return unit_name(self.table)

    def settings(self, wanted: Any, train: bool = False) -> dict[str, Any]:
        """Arguments of every bootstrap over the validation (or train) prompts."""
        return {
            "groups": self.groups[self.train if train else ~self.train],
            "n_boot": wanted.n_boot,
            "level": wanted.level,
            "seed": wanted.seed,
        }

    def effect(self, wanted: Any, kl_all: np.ndarray, floor: float) -> analysis.Effect:
        """KL of all heads on validation, and whether it may be divided by; `kl_all` of all prompts."""
        return analysis.effect(kl_all[~self.train], floor, **self.settings(wanted))


@dataclass
class _Study:
    """One run: which subsets were asked, and how far it is."""

    wanted: HeadSubsets
    lab: Lab
    prompts: HeadPrompts
    swap: HeadSwap
    done: int = 0

    @property
    def singles(self) -> list[Heads]:
        return [Heads([head]) for head in range(self.swap.n_heads)]

    @property
    def sizes(self) -> range:
        """Sizes of the sets of the curves."""
        return range(1, min(self.wanted.most, self.swap.n_heads - 1) + 1)

    def kl(self, subsets: Iterable[Heads], what: str) -> np.ndarray:
        """KL of subsets on all prompts (subsets, n), with progress."""
        asked = list(subsets)
        self.lab.report(message=f"Substituting {what}.")

        def progress(done: int, total: int) -> None:
            self.lab.report(done=self.done + done, total=max(self._expected(), self.done + total))

        found = self.swap.kl(
            asked,
            reverse_kl=self.wanted.reverse_kl,
            on_progress=progress,
            should_stop=self.lab.should_stop,
        )
        self.done = self.swap.n_known * len(self.prompts.rows)
        return found

    def _expected(self) -> int:
        """About how many prompt-subset pairs a whole run takes; two greedy steps are known by then."""
        heads, paired = self.swap.n_heads, min(self.swap.n_heads, self.wanted.pair_heads)
        greedy = sum(heads - k + 1 for k in self.sizes[2:])
        random = sum(min(self.wanted.draws, math.comb(heads, k)) for k in self.sizes)
        return (1 + 2 * heads + greedy + random + math.comb(paired, 2)) * len(self.prompts.rows)

    def coverage(self, kl: np.ndarray, *, train: bool = False, together: bool = False) -> Band:
        """Coverage on validation (or train) with intervals, from KLs of all prompts (subsets, n).

        `together`: the intervals of all rows hold at once (max-t).
        """
        whole = self.swap.kl([self.swap.everything])[0]
        chosen = self.prompts.train if train else ~self.prompts.train
        settings = self.prompts.settings(self.wanted, train)
        return analysis.coverages(kl[:, chosen], whole[chosen], together=together, **settings)

    def ranking(self) -> list[int]:
        return analysis.ranking(self.swap.kl(self.singles)[:, self.prompts.train])

    def head_table(self) -> pl.DataFrame:
        """One row per head: its KL alone, and its place in the ranking on train (1 is the largest)."""
        alone, order = self.swap.kl(self.singles), self.ranking()
        return pl.DataFrame(
            {
                "head": range(self.swap.n_heads),
                "kl": alone[:, ~self.prompts.train].mean(1),
                "rank": [order.index(head) + 1 for head in range(self.swap.n_heads)],
            }
        )

    def prompt_table(self) -> pl.DataFrame:
        """One row per prompt of both splits: KL of all heads, and of each alone."""
        keep = [c for c in PROMPT_COLUMNS if c in self.prompts.table.columns]
        alone = self.swap.kl(self.singles).T.tolist()
        return self.prompts.table.select(keep).with_columns(
            pl.Series("kl_all", self.swap.kl([self.swap.everything])[0]),
            pl.Series("kl_heads", alone, dtype=pl.List(pl.Float64)),
        )

    def whole(self, tables: dict[str, pl.DataFrame]) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
        """Everything that is relative to the whole effect."""
        swap, heads = self.swap, range(self.swap.n_heads)
        order = self.ranking()
        paired = sorted(order[: self.wanted.pair_heads])
        pairs = [Heads(pair) for pair in combinations(paired, 2)]
        without = [swap.everything - {head} for head in heads]
        random = {
            k: analysis.random_subsets(swap.n_heads, k, self.wanted.draws, self.wanted.seed)
            for k in self.sizes
        }
        drawn = [subset for sets in random.values() for subset in sets]
        ranked = [Heads(order[:k]) for k in self.sizes]
        self.kl([*pairs, *without, *drawn, *ranked], "pairs, sets and all but one")
        chosen = analysis.greedy(swap.n_heads, len(self.sizes), self._score)
        grown = [Heads(chosen[:k]) for k in self.sizes]
        tables = {
            "table": self._complete(tables["table"], without),
            "curve": self._curve(order, chosen, ranked, grown, random),
            "pairs": self._pairs(pairs),
            "prompts": tables["prompts"],
        }
        summary: dict[str, Any] = {"ranking": order, "greedy": chosen, "pair_heads": paired}
        summary["carrying"] = self._carrying(chosen, grown, tables["curve"])
        summary["correlations"] = {
            name: _correlation(tables["table"], name) for name in ("gradient", "direct")
        }
        return tables, summary

    def _score(self, subsets: Sequence[Heads]) -> list[float]:
        """Mean KL on train of the candidates of one greedy step."""
        found = self.kl(subsets, f"sets of {len(subsets[0])}, grown greedily")
        return found[:, self.prompts.train].mean(1).tolist()

    def _complete(self, table: pl.DataFrame, without: list[Heads]) -> pl.DataFrame:
        """The table of heads with coverage alone and left out, and the predictors."""
        alone = self.swap.kl(self.singles)
        columns = {
            **_band("", self.coverage(alone)),
            "coverage_train": self.coverage(alone, train=True).estimate,
        }
        left = self.swap.kl(without)
        columns |= _band("without_", self.coverage(left))
        columns["without_train"] = self.coverage(left, train=True).estimate
        return table.with_columns(**{k: pl.Series(v) for k, v in {**columns, **self._predictors()}.items()})

    def _predictors(self) -> dict[str, np.ndarray]:
        """Mean |prediction| per head over the validation prompts; NaN where it is undefined."""
        engine, layer = self.swap.engine, self.wanted.layer
        self.lab.report(message="Predicting from gradients.")
        reported = np.flatnonzero(~self.prompts.train)
        facts = gradients(
            engine.lm,
            [engine.token_ids[i] for i in reported],
            [engine.positions[i] for i in reported],
            [engine.reads[i] for i in reported],
            [layer],
            should_stop=self.lab.should_stop,
        )
        return predictions(self.swap, facts, layer, reported)

    def _curve(
        self,
        order: list[int],
        chosen: list[int],
        ranked: list[Heads],
        grown: list[Heads],
        random: dict[int, list[Heads]],
    ) -> pl.DataFrame:
        """Coverage against the number of heads: ranked and greedy sets, and random ones."""
        rows: list[dict[str, Any]] = []
        for kind, sets, heads in (("ranked", ranked, order), ("greedy", grown, chosen)):
            kl = self.swap.kl(sets)
            found, train = self.coverage(kl), self.coverage(kl, train=True).estimate
            for i, k in enumerate(self.sizes):
                at = found.at(i)
                row = {"kind": kind, "k": k, "heads": heads[:k], "coverage": at.estimate}
                rows.append({**row, "low": at.low, "high": at.high, "coverage_train": float(train[i])})
        for k, sets in random.items():
            kl = self.swap.kl(sets)
            whole = self.swap.kl([self.swap.everything])[0]
            reported = ~self.prompts.train
            spread = 100 * kl[:, reported].sum(1) / whole[reported].sum()
            over = analysis.over_draws(spread, self.wanted.level)
            row = {"kind": "random", "k": k, "heads": None, "coverage": over.estimate}
            rows.append({**row, "low": over.low, "high": over.high, "coverage_train": None})
        return pl.DataFrame(rows, schema_overrides={"heads": pl.List(pl.Int64)})

    def _pairs(self, pairs: list[Heads]) -> pl.DataFrame:
        """Coverage of pairs of heads, and what they do together beyond what each does alone."""
        both = self.swap.kl(pairs)
        names = [sorted(pair) for pair in pairs]
        first, second = (self.swap.kl([Heads([pair[i]]) for pair in names]) for i in (0, 1))
        more = both - first - second
        columns = _band("", self.coverage(both))
        extra = _band("interaction_", self.coverage(more, together=True))
        extra["interaction"] = extra.pop("interaction_coverage")
        extra["coverage_train"] = self.coverage(both, train=True).estimate
        extra["interaction_train"] = self.coverage(more, train=True).estimate
        ends = {"first": [pair[0] for pair in names], "second": [pair[1] for pair in names]}
        return pl.DataFrame({**ends, **columns, **extra})

    def _carrying(self, chosen: list[int], grown: list[Heads], curve: pl.DataFrame) -> dict[str, Any] | None:
        """The smallest greedy set that covers 95 % on train, as validation sees it; None without one."""
        k = analysis.carrying(self.coverage(self.swap.kl(grown), train=True).estimate.tolist())
        if k is None:
            return None
        carried = self.coverage(self.swap.kl([grown[k - 1]])).at(0)
        random = float(curve.filter((pl.col("kind") == "random") & (pl.col("k") == k))["coverage"][0])
        return {
            "heads": sorted(chosen[:k]),
            "coverage": carried.estimate,
            "low": carried.low,
            "high": carried.high,
            "random": random,
            "localised": analysis.is_localised(k, self.swap.n_heads, carried, random),
        }


def predictions(swap: HeadSwap, facts: Gradients, layer: int, reported: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over prompts of |Δm| per head, as gradient × activation and as direct attribution tell it.

    Args:
        facts: of the reported prompts. reported: their indices in the swap.
    """
    change = swap.output_changes()[reported]
    taps = swap.engine.taps.layers[layer]
    by_gradient = (change * facts.at_output[layer][:, None]).sum(-1).abs().mean(0).double().numpy()
    direct = (change * taps.multiplier * facts.direct[:, None]).sum(-1).abs().mean(0).double().numpy()
    if taps.attn_post_norm:
        direct = np.full_like(direct, np.nan)
    return {"gradient": by_gradient, "direct": direct}


def _correlation(table: pl.DataFrame, predictor: str) -> dict[str, Any]:
    """Rank correlation of a predictor with coverage over heads, as plain JSON types."""
    values = table[predictor].to_numpy()
    if not np.isfinite(values).all():
        why = "a norm behind the attention mixes the heads: their direct effect is undefined"
        return {"rho": None, "p": None, "n": table.height, "reason": why}
    found = analysis.rank_correlation(values, table["coverage"].to_numpy())
    return {"rho": found.rho, "p": found.p, "n": found.n, "reason": found.reason}


def _band(prefix: str, found: Band) -> dict[str, np.ndarray]:
    """Columns coverage, low, high of a band, each with a prefix."""
    columns = {"coverage": found.estimate, "low": found.low, "high": found.high}
    return {prefix + name: values for name, values in columns.items()}
