"""Transport-map panels: one map's scores, its λ or rank path and spectrum, and the map at every place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from app.charts.lines import numeric_lines, value_dots
from app.charts.matrix import matrix
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame.call import Call
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.prompts import paired
from app.frame.selection import Selection, changed
from app.frame.words import sentence
from app.similarity import noise as cka_noise
from app.transport import places, scored, words
from app.transport import tables as tq
from app.transport.fields import MapFields
from engine.transport import TransportScores
from engine.transport.named import USES, MapSpec

METHOD_NAMES = {
    "ScaledProcrustes": "Scaled Procrustes (whiten, rotate, colour)",
    "RidgeTransport": "Ridge",
    "PCAProcrustes": "Procrustes of principal components",
    "LogitSubspaceRidge": "Ridge in the logit subspace",
    "MomentMatching": "Moment matching (mean and sd)",
    "MeanShift": "Mean shift",
    "Identity": "Identity (no map)",
}
METHOD_HELP = (
    "Scaled Procrustes, ridge and Procrustes of principal components fit any widths; the others work "
    "dimension by dimension or in the directions that the unembedding reads. All are fitted on train prompts."
)
SITES = tq.SITES
FLOOR = -0.5
"""Paths are drawn down to this R²: far below it nothing is told apart any more."""


def ranks(opened: Opened) -> tuple[int, ...]:
    """Ranks that the slider offers: a growing grid, then 0 for the full rank."""
    return rank_grid(min(opened.facts.width, len(tq.splits(opened.store)["train"]) - 1))


def rank_grid(most: int) -> tuple[int, ...]:
    """Ranks below `most`, ever further apart, then 0 for the full rank."""
    return (*scored.ranks(most - 1), 0)


def directions(opened: Opened, selection: Selection) -> tuple[int, ...]:
    """Sizes of the logit subspace that the slider offers."""
    most = tq.most_directions(opened.store, tq.Place.of(selection))
    return tuple(sorted({*scored.ranks(most), most}))


def rank_name(k: int) -> str:
    """Label of a rank on the slider."""
    return "full" if k == 0 else str(k)


def check(opened: Opened, selection: Selection) -> None:
    """Raises AnalysisError, which says why, when the selected map can't be fitted at the selected place."""
    tq.splits(opened.store)
    tq.check(opened.store, tq.Place.of(selection), tq.spec_of(selection))


def effective(opened: Opened, selection: Selection) -> Selection:
    """The selection with a rank and a number of directions that the sliders show."""
    own = MapFields.of(selection)
    changes: dict[str, int] = {}
    if "rank" in uses(selection) and own.rank:
        changes["rank"] = min(ranks(opened), key=lambda k: abs(k - own.rank))
    if "directions" in uses(selection):
        offered = directions(opened, selection)
        changes["q"] = min(offered, key=lambda q: abs(q - own.q))
    return changed(selection, **changes)


def uses(selection: Selection) -> tuple[str, ...]:
    """Parameters that the selected map has: rank, shrinkage, penalty, directions, clusters."""
    return USES[MapFields.of(selection).method]


def _context(opened: Opened, selection: Selection) -> tuple[tq.Place, MapSpec, tuple[str, str]]:
    place = tq.Place.of(selection)
    return place, tq.spec_of(selection), (place.source, place.target)


def _choice(opened: Opened, spec: MapSpec) -> str:
    unit = "leave-one-pair-out" if paired(opened.store) else "leave-one-out"
    return unit if spec.penalty is None else f"set by hand ({unit} is the alternative)"


def _units(opened: Opened) -> str:
    return "pairs" if paired(opened.store) else "prompts"


def scores_panel(opened: Opened, selection: Selection) -> Panel:
    """Every score of the selected map at the selected place, with the range of chance."""
    place, spec, names = _context(opened, selection)
    found, both = tq.scores(opened.store, place, spec), tq.pair(opened.store, place)
    call = Call(scored.scores, opened.store, **scored.asked(place, spec))
    low = min(-0.25, *(max(v, -1.0) for v in call.table["value"].drop_nulls().to_list()))

    def draw(palette: Palette) -> Chart:
        title = "R², CKA or cosine (1 = the target itself)"
        return value_dots(call.table, x_title=title, palette=palette, limits=(low, 1.02))

    constant = next(
        (n for n, side in zip(names[::-1], (both.train.y, both.train.x), strict=True) if not side.span.rank),
        "",
    )
    caption = _score_caption(opened, place, spec, found)
    title = words.map_title(found, *names, place.words, constant)
    return Panel.of(call, "map-scores", title, draw, caption, names, clickable=False)


