"""Patch map: titles by their rules, panels whose code gives their tables, the page, links and prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from live_study import BLOCKS, CHANGED, PAIRS, make_store
from opened_study import chosen, opened_at, trusted
from streamlit.testing.v1 import AppTest

from app.charts.palette import DARK, LIGHT
from app.escape import inert
from app.frame.opened import Opened
from app.frame.panel import HEADING
from app.frame.selection import Selection, changed, parse, to_params
from app.live.jobs import JobResult
from app.live.run import run_live
from app.patch_map import panels, view, words
from engine.errors import PatchError
from engine.patch_map.spec import FEWEST_NULLS, MAPPED


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trusted(make_store(tmp_path_factory.mktemp("patch_map")))


@pytest.fixture(scope="module")
def opened(path: Path) -> Opened:
    return opened_at(path)


def ran(opened: Opened, selection: Selection) -> JobResult:
    asked = view.asked(opened, selection)
    _, found = run_live(opened.path, asked)
    return JobResult(asked.to_json(), found.summary, found.tables)


@pytest.fixture(scope="module")
def languages(opened: Opened) -> JobResult:
    """What the page opens with: a problem's Chinese prompt into its English one."""
    return ran(opened, chosen(opened))


@pytest.fixture(scope="module")
def models(opened: Opened) -> JobResult:
    """One prompt in both models, at every site."""
    first = view.asked(opened, chosen(opened)).prompt
    every = ",".join(MAPPED)
    return ran(opened, chosen(opened, receiving=first, donor=first, mapped=every, compared="3 / 5"))


def test_what_the_page_opens_with(opened: Opened, languages: JobResult) -> None:
    said = languages.condition
    assert (said["target"], said["source"]) == ("tuned", "tuned")
    assert said["prompt"].endswith("-en")
    assert said["donor"] == said["prompt"].replace("-en", "-zh")
    assert languages.summary["n_nulls"] == PAIRS - 1, "the other Chinese prompts"
    (note,) = languages.summary["notes"]
    assert "aligned from the end" in note


def test_panels_say_what_their_tables_hold(opened: Opened, languages: JobResult, models: JobResult) -> None:
    for result, names in (
        (languages, ["patch-map-resid_post", "patch-map-profile"]),
        (models, [*(f"patch-map-{site}" for site in MAPPED), "patch-map-profile"]),
    ):
        made = panels.panels(opened, result, chosen(opened))
        assert [panel.name for panel in made] == names
        made += panels.panels(opened, result, chosen(opened, coloured="kl"))
        assert len(made) == 2 * len(names) - 1, "KL has no profile"
        for panel in made:
            scope: dict[str, Any] = {}
            exec(panel.code, scope)
            assert panel.table.equals(scope["table"]), panel.name
            assert len(panel.heading) <= HEADING
            assert "9 unrelated prompts are too few to tell what the donor brings" in panel.title
            for palette in (LIGHT, DARK):
                assert panel.draw(palette).spec()["layer"]


def test_two_models_part_where_their_weights_do(models: JobResult) -> None:
    """The planted block: what the other model holds before it is what is there."""
    stream = models.table.filter(site="resid_post")
    assert stream.filter(pl.col("layer") < CHANGED)["kl"].max() < 1e-9  # type: ignore[operator]
    last = stream.filter(token=stream["token"].max()).sort("layer")["recovery"].to_list()
    assert len(last) == BLOCKS
    assert last[:CHANGED] == pytest.approx([0.0] * CHANGED, abs=1e-4)
    assert last[-1] == pytest.approx(1.0, abs=1e-3)
    parts = models.table.filter(pl.col("site").is_in(["attn_out", "mlp_out"]) & (pl.col("kl") > 1e-9))
    assert parts["layer"].min() == CHANGED
    assert parts.filter(layer=CHANGED)["site"].unique().to_list() == ["mlp_out"], "the MLP was changed"


def test_without_a_difference_cells_are_kl(opened: Opened, languages: JobResult) -> None:
    summary = {**languages.summary, "defined": False, "recovery_floor": None}
    alike = JobResult(languages.condition, summary, languages.tables)
    (panel,) = panels.panels(opened, alike, chosen(opened))
    assert "there is no recovery" in panel.caption


@pytest.mark.parametrize("which", ["languages", "models"])
def test_a_link_and_a_stored_condition_mean_the_same(
    opened: Opened, which: str, request: pytest.FixtureRequest
) -> None:
    condition = request.getfixturevalue(which).condition
    changes = view.selection_of(condition, chosen(opened))
    selection = changed(chosen(opened), **changes)
    back, notices = parse(to_params(selection, opened.facts), opened.facts)
    assert not notices
    assert view.asked(opened, back).to_json() == condition


