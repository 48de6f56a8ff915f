"""Panels of scored subspaces: maps of both scores, profile, ranking, grid, specificity; no Streamlit here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from app.charts.log_points import STAR, log_domain, log_points
from app.charts.palette import Palette
from app.charts.profiles import ratio_profile
from app.charts.tall import dot_rows, tall_grid
from app.charts.template import Chart
from app.frame import words
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.snippets import read_run
from app.live.jobs import JobResult
from app.subspaces import tables as q
from app.subspaces import words as say
from engine.subspaces.numbers import Conclusion, Scores, Stability

HAAR = "Null: random subspaces of the same rank, at R = 1, by exact moments; p from the Beta with these"
SCALES = (
    ". A second null keeps the share of every coordinate in a candidate, so that a few large coordinates "
    "that both share are no finding: R, scales is R over what these shares alone give. Above chance needs "
    "both: the larger p"
)
ONE_NULL = ". This run knows no null that keeps the coordinates' scales: a few large coordinates raise R too"
TOLD = (
    ", Holm over candidates × averaged blocks. Nothing is sampled, so there is no interval. Above chance "
    "means no random direction, as most that a trained network uses are not: it sets neither a candidate "
    "nor its block apart from others"
)


def null(scores: Scores) -> str:
    """What chance is, for captions."""
    return HAAR + (SCALES + TOLD if scores.scaled else TOLD + ONE_NULL)


@dataclass(frozen=True)
class Shown:
    """What is shown of a stored run.

    Attributes:
        delta, k, clean, layers: the weight change, and how it is scored; layers None: all that it changes.
        scores: of `delta`. changes: of every weight change of the run that has scores.
        candidate: the one whose profile is shown. measure: of the grid.
        agreement: of all changes, None for one. found: the conclusion about `delta`.
        families: whether points are coloured by family, else by the side of the weights they come from.
    """

    result: JobResult
    delta: str
    k: int
    clean: int
    layers: tuple[int, ...] | None
    scores: Scores
    changes: tuple[Scores, ...]
    candidate: str
    measure: str
    agreement: Stability | None
    found: Conclusion
    families: bool = False

    @property
    def averaged(self) -> str:
        """Which blocks scores are averaged over, in words."""
        blocks = words.blocks([int(layer) for layer in self.scores.averaged])
        return f"{blocks}, where ΔW ≠ 0" if self.layers is None else blocks


def run_panels(opened: Opened, shown: Shown) -> list[Panel]:
    """Every panel that has something to show."""
    made = [*maps(opened, shown), profile_panel(opened, shown), ranking_panel(opened, shown)]
    made += [grid_panel(opened, shown), specificity_panel(opened, shown)]
    return made + ([stability_panel(opened, shown)] if shown.agreement is not None else [])


def maps(opened: Opened, shown: Shown) -> list[Panel]:
    """R_act against R_w: write and mixed candidates, and those of the read side."""
    return [map_panel(opened, shown, kinds) for kinds in (q.WRITE, q.READ)]


def models_of(opened: Opened, shown: Shown) -> tuple[str, ...]:
    """Whose provenance stands below a panel."""
    wanted = (str(shown.result.summary["subject"]), shown.delta)
    return tuple(name for name in dict.fromkeys(wanted) if name in opened.facts.models)


def code_of(opened: Opened, shown: Shown, call: str, *, every: bool = False) -> str:
    """Notebook lines that score the run's tables again and end with a table."""
    rest = f"{shown.k}, clean={shown.clean}, layers={shown.layers!r})"
    lines = [
        "from app.subspaces import tables as q",
        "from engine.subspaces.tables import scores_of",
    ]
    lines.append(f"scores = scores_of(run.summary, run.tables, {shown.delta!r}, {rest}")
    if every:
        names = [one.target for one in shown.changes]
        lines.append(f"names = {names!r}")
        lines.append(f"changes = [scores_of(run.summary, run.tables, name, {rest} for name in names]")
    return read_run(opened, shown.result, *lines, f"table = {call}")


def setting(shown: Shown) -> str:
    """What is scored, at which rank, averaged over which blocks."""
    return f"ΔW: {shown.delta}. k = {shown.k}, broad {shown.scores.broad}; means over {shown.averaged}"


def method(shown: Shown) -> str:
    """`setting`, and where the numbers come from."""
    counts = shown.result.summary["counts"]
    return (
        f"{setting(shown)}. D = stream(α = +1) − stream(α = −1) under W + αΔW, leaving each block at the "
        f"decision token of {counts['evaluate']} held-out prompts. Candidates are built from weights and "
        f"{counts['fit']} train prompts, without ΔW. {null(shown.scores)}"
    )