def _score_caption(opened: Opened, place: tq.Place, spec: MapSpec, found: TransportScores) -> str:
    both = tq.pair(opened.store, place)
    repeated, compared = both.repeated, both.validation.compared.size
    sampled = f" CKA: a random sample of {compared:,} of these." if compared < found.n_validation else ""
    parts = [
        f"{sentence(spec.describe())}. Fitted on {found.n_train} train prompts, judged on "
        f"{found.n_validation} validation prompts. Line: bootstrap over {_units(opened)}, 95 %. "
        f"Grey: {_null(opened, found)}for the mapped CKA, the central 95 % of {tq.PAIRINGS} wrong pairings."
        f"{sampled}",
        "α that restores the target's length, from train: "
        f"{scored.number(found.alpha_vector)} for the vector, {scored.number(found.alpha_deviation)} for its "
        "deviation from the target's mean.",
        _penalty_note(opened, place, spec),
        _cluster_note(opened, place, spec),
        words.constant_note(*(int((side.moments[1] == 0).sum()) for side in (both.train.x, both.train.y))),
        f"{repeated} train prompts repeat another one's activation exactly." if repeated else "",
    ]
    return " ".join(filter(None, parts))


def _null(opened: Opened, found: TransportScores) -> str:
    if not found.n_shuffles:
        why = "this map doesn't look at which prompt belongs to which, or no two of these can be exchanged"
        return f"none for R², as {why}; "
    return (
        f"for R², {found.n_shuffles} refits with the {_units(opened)} of one model exchanged at random "
        "(languages kept); "
    )