def test_links_that_name_nothing_fall_back_and_answers_are_read(opened: Opened) -> None:
    usual = view.asked(opened, chosen(opened))
    odd = view.asked(opened, chosen(opened, receiving="no such", donor="none", mapped="head_z,,"))
    assert odd == usual
    assert view.answers_of(" ") is None
    assert view.answers_of("Yes / No") == ("Yes", "No")
    for text in ("Yes", "Yes/", "a/b/c", "a / a"):
        with pytest.raises(PatchError, match="can't be read"):
            view.answers_of(text)
    assert view.planned(opened, chosen(opened)) == [usual]
    picked = chosen(opened, receiving=usual.donor, donor=usual.donor, compared="a", unrelated=3)
    assert view.planned(opened, picked) == [usual.model_copy(update={"nulls": 3})], "whatever is looked at"


class Stored:
    """A store of prompts alone."""

    def __init__(self, **columns: list[str | None]) -> None:
        self.prompts = pl.DataFrame(columns)


def test_the_donor_that_is_offered() -> None:
    table = {
        "id": ["clean", "corrupt", "en", "zh", "alone"],
        "corrupt_of": [None, "clean", None, None, "gone"],
        "pair_id": ["p", "p", "q", "q", None],
        "language": ["en", "zh", "en", "zh", "en"],
    }

    def offered(*names: str) -> list[str]:
        store: Any = Opened("", Stored(**{n: table[n] for n in ("id", *names)}), None)  # type: ignore[arg-type]
        return [view.default_donor(store, prompt) for prompt in table["id"]]

    assert offered("corrupt_of", "pair_id", "language") == ["corrupt", "clean", "zh", "en", "alone"]
    assert offered("pair_id", "language") == ["corrupt", "clean", "zh", "en", "alone"]
    assert offered("corrupt_of") == ["corrupt", "clean", "en", "zh", "alone"]
    assert offered() == table["id"]


def test_the_page_before_and_after(
    path: Path, opened: Opened, languages: JobResult, open_app: Callable[..., AppTest]
) -> None:
    prompt = str(languages.condition["prompt"])
    other = next(
        one for one in opened.store.prompts["id"] if one not in (prompt, languages.condition["donor"])
    )
    for name, done in ((prompt, True), (other, False)):
        at = open_app(path, "patch_map", a="base", b="tuned", receiving=name)
        assert not at.exception
        said = " ".join(text.value for text in at.markdown)
        assert ("too few to tell" in said) == done
        assert ("This map has not been run" in said) != done
        assert at.selectbox(key="patch-map-receiving").value == name
    # the other direction
    at = open_app(path, "patch_map", a="base", b="tuned", receiving=prompt)
    at.button(key="patch-map-swap").click().run()
    assert not at.exception
    assert at.selectbox(key="patch-map-receiving").value == languages.condition["donor"]
    assert at.selectbox(key="patch-map-donor").value == prompt


def test_swapping_two_models_turns_the_target(
    path: Path, models: JobResult, open_app: Callable[..., AppTest]
) -> None:
    prompt = str(models.condition["prompt"])
    at = open_app(path, "patch_map", a="base", b="tuned", receiving=prompt, donor=prompt)
    at.button(key="patch-map-swap").click().run()
    assert not at.exception
    assert at.query_params["target"] in ("a", ["a"])
    at = open_app(path, "patch_map", a="base", b="tuned", compared="odd")
    assert not at.exception
    assert "can't be read" in " ".join(text.value for text in at.markdown)


SUMMARY = {"answers": ["␣5", "7"], "recovery_floor": 0.01, "floor": 0.001}


def cells(**values: list[float | None]) -> pl.DataFrame:
    (column,) = values.values()
    count = len(column)
    return pl.DataFrame(
        {"layer": range(count), "token": range(10, 10 + count), "text": " apples", "value": column}
    )


def nulls(most: float, count: int = FEWEST_NULLS) -> pl.DataFrame:
    return pl.DataFrame({"value": [most / 2] * (count - 1) + [most]}, schema={"value": pl.Float64})


