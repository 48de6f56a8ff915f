"""Difference lens against plain Hugging Face passes and brute force, its nulls, and what is refused."""

from __future__ import annotations

import copy

import numpy as np
import polars as pl
import pytest
import torch
from moved_pair import PROMPTS, lab_of, pair, plain_lens
from pydantic import ValidationError
from tiny_models import VARIED, tiny

from benchmarks.calibration import difference_lens as calibration
from engine.difference_lens import numbers
from engine.difference_lens.run import fits, run
from engine.difference_lens.scan import Draws, Place, Readout
from engine.difference_lens.spec import DifferenceLens
from engine.difference_lens.texts import NEUTRAL
from engine.errors import JobError, PatchError
from engine.models.loading import from_parts
from engine.models.sites import Site


@pytest.mark.parametrize("family", VARIED)
def test_means_are_differences_of_the_logit_lenses_of_plain_passes(family: str) -> None:
    base, tuned = pair(family)
    lab = lab_of({"base": base, "tuned": tuned})
    found = run(DifferenceLens(target="tuned", source="base", positions=("decision",), top=50), lab)
    places = found.tables["places"]
    assert places["state"].to_list()[0] == "equal", "block 0 was not changed"
    for layer in range(1, base.taps.n_layers):
        ends = [plain_lens(lm, base, lab.ids["base"], layer, lambda _: -1) for lm in (tuned, base)]
        want = (ends[0] - ends[1]).mean(axis=0)
        shown = found.table.filter(layer=layer)
        assert np.allclose(shown["mean"], want[shown["token_id"]], atol=1e-4)
        at = places.row(by_predicate=pl.col("layer") == layer, named=True)
        assert at["largest"] == pytest.approx(np.abs(want).max(), abs=1e-4)
        assert shown.filter(side="promoted")["mean"].min() > 0 > shown.filter(side="suppressed")["mean"].max()


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt2", "cohere"])
def test_the_linear_reading_is_the_derivative_of_the_lens(family: str) -> None:
    """By differences of the lens itself, in float64, along the way from one state to the other."""
    base, tuned = pair(family)
    lab = lab_of({"base": base, "tuned": tuned})
    spec = DifferenceLens(target="tuned", source="base", positions=("decision",), reading="linear", top=50)
    found, last = run(spec, lab), base.taps.n_layers - 1
    states = []
    for name in ("tuned", "base"):
        engine = lab.engine(name, range(PROMPTS), "decision", "patched")
        states.append(engine.activations(Site("resid_post", last)).double())
    norm = copy.deepcopy(base.taps.final_norm).double()
    rows = base.taps.unembedding.weight.detach().double() * base.taps.logit_scale
    step = 1e-3 * (states[0] - states[1])
    with torch.no_grad():
        moved = (norm(states[1] + step).double() - norm(states[1] - step).double()) / 2e-3 @ rows.T
    want = (moved - moved.mean(dim=1, keepdim=True)).mean(dim=0).numpy()
    shown = found.table.filter(layer=last)
    assert np.allclose(shown["mean"], want[shown["token_id"]], atol=2e-3 * np.abs(want).max())


def test_texts_are_read_at_their_first_tokens() -> None:
    base, tuned = pair("llama")
    lab = lab_of({"base": base, "tuned": tuned})
    texts = tuple(" ".join(map(str, [*one, 5, 7])) for one in lab.ids["base"])
    spec = DifferenceLens(
        target="tuned", source="base", over="texts", texts=(*texts, "3 4"), tokens=3, top=50
    )
    found = run(spec, lab)
    assert found.summary["positions"] == ["token 0", "token 1", "token 2"]
    assert (found.summary["n"], found.summary["unit"]) == (PROMPTS, "text"), "one text is too short"
    for token in range(3):
        ends = [plain_lens(lm, base, lab.ids["base"], 1, lambda _, t=token: t) for lm in (tuned, base)]
        want = (ends[0] - ends[1]).mean(axis=0)
        shown = found.table.filter(layer=1, position=f"token {token}")
        assert np.allclose(shown["mean"], want[shown["token_id"]], atol=1e-4)
    assert len(NEUTRAL) == len(set(NEUTRAL)) >= 2 * numbers.FEWEST