def _penalty_note(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    if "penalty" not in USES[spec.method]:
        return ""
    if spec.clusters > 1:
        return f"λ of every cluster: {_choice(opened, spec)}."
    made: Any = tq.fitted(opened.store, place, spec)
    ridge = made.ridge_ if spec.method == "LogitSubspaceRidge" else made
    each = f"{ridge.alpha_ / len(tq.splits(opened.store)['train']):.3g}"
    return (
        f"λ = {ridge.alpha_:.4g} beside the errors' sum, {each} beside their mean over prompts, "
        f"{_choice(opened, spec)}."
    )


def _cluster_note(opened: Opened, place: tq.Place, spec: MapSpec) -> str:
    if spec.clusters == 1:
        return ""
    made: Any = tq.fitted(opened.store, place, spec)
    rows = tq.pair(opened.store, place).validation.x.rows
    sizes = ", ".join(map(str, made.sizes_))
    return (
        f"Clusters of {sizes} train prompts; those below {made.min_size} fall back to the one map for all: "
        f"{made.fallback_rate_:.0%} of train, {made.fallback_rate(rows):.0%} of validation prompts."
    )


def path_panel(opened: Opened, selection: Selection) -> Panel | None:
    """R² over λ or over the rank, with the value in use; None for maps without either."""
    place, spec, names = _context(opened, selection)
    used = USES[spec.method]
    if not {"penalty", "rank"} & set(used):
        return None
    call = Call(scored.path, opened.store, **scored.asked(place, spec))
    table = call.table
    null = _null_of(table)
    marks, title = (_penalty_path if "penalty" in used else _rank_path)(opened, place, spec, table)
    log = "penalty" in used

    def draw(palette: Palette) -> Chart:
        return numeric_lines(
            table,
            x_title="λ" if log else "rank k",
            y_title="R²",
            colors={"train": palette.series[2], "validation": palette.pair},
            palette=palette,
            log_x=True,
            x_format="~e" if log else "d",
            marks=marks,
            null=null,
            floor=FLOOR,
        )

    caption = _path_caption(opened, table, null, log)
    return Panel.of(call, "map-path", title, draw, caption, names, clickable=False)


def _null_of(table: pl.DataFrame) -> pl.DataFrame | None:
    """The range of refits on wrong pairs, where it is known."""
    if "null_low" not in table.columns:
        return None
    return table.filter(series="validation").select("x", low="null_low", high="null_high")


def _path_caption(opened: Opened, table: pl.DataFrame, null: pl.DataFrame | None, penalty: bool) -> str:
    parts = ["The validation line is the test: a value picked from it is no finding."]
    if penalty:
        parts.insert(0, "λ is chosen on the train prompts, each pair left out in turn.")
        if not paired(opened.store):
            parts[0] = "λ is chosen on the train prompts, each left out in turn."
    if null is not None:
        parts.insert(0, "One decomposition serves the whole path.")
        parts.append(
            f"Grey: validation R² of {tq.SHUFFLES} refits with the {_units(opened)} of one model exchanged, "
            "smallest to largest."
        )
    if (table["value"].cast(pl.Float64).drop_nulls() < FLOOR).any():
        parts.append("Drawn from R² −0.5 upwards; the data have the rest.")
    return " ".join(parts)


Told = tuple[dict[str, float], str]
"""Marks on a path, and its finding."""


def _penalty_path(opened: Opened, place: tq.Place, spec: MapSpec, table: pl.DataFrame) -> Told:
    road = tq.paths(opened.store, place, spec)
    how = "leave-one-pair-out" if paired(opened.store) else "leave-one-out"
    if road is None:
        title = "R² over one λ for all clusters" + ("" if spec.penalty else "; each cluster chose its own")
        return {} if spec.penalty is None else {"set": spec.penalty}, title
    used = road.chosen if spec.penalty is None else spec.penalty
    marks = {f"{how}: {road.chosen:.4g}": road.chosen}
    if spec.penalty is not None:
        marks[f"set: {used:.4g}"] = used
    value = float(road.validation.r2([used])[0])
    return marks, words.penalty_title(table, road.chosen, how, value, used)


def _rank_path(opened: Opened, place: tq.Place, spec: MapSpec, table: pl.DataFrame) -> Told:
    store = opened.store
    full = len(scored.singular_values(store, place, spec))
    rank = min(spec.rank or full, full)
    widths = [tq.width(store, model, place.site) for model in (place.source, place.target)]
    few = len(tq.splits(store)["train"]) <= max(widths) + 1
    tied = spec.method == "ScaledProcrustes" and spec.shrinkage == 0 and few
    return {f"k = {rank}": float(rank)}, words.rank_title(table, rank, full, tied)


def spectrum_panel(opened: Opened, selection: Selection) -> Panel | None:
    """Singular values that the selected map is made of; None for maps without any."""
    place, spec, names = _context(opened, selection)
    if not {"penalty", "rank"} & set(USES[spec.method]):
        return None
    call = Call(scored.spectrum, opened.store, **scored.asked(place, spec))
    values, ridge = call.table["value"].to_list(), "penalty" in USES[spec.method]
    what = {
        "ScaledProcrustes": "Singular values of the whitened cross-product",
        "PCAProcrustes": "Singular values between principal-component scores",
    }.get(spec.method, "Singular values of the standardised source")

    def draw(palette: Palette) -> Chart:
        marks = {}
        if ridge and spec.clusters == 1 and values:
            alpha = scored.single(opened.store, place, spec).alpha_
            marks = {"σ² = λ": float(max(1, sum(v * v >= alpha for v in values)))}
        return numeric_lines(
            call.table,
            x_title="index",
            y_title="singular value",
            colors={"singular value": palette.pair},
            palette=palette,
            log_x=True,
            log_y=True,
            x_format="d",
            marks=marks,
            height=240,
        )

    caption = "From the train prompts" + (" (the map for all clusters)." if spec.clusters > 1 else ".")
    if ridge:
        caption += " Directions to the right of σ² = λ are shrunk by more than half."
    title = words.spectrum_title(values, what)
    return Panel.of(call, "map-spectrum", title, draw, caption, names, clickable=False)


def table_panel(opened: Opened, selection: Selection) -> Panel:
    """Validation R² of the map at every site and block, which takes long where it is not known yet; a click
    selects the block."""
    place, spec, names = _context(opened, selection)
    call = Call(places.every_place, opened.store, **places.asked(place, spec))
    table = call.table
    shown = table.select("site", "layer", pl.col("r2_validation").clip(0.0, None).alias("value"))

    def draw(palette: Palette) -> Chart:
        return matrix(
            shown,
            x="site",
            y="layer",
            value="value",
            x_title="Site",
            y_title="Block ℓ",
            value_title="R², validation",
            palette=palette,
            selected={"site": place.site, "layer": place.layer},
            labels=table.height <= 80,
            format=".2f",
        )

    caption = (
        f"{sentence(spec.describe())}, fitted anew at each place on train prompts. R² below 0 is drawn as 0; "
        "an empty cell has no score and the table says why. The table has every score, interval and null; "
        f"intervals are bootstraps over {_units(opened)}, nulls {tq.SHUFFLES} refits with them exchanged."
    )
    noisy = cka_noise.with_shares(opened.store, place.target, place.position, table)
    title = words.table_title(noisy, *names)
    return Panel.of(call, "map-places", title, draw, caption, names)


PANELS: tuple[Callable[[Opened, Selection], Panel | None], ...] = (scores_panel, path_panel, spectrum_panel)
"""Panels of the selected place, in order."""
