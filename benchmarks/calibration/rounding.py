"""Two copies of one bfloat16 model in different batch shapes: whatever is found between them is rounding.

The model is a small residual network whose numbers are rounded to bfloat16 after every step. Another batch
shape is another draw of the error that each part's output has before it is rounded, up to half a unit in the
last place. Measured noise is that between two further draws, as precompute measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.behaviour import words as behaviour_words
from app.frame import noise, words
from app.heads import words as heads_words
from app.live.jobs import JobResult
from app.patching import replacement as patch_view
from app.patching import words as patch_words
from app.rank import words as rank_words
from app.steering import words as steering_words
from app.transport import words as transport_words
from app.weight_steering import words as weight_steering_words
from benchmarks.calibration import real
from benchmarks.calibration.entry import Entry, Make
from benchmarks.calibration.parts import FULL, SWEEP
from benchmarks.calibration.patches import ALPHAS, CONDITION, Swept, run_of
from benchmarks.calibration.steering import SPEC
from engine.behaviour.numbers import difference
from engine.behaviour.spec import FIGURES
from engine.heads import numbers as heads
from engine.patching.mapped_spec import CONTROLS
from engine.patching.numbers import Resampling
from engine.rank.numbers import rank_grid
from engine.rank.report import RankData, choice
from engine.rank.report import table as rank_table
from engine.rank.vectors import Cell
from engine.residual_updates.numbers import residual_updates, update_norms
from engine.similarity import cka
from engine.stats.means import bootstrap_means
from engine.stats.rounding_error import cka_bound, cka_error, rounding_sd, sum_error
from engine.transport import r2
from engine.weight_steering.spec import FIGURES as WEIGHT_FIGURES

Array = NDArray[np.float64]
Rng = np.random.Generator
PROMPTS, DEPTH, WIDTH, UNITS, GROUPS, VOCAB = 48, 12, 24, 32, 8, 40
AT, BOOT = 6, 200
HALF = 2.0**-8
"""Half of bfloat16's spacing at 1."""