def planted_readout(rng: np.random.Generator, vocab: int, width: int) -> Readout:
    rows = torch.as_tensor(rng.normal(size=(vocab, width)), dtype=torch.float32)
    rows -= rows.mean(dim=0)
    return Readout(rows, torch.nn.Identity(), torch.ones(width), rows.norm(dim=1).double().numpy())


def test_what_draws_reach_by_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flip and each resample by itself, t by its textbook formula; the vocabulary in uneven blocks."""
    monkeypatch.setattr("engine.difference_lens.scan.BLOCK", 7)
    rng = np.random.default_rng(0)
    readout = planted_readout(rng, 30, 6)
    rows, unit = rng.lognormal(size=(39, 6)), np.repeat(np.arange(13), 3)
    flips, counts = numbers.flips(13, 50, 1), numbers.resamples(13, 50, 1)
    place = Place.of(readout, numbers.sums(rows, unit), 39, Draws.of(flips, counts, "cpu"))
    logits = rows @ readout.rows.double().numpy().T
    sums = logits.reshape(13, 3, 30).sum(axis=1)
    assert np.allclose(place.mean, logits.mean(axis=0), rtol=1e-4, atol=1e-5)
    assert np.allclose(place.se, np.sqrt(13) * sums.std(axis=0, ddof=1) / 39, rtol=1e-4)

    def t(values: np.ndarray) -> np.ndarray:
        return values.mean(axis=0) / values.std(axis=0, ddof=1) * np.sqrt(len(values))

    for number in range(50):
        largest = np.abs(t(flips[number][:, None] * sums)).max()
        assert numbers.t_of(place.share[number], 13) == pytest.approx(largest, rel=1e-3)
        drawn = np.repeat(sums - sums.mean(axis=0), counts[number].astype(int), axis=0)
        # each resample's own spread divides by n − 1 of its n units, as the sample's does
        own = drawn.mean(axis=0) / drawn.std(axis=0) * np.sqrt(12)
        assert place.low[number] == pytest.approx(own.min(), rel=1e-3)
        assert place.high[number] == pytest.approx(own.max(), rel=1e-3)
    assert set(np.unique(flips)) == {-1.0, 1.0}
    assert (counts.sum(axis=1) == 13).all()


def test_limits_hold_for_all_places_together() -> None:
    shares = [np.array([1.0, 2.0, 3.0] * 133), np.array([3.0, 2.0, 1.0] * 133)]
    draws = np.arange(399.0)
    held = numbers.limits(shares, [-draws, -draws / 2], [draws / 2, draws], [60, 60])[60]
    assert held.flip == pytest.approx(numbers.t_of(3.0, 60), rel=1e-3), "the larger place in each draw"
    # the tail of 60 units, of which a sixth is kept for skew that they don't show
    assert held.low == -held.high
    assert 388 < held.high < 393
    assert numbers.limits(shares, [-draws] * 2, [draws] * 2, [11, 11]) == {} == numbers.limits([], [], [], [])
    none = numbers.Limits.none(11)
    assert not none.known
    assert not numbers.beyond(np.array([9.0]), np.array([1e-9]), none).any()


def test_places_of_fewer_units_have_further_limits_and_those_of_too_few_no_say() -> None:
    """Where two groups of places are drawn apart, either limit is what 2.5 % exceed, about."""
    rng = np.random.default_rng(0)
    shares = [np.abs(rng.normal(size=3999)) for _ in range(3)]
    draws = [np.abs(rng.standard_t(count - 1, 3999)) for count in (60, 12)] + [np.full(3999, 1e9)]
    held = numbers.limits(shares, [-one for one in draws], draws, [60, 12, 11])
    assert sorted(held) == [12, 60]
    assert held[12].high > 1.2 * held[60].high, "of t with 11 degrees of freedom, and wider tails"
    for at, count in enumerate((60, 12)):
        alone = numbers.limits([shares[at]], [-draws[at]], [draws[at]], [count])[count]
        assert held[count].high > alone.high
        assert held[count].low == -held[count].high
        t = numbers.t_of(shares[at], count)
        assert np.quantile(t, 0.95) < held[count].flip < np.quantile(t, 0.99)
        assert np.isclose((t > held[count].flip).mean(), 0.025, atol=0.008)
    together = np.any([numbers.t_of(shares[at], n) > held[n].flip for at, n in enumerate((60, 12))], axis=0)
    assert together.mean() == pytest.approx(0.05, abs=0.002)
    few = numbers.limits(*[[one[:399] for one in draws]] * 3, [60, 12, 11], 0.999)
    assert not few[60].known, "399 draws are too few"


def test_tokens_that_are_shown_are_those_beyond_chance_first() -> None:
    mean = np.array([3.0, -1.0, 2.0, 5.0, -4.0, 0.0])
    told = np.array([True, True, True, False, False, False])
    up, down = numbers.foremost(mean, told, 2)
    assert (up.tolist(), down.tolist()) == ([0, 2], [1, 4])


def test_an_identical_copy_names_nothing_and_so_does_its_rounding() -> None:
    base, _ = pair("qwen3")
    lab = lab_of({"base": base, "copy": base})
    found = run(DifferenceLens(target="copy", source="base", positions=("decision",)), lab)
    assert set(found.tables["places"]["state"]) == {"equal"}
    assert found.table.is_empty()
    nudged, moved = pair("qwen3", 1e-6)
    lab = lab_of({"base": nudged, "tuned": moved})
    sites = {"resid": [0.01] * (base.taps.n_layers + 1)}
    lab.noise = {name: {"kl": 0.0, "sites": sites} for name in lab.models}
    found = run(DifferenceLens(target="tuned", source="base", positions=("decision",)), lab)
    assert found.tables["places"]["state"].to_list()[1:] == ["rounding"] * (base.taps.n_layers - 1)
    assert found.table.is_empty()


def test_a_copy_in_another_batch_shape_names_nothing_in_any_of_20_draws() -> None:
    for seed in range(20):
        for make in (calibration.shapes, calibration.real_shapes):
            assert not calibration.named(make(np.random.default_rng(seed)))
    planted = calibration.differences(add=3.0)
    assert sum(calibration.named(planted(np.random.default_rng(seed))) for seed in range(10)) >= 9


def test_more_places_than_memory_should_hold_are_refused() -> None:
    """All 36 blocks at 64 tokens of a vocabulary of 151,936; every third block fits."""
    rows = torch.empty(151_936, 2048, device="meta")
    readout = Readout(rows, torch.nn.Identity(), torch.ones(1), np.ones(1))
    spec = DifferenceLens(target="tuned", source="base", over="texts", tokens=64)
    with pytest.raises(PatchError, match="memory") as error:
        fits(spec, 36 * 64, 40, readout)
    states = 2 * 40 * 36 * 64 * 2048 * 4
    assert f"{(states + 36 * 64 * 151_936 * 8) / 2**30:.1f} GiB" in str(error.value)
    assert "stride = 3" in str(error.value)
    fits(spec.model_copy(update={"stride": 3}), 12 * 64, 40, readout)


def test_means_are_float32_as_they_were_computed() -> None:
    rng = np.random.default_rng(0)
    draws = Draws.of(numbers.flips(13, 20, 1), numbers.resamples(13, 20, 1), "cpu")
    place = Place.of(planted_readout(rng, 30, 6), rng.normal(size=(13, 6)), 13, draws)
    assert place.mean.dtype == place.se.dtype == np.float32


def test_what_is_refused() -> None:
    base, tuned = pair("llama")
    lab = lab_of({"base": base, "tuned": tuned})
    spec = DifferenceLens(target="tuned", source="base", over="texts", texts=("1 2", "3"), tokens=3)
    with pytest.raises(PatchError, match="too short"):
        run(spec, lab)
    wide = from_parts(tiny("llama", seed=1, hidden_size=64))
    with pytest.raises(PatchError, match="width is not the same"):
        run(
            DifferenceLens(target="wide", source="base", positions=("decision",)),
            lab_of({"base": base, "wide": wide}),
        )
    lab.stop_after = 2
    with pytest.raises(JobError, match="cancelled"):
        run(DifferenceLens(target="tuned", source="base", positions=("decision",)), lab)
    for wrong in (
        {},
        {"positions": ("decision",), "texts": ("a",)},
        {"over": "texts", "positions": ("decision",)},
        {"over": "texts", "texts": (" ",)},
    ):
        with pytest.raises(ValidationError):
            DifferenceLens(target="tuned", source="base", **wrong)