def test_titles_of_recovery() -> None:
    given = cells(value=[0.1, 0.93, None, 0.4])
    title = words.recovery_title("resid_post", given, nulls(0.3), SUMMARY, True)
    assert title == (
        "resid_post: token 11, “␣apples”, brings 93 % of the change at block 1; "
        "the change is from “␣5” to “7”"
    )
    less = words.recovery_title("resid_post", given, nulls(0.95), SUMMARY, True)
    assert less.startswith("resid_post: no token before the last brings more of the change than unrelated")
    assert words.recovery_title("mlp_out", given, nulls(0.95), SUMMARY, False).startswith(
        "mlp_out: no token brings more"
    )
    for count, said in (
        (FEWEST_NULLS - 1, "18 unrelated prompts are too few"),
        (1, "1 unrelated prompt is too"),
    ):
        assert said in words.recovery_title("resid_post", given, nulls(0.0, count), SUMMARY, True)
    both = words.recovery_title("resid_post", given, nulls(0.3), SUMMARY, True, (3, 0.5))
    assert "at block 1; from block 3 on the last token brings more than 50 %; the change is" in both
    only = words.recovery_title("resid_post", given, nulls(0.95), SUMMARY, True, (3, 0.5))
    assert only.startswith(
        "resid_post: from block 3 on the last token brings more than 50 % of the change; "
        "earlier ones no more than unrelated prompts do; "
    )
    still = words.recovery_title("resid_post", cells(value=[0.005, -0.01]), nulls(0.0), SUMMARY, True)
    assert still == "resid_post: no token before the last changes what is said by more than rounding noise"
    quiet = cells(value=[0.005, -0.01])
    with_last = words.recovery_title("resid_post", quiet, nulls(0.0), SUMMARY, True, (3, 0.5))
    assert with_last == (
        "resid_post: from block 3 on the last token brings more than 50 % of the change; "
        "no token before the last changes what is said by more than rounding noise"
    )
    every = words.recovery_title("mlp_out", quiet, nulls(0.0), SUMMARY, False)
    assert every == "mlp_out: no patch changes what is said by more than rounding noise"
    for patched, said in ((1, "only the last token was patched"), (5, "lack the earlier tokens")):
        none = words.recovery_title("resid_post", given[:0], nulls(0.0), SUMMARY | {"patched": patched}, True)
        assert said in none
    assert words.percent(1.404) == "140 %"
    long = {**SUMMARY, "answers": ["x" * 40, "y" * 40]}
    assert len(words.recovery_title("resid_post", given, nulls(2.0), long, True).split(";")[0]) <= HEADING


def test_titles_of_kl() -> None:
    given = cells(value=[0.1, 0.83])
    title = words.kl_title("resid_pre", given, nulls(0.3), SUMMARY, True)
    assert title == (
        "resid_pre: token 11, “␣apples”, block 1, moves the output most of those before the last: "
        "KL 0.83 nats"
    )
    assert words.kl_title("mlp_out", given, nulls(0.9), SUMMARY, False) == (
        "mlp_out: no token moves the output more than unrelated prompts do"
    )
    assert "rounding noise" in words.kl_title("mlp_out", cells(value=[0.001]), nulls(0.0), SUMMARY, False)


def test_the_last_token_is_told_with_the_block_that_it_keeps_from() -> None:
    path = cells(value=[0.0, 0.7, 0.4, 0.8, 1.0])
    assert words.handed(path, [0.1] * FEWEST_NULLS, 0.0) == (3, 0.5)
    assert words.handed(path, [0.85] * FEWEST_NULLS, 0.0) == (4, 0.85)
    assert words.handed(path, [1.2] * FEWEST_NULLS, 0.0) is None
    assert words.handed(path, [0.1] * (FEWEST_NULLS - 1), 0.0) is None
    title = words.profile_title("resid_post", (3, 0.5), nulls(0.1), SUMMARY)
    assert title.startswith(
        "resid_post: from block 3 on the last token brings more than 50 % of the change; "
    )
    assert "no more of the change than unrelated" in words.profile_title("a", None, nulls(1.2), SUMMARY)
    assert "less than half" in words.profile_title("a", None, nulls(0.2), SUMMARY)
    assert "from the first block on" in words.profile_title("a", (0, 0.5), nulls(0.2), SUMMARY)


def test_ids_and_answers_in_a_caption_show_as_they_are(opened: Opened, languages: JobResult) -> None:
    """Markdown's marks in them set nothing in italics: captions are Markdown of Patchbay's own."""
    condition = languages.condition | {"prompt": "sum *one* of", "donor": "_two_ and `three`"}
    summary = languages.summary | {"answers": [" *yes*", "no"]}
    made = panels.panels(opened, JobResult(condition, summary, languages.tables), chosen(opened))
    said = inert(made[0].caption)
    assert "sum \\*one\\* of" in said
    assert "\\_two\\_ and \\`three\\`" in said
    assert "“␣\\*yes\\*”" in said