def _looks(palette: Palette, kinds: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of axis kinds."""
    series = palette.series
    looks = {
        "write": (series[0], "circle"),
        "mixed": (series[2], "diamond"),
        "read": (series[3], "triangle-up"),
        "ceiling": (series[5], STAR),
    }
    return {name: look for name, look in looks.items() if name in (*kinds, *q.CEILING)}


SHAPES = ("circle", "diamond", "triangle-up")


def _families(palette: Palette, table: pl.DataFrame) -> dict[str, tuple[str, str]]:
    """Colour and shape of families, ceilings as stars; colours come again in another shape."""
    names = table.filter(pl.col("series") != "ceilings")["series"].unique(maintain_order=True)
    count = len(palette.series)
    looks = {name: (palette.series[i % count], SHAPES[i // count]) for i, name in enumerate(names)}
    return looks | {"ceilings": (palette.null, STAR)}


def map_panel(opened: Opened, shown: Shown, kinds: Sequence[str]) -> Panel:
    """R_act against R_w of the candidates of some axis kinds, and of ceilings."""
    scores, read = shown.scores, tuple(kinds) == q.READ
    table = q.points(scores, kinds, families=shown.families)
    every = q.points(scores, (*q.WRITE, *q.READ))
    domains = (log_domain(every["x"].to_list(), least=1e-2), log_domain(every["y"].to_list(), least=1e-2))
    is_shown = pl.col("candidate") == shown.candidate
    drawn = table.with_columns(pl.when(is_shown).then("candidate").otherwise("label").alias("label"))

    def draw(palette: Palette) -> Chart:
        return log_points(
            drawn.sort(~is_shown, maintain_order=True),
            x_title="R_act: share of D inside, over chance",
            y_title="R_w: share of ΔW inside, over chance",
            looks=_families(palette, table) if shown.families else _looks(palette, kinds),
            palette=palette,
            domains=domains,
            selected=shown.candidate,
        )

    lost = q.undrawn(scores, kinds)
    missing = f" Not drawn, without a score above 0: {', '.join(lost)}." if lost else ""
    side = (
        f"Read-side candidates are what blocks take from the stream: a high R_w is {say.READ_SIDE}. "
        if read
        else "The best four by joint score are named. "
    )
    caption = (
        f"{side}Stars: ceilings, which look at ΔW or D and are no hypotheses. Hollow: rank below {shown.k} "
        f"at some block.{missing} Click a point for its profile. {setting(shown) if read else method(shown)}."
    )
    call = f"q.points(scores, {tuple(kinds)!r}, families={shown.families})"
    title = say.map_title(scores, kinds, shown.found)
    name = "subspace-map-read" if read else "subspace-map"
    return Panel(name, title, table, draw, code_of(opened, shown, call), caption, models_of(opened, shown))


def profile_panel(opened: Opened, shown: Shown) -> Panel:
    """One candidate over blocks, with the most that a subspace of its rank could have."""
    table = q.profile(shown.scores, shown.candidate)
    entry = next(one for one in shown.scores.candidates if one.name == shown.candidate)
    marked = [int(layer) for layer in shown.scores.averaged]

    def draw(palette: Palette) -> Chart:
        hues = (palette.series[0], palette.series[1], palette.series[2])
        return ratio_profile(
            table,
            y_title="R, over chance",
            colors=dict(zip(q.DRAWN.values(), hues, strict=True)),
            palette=palette,
            marked=marked,
        )

    details = shown.scores.details.get(shown.candidate)
    more = ""
    if details is not None:
        first = [row[0] for row, layer in zip(details, shown.scores.layers, strict=True) if layer in marked]
        more = f" Its leading principal cosine: {', '.join(say.figure(value) for value in first[:8])}."
    note = f" It is of the read side: a high R_w is {say.READ_SIDE}." if entry.axis_kind == "read" else ""
    caption = (
        f"{entry.name} ({entry.family}, {entry.axis_kind}): {entry.definition}.{note}{more} Dashed: the most "
        f"that a subspace of its rank can have there. Shaded: averaged blocks. {method(shown)}."
    )
    title = say.profile_title(shown.scores, shown.candidate)
    code = code_of(opened, shown, f"q.profile(scores, {shown.candidate!r})")
    return Panel("subspace-profile", title, table, draw, code, caption, models_of(opened, shown))


def ranking_panel(opened: Opened, shown: Shown) -> Panel:
    """All candidates by joint score, write and mixed, read and ceilings apart."""
    table = q.ranked(shown.scores, shown.changes)
    series = {"R_act": "r_act", "R_w": "r_combined", "joint": "joint"}
    long = q.long(table, series)

    def draw(palette: Palette) -> Chart:
        return dot_rows(
            long,
            x_title="mean over blocks, over chance",
            colors=dict(zip(series, (palette.series[0], palette.series[1], palette.mark), strict=True)),
            palette=palette,
            selected=shown.candidate,
        )

    several = shown.agreement is not None
    names = ", ".join(one.target for one in shown.changes)
    spread = f" Over {names}: mean, sd and Student's 95 % interval of the mean." if several else ""
    same = f"The same in both: {', '.join(shown.found.both)}. " if shown.found.both else ""
    caption = (
        f"{same}joint = √(R_act · R_w), gap = log₂ R_act − log₂ R_w; percent: of the most that a subspace of "
        f"the candidate's rank can have. Read-side candidates are placed apart, a high R_w there is "
        f"{say.READ_SIDE}; so are ceilings, which look at ΔW or D and are no hypotheses.{spread} "
        f"{method(shown)}."
    )
    call = "q.ranked(scores, changes)" if several else "q.ranked(scores)"
    code = code_of(opened, shown, call, every=several)
    title = say.ranking_title(shown.found)
    return Panel("subspace-ranking", title, table, draw, code, caption, models_of(opened, shown))


def grid_panel(opened: Opened, shown: Shown) -> Panel:
    """One measure of every candidate at every block."""
    measure = q.MEASURES[shown.measure]
    table = q.cells(shown.scores, measure.name)
    groups = table.with_columns(group=pl.col("axis_kind").replace_strict(_group_numbers()))
    ends = (
        groups.group_by("group", maintain_order=True).agg(pl.col("candidate").last())["candidate"].to_list()
    )
    ceilings = table.filter(pl.col("axis_kind") == "ceiling")["candidate"].unique().to_list()

    def draw(palette: Palette) -> Chart:
        return tall_grid(
            table,
            value_title=measure.title,
            palette=palette,
            shade=measure.shade,
            selected=shown.candidate,
            ends=ends[:-1],
            aside=ceilings,
        )

    colour = {
        "ratio": "Logarithmic colours around 1, alike on both sides; what lies further out is one colour.",
        "signed": "Colours around 0, compressed towards the ends.",
        "plain": "",
    }[measure.shade]
    tested = null(shown.scores) if measure.name not in ("cosine", "rank") else "It has no null here"
    caption = (
        f"{measure.title}: {measure.meaning}. {colour} Rows as in the ranking: write and mixed, read, "
        f"ceilings. Empty: no value, as where ΔW = 0. Click a cell to choose its row. {setting(shown)}. "
        f"{tested}."
    )
    code = code_of(opened, shown, f"q.cells(scores, {measure.name!r})")
    title = say.grid_title(shown.scores, measure)
    return Panel("subspace-grid", title, table, draw, code, caption, models_of(opened, shown))


def _group_numbers() -> dict[str, int]:
    return {kind: number for number, kinds in enumerate(q.GROUPS) for kind in kinds}


def specificity_panel(opened: Opened, shown: Shown) -> Panel:
    """R_act before and after the leading clean directions are taken out."""
    table = q.specificity(shown.scores)
    without = f"without {shown.clean} clean directions"
    series = {"R_act": "r_act", without: "r_specific"}
    long = q.long(table, series)

    def draw(palette: Palette) -> Chart:
        return dot_rows(
            long,
            x_title="mean R_act, over chance",
            colors=dict(zip(series, (palette.null, palette.series[1]), strict=True)),
            palette=palette,
            joined=True,
            selected=shown.candidate,
        )

    caption = (
        f"R_act after the {shown.clean} leading principal directions of the stream without persona are taken "
        "out of D and of each basis; both scores are over chance in the space that is left. A candidate that "
        f"loses most of its R_act shares it with what the model always does; one without a value has nothing "
        f"left. {method(shown)}."
    )
    code = code_of(opened, shown, "q.specificity(scores)")
    title = say.specificity_title(shown.scores)
    return Panel("subspace-specificity", title, table, draw, code, caption, models_of(opened, shown))


def stability_panel(opened: Opened, shown: Shown) -> Panel:
    """The joint score under every weight change."""
    if shown.agreement is None:
        raise ValueError("one weight change has no stability")
    agreement, table = shown.agreement, q.by_change(shown.changes)
    names = [one.target for one in shown.changes]

    def draw(palette: Palette) -> Chart:
        hues = [palette.series[number % len(palette.series)] for number in range(len(names))]
        return dot_rows(
            table,
            x_title="joint score √(R_act · R_w)",
            colors=dict(zip(names, hues, strict=True)),
            palette=palette,
            joined=True,
            selected=shown.candidate,
        )

    tested = say.agreement_figures(agreement)
    where = "the blocks that it changes" if shown.layers is None else shown.averaged
    caption = (
        f"Each weight change is averaged over {where}. Kendall's W of all candidates but ceilings, 1 where "
        f"the orders are the same: {tested}. Null: independent orders, by χ². {setting(shown)}."
    )
    code = code_of(opened, shown, "q.by_change(changes)", every=True)
    title = say.stability_title(agreement, len(names))
    return Panel("subspace-stability", title, table, draw, code, caption, models_of(opened, shown))