def rounded(x: Array) -> Array:
    """To bfloat16 and back: the nearest number of 8 significant bits, ties to even."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(mantissa, 8)), exponent - 8)


@dataclass(frozen=True)
class Net:
    """A residual network: each block reads the stream, and `GROUPS` groups of units write into it."""

    into: Array
    out: Array
    unembed: Array

    @classmethod
    def of(cls, rng: Rng) -> Net:
        sizes = ((DEPTH, WIDTH, UNITS), (DEPTH, UNITS, WIDTH), (WIDTH, VOCAB))
        return cls(*(rounded(rng.normal(size=size) / np.sqrt(size[-2])) for size in sizes))

    def tuned(self, rng: Rng, size: float) -> Net:
        """The network with the weights of block `AT` − 1 moved by this share."""
        out = self.out.copy()
        out[AT - 1] += size * rng.normal(size=out[AT - 1].shape) / np.sqrt(UNITS)
        return Net(self.into, rounded(out), self.unembed)

    def units(self, block: int, h: Array) -> Array:
        """What the units of a block hold, (n, UNITS)."""
        size = np.sqrt((h * h).mean(axis=1, keepdims=True))
        return rounded(np.maximum(h / size @ self.into[block], 0))

    def states(self, h: Array, shape: int, first: int = 0, put: Array | None = None) -> Array:
        """States from `first` on, (blocks + 1, n, WIDTH). `shape`: the batch shape. `put`: units of that
        block."""
        found = [h]
        for block in range(first, DEPTH):
            units = self.units(block, h) if put is None or block > first else put
            error = np.random.default_rng([shape, block]).uniform(-1, 1, h.shape)
            h = rounded(h + rounded(units @ self.out[block] * (1 + HALF * error)))
            found.append(h)
        return np.stack(found)

    def log_probs(self, last: Array) -> Array:
        """(n, VOCAB) of a last state."""
        logits = 4 * last / np.sqrt((last * last).mean(axis=1, keepdims=True)) @ self.unembed
        return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


@dataclass(frozen=True)
class Pair:
    """A network, and a copy of it in another batch shape or a tuned one; prompts."""

    net: Net
    other: Net
    x: Array

    @cached_property
    def own(self) -> Array:
        return self.net.states(self.x, 0)

    @cached_property
    def source(self) -> Array:
        return self.other.states(self.x, 1)

    @cached_property
    def before(self) -> Array:
        return self.net.log_probs(self.own[-1])

    def kl(self, state: Array, shape: int, put: Array | None = None) -> Array:
        """KL(patched ‖ unpatched) of each prompt with a state put in before block `AT`, nats (n,)."""
        found = self.net.states(rounded(state), shape, AT, put)[-1]
        after = self.net.log_probs(found)
        return np.asarray((np.exp(after) * (after - self.before)).sum(axis=1))

    @cached_property
    def rounding(self) -> dict[str, Any]:
        """The measured noise of the network as a summary keeps it, and of every state."""
        one, two = (self.net.states(self.x[:6], shape) for shape in (11, 12))
        p, q = (self.net.log_probs(states[-1]) for states in (one, two))
        each = (np.exp(p) * (p - q)).sum(axis=1)
        apart = np.linalg.norm(one - two, axis=2) / np.linalg.norm(one, axis=2)
        return {
            "tuned": {
                "kl": float(each.mean()),
                "kl_worst": float(each.max()),
                "sites": apart.max(axis=1).tolist(),
            }
        }

    @property
    def summary(self) -> dict[str, Any]:
        return {"rounding": self.rounding, "self_check": {"value": 0.0, "limit": 1e-6}}


def pair(change: float) -> Make:
    """A network and itself in another batch shape, or with the weights of one block changed."""

    def make(rng: Rng) -> Pair:
        net = Net.of(rng)
        other = net.tuned(rng, change) if change else net
        return Pair(net, other, rounded(rng.normal(size=(PROMPTS, WIDTH))))

    return make


def _row(values: Array) -> dict[str, float]:
    found = Resampling(np.arange(len(values)), BOOT).mean(values)
    return {"kl": found.estimate, "low": found.low, "high": found.high}


def patch_moves(given: Pair) -> bool:
    kl = given.kl(given.source[AT], 2)
    interval = {"level": 0.95, "method": "bootstrap", "unit": "prompt"}
    summary = given.summary | {"curve": [{"alpha": 1.0, **_row(kl), "n": len(kl)}], "interval": interval}
    result = JobResult(CONDITION.to_json(), summary, {"table": pl.DataFrame({"alpha": 1.0, "kl": kl})})
    return " moves " in patch_view.result_title(result, 1.0)


def map_changes(given: Pair) -> bool:
    """The copy's activation as it is against a map that leaves half of the difference."""
    half = given.own[AT] + 0.5 * (given.source[AT] - given.own[AT])
    raw, mapped = given.kl(given.source[AT], 2), given.kl(half, 3)
    controls = {str(kind): given.kl(given.source[AT], 4 + i) for i, kind in enumerate(CONTROLS)}
    condition, summary = run_of(Swept(raw, np.stack([mapped] * len(ALPHAS)), controls), 0, given.rounding)
    title = patch_words.verdict(condition, summary)
    claims = ("the map lowers KL", "the map raises KL", "every control disturbs more")
    return any(claim in title for claim in claims)


def heads_move(given: Pair) -> bool:
    """Heads of block `AT`: groups of its units, put in from the copy or the tuned network."""
    own = given.net.units(AT, given.own[AT])
    theirs = given.other.units(AT, given.source[AT]) if given.other is not given.net else _nudged(own)
    groups = np.array_split(np.arange(UNITS), GROUPS)
    kls = []
    for number, units in enumerate([np.arange(UNITS), *groups]):
        put = own.copy()
        put[:, units] = theirs[:, units]
        kls.append(given.kl(given.own[AT], 2 + number, put))
    floor = noise.kl_floor(given.summary)
    whole = heads.effect(kls[0], floor, n_boot=BOOT)
    means = bootstrap_means(np.array(kls[1:]), n_boot=BOOT)
    cells = {"layer": 0, "head": np.arange(GROUPS), "kl": means.estimate, "kl_low": means.low}
    cells |= {"kl_high": means.high, "kl_train": means.estimate}
    top = [{"layer": 0, "head": 0}] if whole.shown else []
    title = heads_words.cells_title(pl.DataFrame(cells), CONDITION.to_json(), given.summary | {"top": top})
    return "beyond rounding" not in title and "rounding noise" not in title


def _nudged(units: Array) -> Array:
    return rounded(units * (1 + HALF * np.random.default_rng(5).uniform(-1, 1, units.shape)))


