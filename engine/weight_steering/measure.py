"""Measures steered models, all of a run's amplitudes together where a batch's rows can have their own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from jaxtyping import Float

from engine.behaviour.run import (
    Columns,
    answer_columns,
    questions,
    score_columns,
    scored_columns,
    text_columns,
)
from engine.behaviour.spec import Behaviour, Measure
from engine.lab.experiment import Lab
from engine.lab.unknown import unknown_id
from engine.models.loading import LoadedModel
from engine.passes.generate import Generated
from engine.weight_steering.effects import effects
from engine.weight_steering.report import UNSTEERED, Bench, Key
from engine.weight_steering.spec import WeightSteering
from engine.weight_steering.together import Asked, together
from engine.weights.steer import WeightShift
from engine.weights.steer_rows import by_rows

__all__ = ["Steered", "Work"]

SCORES = ("agreement", "soft_refusal")
SAID = ("agrees", "refused", "right")

Steered = tuple[str, WeightShift, float]
"""A series, its shift and α."""
Values = dict[str, Float[np.ndarray, " n"]]


@dataclass
class Work:
    """One model, measured under some shifts after others.

    Attributes:
        total: conditions of the run, done: those there are. measured: what was found, see `report.Measured`.
        answers: generated ones.
    """

    spec: WeightSteering
    lab: Lab
    lm: LoadedModel
    bench: Bench
    total: int
    done: int = 0
    measured: dict[Key, Values] = field(default_factory=dict)
    answers: dict[Key, pl.DataFrame] = field(default_factory=dict)

    @property
    def samples(self) -> list[pl.DataFrame]:
        """Generated answers, condition by condition."""
        return list(self.answers.values())

    def in_order(self, keys: Sequence[tuple[str, float | None]]) -> None:
        """Puts what was measured in the order of keys, which may name more than there are."""
        known = [(name, alpha) for name, alpha in dict.fromkeys(keys) if alpha is not None]
        self.measured = {key: self.measured[key] for key in known if key in self.measured}
        self.answers = {key: self.answers[key] for key in known if key in self.answers}

    def measure(self, steered: Sequence[Steered]) -> None:
        """Everything at some amplitudes; of the unsteered model at the first call, too."""
        if by_rows(self.lm, list(dict.fromkeys(shift for _, shift, _ in steered))):
            self._together(steered)
            return
        for name, shift, alpha in steered:
            if UNSTEERED not in self.measured:
                self._alone(UNSTEERED, None)
            self._alone((name, alpha), shift)

    def _together(self, steered: Sequence[Steered]) -> None:
        inside = self.bench.roles["wanted"]
        ids, scored = self._ids(), self._behaviour(("agreement", "soft_refusal"))
        asked = questions(scored, self.lab, self._prompts("wanted"))
        continuations: list[list[list[int]]] = [[] for _ in ids]
        for row, one in zip(np.flatnonzero(inside).tolist(), asked, strict=True):
            continuations[row] = one.ids
        done = self.done
        names = ", ".join(dict.fromkeys(name for name, *_ in steered)) or self.spec.model
        self.lab.report(message=f"{names}: {len(ids)} prompts at {len(steered)} α together.")
        found = together(
            self.lm,
            [(shift, alpha) for _, shift, alpha in steered],
            Asked(
                ids,
                self.bench.roles["neutral"],
                continuations,
                self.bench.roles["answered"],
                unknown_id(self.lab, self.spec.model),
                self.spec.max_new_tokens,
            ),
            on_progress=lambda part, whole: self.lab.report(
                done=done + part * len(steered) // whole, total=self.total
            ),
            should_stop=self.lab.should_stop,
        )
        keys = [UNSTEERED, *((name, alpha) for name, _, alpha in steered)]
        for number, key in enumerate(keys):
            if key in self.measured:
                continue
            scores = [found.log_probs[number][row] for row in np.flatnonzero(inside).tolist()]
            own = self._placed("wanted", score_columns(asked, scores), SCORES)
            self.measured[key] = {"kl": found.kl[number], "nll": found.nll[number]} | own
            rows = np.flatnonzero(self.bench.roles["answered"]).tolist()
            if rows:
                tokens, ended = found.answers.tokens[number], found.answers.ended[number]
                made = Generated([[tokens[row] for row in rows]], [[ended[row] for row in rows]])
                behaviour, asked_of = self._behaviour(("text",)), self._prompts("answered")
                columns = answer_columns(behaviour, self.lab, asked_of, made)
                self.measured[key] |= self._said(key, columns)
        self.done += len(steered)

    def _alone(self, key: Key, shift: WeightShift | None) -> None:
        """One condition, where modules can't tell rows apart."""
        name, alpha = key
        self.lab.report(message=f"{name or self.spec.model}, α = {alpha:.3g}.")
        ids, inside = self._ids(), self.bench.roles["neutral"]
        some = [own for own, wanted in zip(ids, inside, strict=True) if wanted]
        unknown = unknown_id(self.lab, self.spec.model)
        found = effects(self.lm, some, [(shift, alpha)], unknown=unknown, should_stop=self.lab.should_stop)
        values = {name: np.full(len(ids), np.nan) for name in ("kl", "nll")}
        values["kl"][inside], values["nll"][inside] = found.kl[0], found.nll[0]
        with nullcontext() if shift is None else shift.at(alpha):
            scored = self._columns("wanted", ("agreement", "soft_refusal"))
            values |= self._placed("wanted", scored, SCORES)
            if self.bench.roles["answered"].any():
                values |= self._said(key, self._columns("answered", ("text",)))
        self.measured[key] = values
        self.done += shift is not None
        self.lab.report(done=self.done, total=self.total)

    def _ids(self, role: str | None = None) -> list[list[int]]:
        rows = self.bench.rows if role is None else self.bench.rows[self.bench.roles[role]]
        return self.lab.token_ids(self.spec.model, rows)

    def _prompts(self, role: str) -> pl.DataFrame:
        return self.lab.prompts[self.bench.rows[self.bench.roles[role]]]

    def _behaviour(self, measures: tuple[Measure, ...]) -> Behaviour:
        spec = self.spec
        return Behaviour(
            model=spec.model,
            measures=measures,
            max_new_tokens=spec.max_new_tokens,
            lead=spec.lead,
            wording=spec.wording,
        )

    def _columns(self, role: str, measures: tuple[Measure, ...]) -> Columns:
        get = text_columns if measures == ("text",) else scored_columns
        behaviour, prompts = self._behaviour(measures), self._prompts(role)
        return get(behaviour, self.lab, self.lm, prompts, self._ids(role), None, lambda done, total: None)

    def _placed(self, role: str, columns: Columns, names: Sequence[str]) -> Values:
        """Figures per prompt, NaN outside the role."""
        inside, found = self.bench.roles[role], {}
        for name in names:
            if name in columns:
                found[name] = np.full(inside.size, np.nan)
                found[name][inside] = np.array(columns[name], dtype=np.float64)
        return found

    def _said(self, key: Key, columns: Columns) -> Values:
        """What answers say; they are kept."""
        prompts = self._prompts("answered")
        kept = [name for name in ("id", "text", "language", "label", "answer") if name in prompts.columns]
        self.answers[key] = prompts.select(kept).with_columns(
            *(
                pl.Series(name, columns[name]).fill_nan(None)
                if name in SAID
                else pl.Series(name, columns[name])
                for name in ("generated", "ended", *SAID)
                if name in columns
            ),
            pl.lit(key[0]).alias("series"),
            pl.lit(key[1], dtype=pl.Float64).alias("alpha"),
        )
        return self._placed("answered", columns, SAID)