def rank_carries(given: Pair) -> bool:
    """Swaps inside k directions of the difference, and a map of rank k that saves all of it."""
    apart = given.source[AT] - given.own[AT]
    basis = np.linalg.svd(apart, full_matrices=False)[2].T
    ks = [k for k in rank_grid(FULL) if k <= WIDTH]
    swaps = {k: given.kl(given.own[AT] + apart @ basis[:, :k] @ basis[:, :k].T, 2 + k) for k in ks}
    whole, left = given.kl(given.source[AT], 50), given.kl(given.own[AT] + 0.1 * apart, 51)
    rows = [(Cell("raw", 0, 0, 1.0), whole), (Cell("mapped", 0, 0, 1.0), whole)]
    rows += [(Cell("truncated", 0, k, 1.0), left) for k in ks]
    rows += [(Cell("projector", 0, k, 1.0), swaps[k]) for k in ks]
    rows += [(Cell("random", draw, k, 1.0), 0.1 * whole) for draw in (1, 2) for k in ks]
    cells, values = [cell for cell, _ in rows], np.array([kl for _, kl in rows])
    floor, n = max(1e-6, noise.kl_floor(given.summary)), len(whole)
    data = RankData(SWEEP, cells, values, np.arange(n), np.arange(n) < n // 2, floor)
    summary = choice(data)[1] | {"full_rank": WIDTH, "basis_size": WIDTH, "reference": "raw", **given.summary}
    table = rank_table(data)
    titles = [rank_words.path_title(table, summary), rank_words.map_title(table, summary)]
    titles.append(rank_words.projector_title(table, summary, 1.0))
    quiet = ("There is no share to tell", "rounding noise", "don't carry the effect", "told apart")
    return not all(any(word in title for word in quiet) for title in titles)


def _shift(given: Pair) -> Array:
    """Change of a difference of two log-probabilities of each prompt, nats."""
    after = given.net.log_probs(given.other.states(given.x, 1)[-1])
    return np.asarray((after - given.before)[:, 0] - (after - given.before)[:, 1])


def _shifted(given: Pair) -> dict[str, float]:
    found = _row(_shift(given))
    return {"value": found["kl"], "low": found["low"], "high": found["high"]}


def log_odds_move(given: Pair) -> bool:
    """Titles of steering, steered weights and behaviour that read log-probabilities of both runs."""
    row = _shifted(given)
    ends = {"shift": row["value"], "shift_low": row["low"], "shift_high": row["high"]}
    table = pl.DataFrame(
        {"series": "direction", "alpha": [0.1], **ends, "kl": 0.1, "kl_low": 0.1, "kl_high": 0.1}
    )
    summary = given.summary | {"chosen": 0.1, "equal": {"best": None}}
    titles = [steering_words.shift_title(table, SPEC.to_json(), summary)]
    figure = next(f for f in WEIGHT_FIGURES if f.name == "agreement")
    change = {"change": row["value"], "change_low": row["low"], "change_high": row["high"]}
    steered = {"figure": figure.name, "split": "validation", "series": "d", "alpha": 1.0, **change}
    steered |= {"value": 1.0, "low": 0.9, "high": 1.1}
    weights = pl.DataFrame([steered, {**steered, "series": "", "alpha": 0.0}])
    titles.append(weight_steering_words.curve_title(weights, figure, "d", 1.0, summary))
    figure_of = next(f for f in FIGURES if f.name == "agreement")
    zero, n = np.zeros(PROMPTS), np.arange(PROMPTS)
    apart = difference(zero, _shift(given), n, binary=False, n_boot=BOOT).interval
    both = {
        "part": "all prompts",
        "series": "tuned",
        "value": apart.estimate,
        "low": apart.low,
        "high": apart.high,
    }
    rows = pl.DataFrame([both | {"p": None}])
    titles.append(behaviour_words.difference_title(figure_of, "base", rows, noise.log_floor(given.summary)))
    claims = (" raises ", " lowers ", " is higher ", " is lower ")
    return any(claim in title for title in titles for claim in claims)


def cka_differs(given: Pair | real.Copies) -> bool:
    """At any block, by the rule of the page, with every estimate that it uses."""
    grams = [[cka.gram(state) for state in states[1:]] for states in (given.own, given.source)]
    found = cka.similarity_table(*grams, n_boot=100, n_draws=19)
    quiet: list[float] = []
    same = True
    for state, value in enumerate(found.debiased.tolist(), start=1):
        both = (given.own[state], given.source[state])
        storage = 2 * sum(cka_error(x, rounding_sd(x, "bfloat16"), True) for x in both)
        bound = cka_bound(both[0], given.rounding["tuned"]["sites"][state])
        quiet.append(storage if same else max(storage, bound))
        same = same and value >= 1 - words.SAME
    curve = pl.DataFrame({"layer": found.layer, "value": found.debiased, "low": found.debiased_low})
    curve = curve.with_columns(high=pl.Series(found.debiased_high), noise=pl.Series(quiet))
    null = pl.DataFrame({"layer": found.layer, "high": found.null_high})
    title = words.cka_title(curve, null, "base", "tuned", "resid_post")
    return " leaves " in title or " differs from " in title


def best_block(given: Pair | real.Copies) -> bool:
    """One block's activations are said to be predicted better than all others', from the change on."""
    rows = []
    for state in range(AT - 1 if isinstance(given, Pair) else 1, len(given.own)):
        y, found = given.own[state], given.source[state]
        share = [float(r2(y[half], found[half])) for half in (slice(0, 24), slice(24, None))]
        ends = (share[1] - 1e-6, share[1] + 1e-6)  # intervals that tell any two places apart
        quiet = cka_bound(y, given.rounding["tuned"]["sites"][state])
        rows.append(("resid_post", state - 1, share[0], share[1], *ends, 0.0, quiet))
    names = ["site", "layer", "r2_train", "r2_validation", "r2_low", "r2_high", "r2_shuffled_max", "noise"]
    title = transport_words.table_title(pl.DataFrame(rows, schema=names, orient="row"), "base", "tuned")
    return title.endswith("above every other")


def lost_updates(moves: float) -> Make:
    """States whose updates are far below their last place, or not; of a stream with a few large coordinates,
    which Z holds."""

    def make(rng: Rng) -> tuple[Array, Array]:
        scale = np.where(np.arange(WIDTH) < 3, 40.0, 1.0)
        steps = moves * rng.normal(size=(6, PROMPTS, WIDTH)) * np.where(np.arange(WIDTH) < 3, 4.0, 1.0)
        first = scale * rng.normal(size=(PROMPTS, WIDTH))
        states = [first + steps[:i].sum(axis=0) for i in range(7)]
        return rounded(np.stack(states)), np.eye(WIDTH)[:, :3]

    return make


def off_chance(given: tuple[Array, Array]) -> bool:
    states, z = given
    deltas = list(np.diff(states, axis=0))
    norms = update_norms(deltas, z, [3])
    shares = [sum_error(d, (states[i], states[i + 1]), "bfloat16") for i, d in enumerate(deltas)]
    found = residual_updates(_with(norms, np.array(shares)), 3, n_boot=BOOT)
    title = words.verdict_title("base", found.verdict)
    return "above chance" in title or "below chance" in title or "is Z-dominated" in title


def _with(norms: Any, shares: Array) -> Any:
    from dataclasses import replace

    return replace(norms, rounding=shares)


COPIES = "two copies in different batch shapes"


def entry(name: str, sentence: str, rule: Callable[[Any], bool], change: float, *more: Make) -> Entry:
    nulls = {COPIES: pair(0.0)} | dict(zip((real.SHAPES,), more, strict=False))
    return Entry(f"Rounding: {name}", sentence, rule, nulls, pair(change))


ENTRIES = (
    entry("patch", "the patch moves the next token", patch_moves, 0.3),
    entry("map", "the map lowers (or raises) KL, or every control disturbs more", map_changes, 1.0),
    entry("heads", "a head moves the model", heads_move, 1.0),
    entry("rank", "rank k is enough, k directions carry the effect", rank_carries, 1.0),
    entry("log odds", "raises (or lowers), is higher (or lower), in nats", log_odds_move, 2.0),
    entry("CKA", "tuned leaves base at block …, differs from base", cka_differs, 0.5, real.copies()),
    entry(
        "places",
        "new prompts are predicted best at one place, above every other",
        best_block,
        0.5,
        real.copies(),
    ),
    Entry(
        "Rounding: R(ℓ)",
        "Z-dominated, above (or below) chance",
        off_chance,
        {"updates far below the last place of the states": lost_updates(1e-4)},
        lost_updates(1.0),
    ),
)
