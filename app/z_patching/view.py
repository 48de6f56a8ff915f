"""Z-patching as a page needs it: settings in the link, the experiment, what is running, and its outputs."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import polars as pl
import streamlit as st

from app import screen
from app.escape import plain
from app.frame import controls
from app.frame import running as live_view
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection, whole
from app.frame.snippets import read_run
from app.live.jobs import JobResult, JobStatus
from app.z_patching import fits as z_patching_fits
from app.z_patching import panels as z_patching_panels
from app.z_patching import words as say
from app.z_patching.fields import ZFields
from engine.lab.experiment import Where
from engine.texts.languages import language
from engine.z_patching.spec import Basis, ZPatching

PAGE, MOST_KS = "z_patching", 6
MODES = {"replace": "replace", "shift": "shift by the difference of means"}
VECTORS = {"mean": "mean of the prompt", "transport": "optimal transport per token"}
SCOPES = {"prompt": "prompt tokens", "all": "generated tokens too"}
SITES = {"resid_post": "leaving the block (resid_post)", "resid_pre": "entering the block (resid_pre)"}
FOLDS = {"no": "the projections alone", "yes": "with the norms' gains (fold_norm)"}
LENGTHS = (20, 40, 60, 80, 100)
COLOURS = {"en": "#0072b2", "zh": "#d55e00", "mixed": "#cc79a7", "none": "#8a8f98", "other": "#009e73"}
WHY_EMPTY = (
    "Z-patching needs problems in two languages",
    "This study's prompts have no pairs (`pair_id`) in two languages. Add `language`, `pair_id` and `answer` "
    "columns, or list two files row by row with `paired_by_row`, and run precompute.py again.",
)


@dataclass(frozen=True)
class Settings:
    """What the page's own controls say; in the link as one field.

    Attributes:
        layers: blocks from the selected one on. ks: dimensions. show: the cell whose outputs are shown.
        fold: "yes" takes head kernels with the norms' gains. fit: key of the fits that span Z.
    """

    target: str
    source: str
    layers: int
    ks: tuple[int, ...]
    basis: Basis = "kernels"
    site: str = "resid_post"
    mode: str = "replace"
    vectors: str = "mean"
    scope: str = "prompt"
    problems: int = 20
    tokens: int = 60
    draws: int = 4
    fold: str = "no"
    fit: str = ""
    show: str = ""


def offered_ks(opened: Opened, model: str) -> tuple[int, ...]:
    """Dimensions offered: powers of two and half-way between, below the width."""
    width = int(opened.store.model_info(model)["d"])
    steps = [2**i for i in range(1, 12)] + [3 * 2**i for i in range(2, 11)] + [20, 50]
    return tuple(sorted({k for k in steps if k < width}))


def settings_of(opened: Opened, selection: Selection) -> Settings:
    """The settings in a link; what it leaves out or spoils is as at the first visit."""
    languages = opened.facts.languages
    size = opened.facts.head_dim[_model(selection)]
    start = Settings(
        target=languages[0], source=languages[1], layers=2, ks=tuple(sorted({max(2, size // 2), size}))
    )
    given = dict(part.split(":", 1) for part in ZFields.of(selection).z.split(";") if ":" in part)
    allowed = {
        "target": languages,
        "source": languages,
        "basis": get_args(Basis),
        "site": tuple(SITES),
        "mode": tuple(MODES),
        "vectors": tuple(VECTORS),
        "scope": tuple(SCOPES),
        "fold": tuple(FOLDS),
    }
    values: dict[str, Any] = {name: given[name] for name, of in allowed.items() if given.get(name) in of}
    limits = {"layers": (1, 4), "problems": (2, 1000), "tokens": (1, 100), "draws": (2, 20)}
    for name, (low, high) in limits.items():
        number = whole(given.get(name, ""))
        if number is not None and low <= number <= high:
            values[name] = number
    ks = tuple(sorted({k for k in map(whole, given.get("ks", "").split(",")) if k})[:MOST_KS])
    values |= {"ks": ks} if ks else {}
    values |= {name: given.get(name, "") for name in ("show", "fit")}
    found = dataclasses.replace(start, **values)
    if found.target == found.source:
        found = dataclasses.replace(found, source=next(name for name in languages if name != found.target))
    if found.vectors == "transport":
        found = dataclasses.replace(found, mode="replace", scope="prompt")
    if found.basis not in ("blocks", "kernels"):
        found = dataclasses.replace(found, fold="no")
    return found


def link_of(settings: Settings) -> str:
    """The settings as the text of a link's field."""
    values = {**dataclasses.asdict(settings), "ks": ",".join(map(str, settings.ks))}
    return ";".join(f"{name}:{value}" for name, value in values.items() if value != "")


def _model(selection: Selection) -> str:
    return selection.a if selection.model == "a" else selection.b


def experiment_of(opened: Opened, selection: Selection) -> ZPatching:
    """The job that the selection describes.

    Raises:
        PatchError: settings that don't go together.
    """
    chosen = settings_of(opened, selection)
    model = _model(selection)
    last = opened.facts.n_layers[model]
    layers = tuple(range(selection.layer, min(selection.layer + chosen.layers, last)))
    both = (chosen.target, chosen.source)
    fit = None
    if chosen.basis == "ard":
        fit = z_patching_fits.lengthscales(opened, model, chosen.site, both, layers[0], chosen.fit)
    return ZPatching(
        model=model,
        target_language=chosen.target,
        source_language=chosen.source,
        layers=layers,
        ks=chosen.ks,
        basis=chosen.basis,
        fold_norm=chosen.fold == "yes",
        lengthscales=fit,
        site=chosen.site,  # type: ignore[arg-type]
        mode=chosen.mode,  # type: ignore[arg-type]
        vectors=chosen.vectors,  # type: ignore[arg-type]
        scope=chosen.scope,  # type: ignore[arg-type]
        split=selection.report,  # type: ignore[arg-type]
        where=Where(category=None if selection.category == "all" else selection.category),
        problems=chosen.problems,
        max_new_tokens=chosen.tokens,
        draws=chosen.draws,
    )


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    run = ZPatching.from_json(condition)
    settings = Settings(
        target=run.target_language,
        source=run.source_language,
        layers=len(run.layers),
        ks=run.ks,
        basis=run.basis,
        site=run.site,
        mode=run.mode,
        vectors=run.vectors,
        scope=run.scope,
        problems=run.problems,
        tokens=run.max_new_tokens,
        draws=run.draws,
        fold="yes" if run.fold_norm else "no",
        fit="" if run.lengthscales is None else z_patching_fits.key_of(run.lengthscales),
    )
    pair = {} if run.model in (selection.a, selection.b) else {"a": run.model}
    return {
        **pair,
        "model": "b" if run.model == selection.b and not pair else "a",
        "layer": run.layers[0],
        "report": run.split,
        "category": run.where.category or "all",
        "z": link_of(settings),
    }


def shown_cell(opened: Opened, result: JobResult, selection: Selection) -> Mapping[str, Any]:
    """The block and dimension whose outputs are shown: the chosen one, or the first."""
    layer, _, k = settings_of(opened, selection).show.partition("@")
    block, size = whole(layer), whole(k)
    asked = (-1, -1) if block is None or size is None else (block, size)
    return z_patching_panels.cell_of(result, *asked)


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """Verdict, controls, and both outcomes over blocks and dimensions."""
    found = shown_cell(opened, result, selection)

    def code(lines: str) -> str:
        return read_run(opened, result, lines)

    panels = [z_patching_panels.verdict_panel(result, found, code, _transported(opened, result, found))]
    panels.append(z_patching_panels.controls_panel(result, found, code))
    if len(result.summary["verdicts"]) > 1:
        panels += [z_patching_panels.compared_panel(result, name, code) for name in ("answer", "language")]
    return panels


def _transported(opened: Opened, result: JobResult, found: Mapping[str, Any]) -> str:
    """Verdict of the same cell by optimal transport, which replaces; "" where that isn't stored."""
    wanted = {**result.condition, "vectors": "transport", "mode": "replace", "scope": "prompt"}
    run_id = live_view.find(opened, ZPatching.from_json(wanted))
    same = [] if run_id is None else live_view.opened_run(opened, run_id).summary["verdicts"]
    at = (found["layer"], found["k"])
    return next((str(one["word"]) for one in same if (one["layer"], one["k"]) == at), "")


def not_run(experiment: ZPatching) -> tuple[str, str]:
    """Empty state: what a click will do."""
    count = len(experiment.patches()) + 1
    return (
        "Not run under these settings yet",
        f"Run answers up to {experiment.problems} problems under {count} conditions: unpatched; Z, Z⊥ and "
        "everything taken from the same problem in the other language; and the controls: random subspaces, "
        "another problem's source, the prompt's own mean. Rows appear as they finish.",
    )


def growing(jobs: list[JobStatus]) -> pl.DataFrame | None:
    """Rows of a running job, or None."""
    for job in jobs:
        if isinstance(job.condition, ZPatching) and job.partial and job.partial.get("rows"):
            return pl.DataFrame(job.partial["rows"], infer_schema_length=None)
    return None


def so_far(experiment: ZPatching) -> None:
    """Outputs of the running experiment."""
    rows = growing(live_view.active())
    if rows is None:
        return
    with st.container(border=True, key="z-so-far"):
        screen.markdown(f"#### {rows['problem'].n_unique()} problems so far")
        table = z_patching_panels.side_by_side(rows, experiment.layers[0], experiment.ks[0])
        screen.dataframe(styled(table), hide_index=True, width="stretch", height=300)


def styled(table: pl.DataFrame) -> Any:
    """The table with outputs coloured whose answer or language changed, as a pandas Styler."""
    shown = table.select(
        "pair_id",
        "unpatched",
        *z_patching_panels.PARTS,
        *(c for c in table.columns if c.split()[-1] in ("answer", "right", "language", "degenerate")),
    )
    frame = screen.harmless(shown).to_pandas()
    changed = {part: table[f"{part} change"].to_list() for part in z_patching_panels.PARTS}
    spoken = {part: table[f"{part} disrupted"].to_list() for part in z_patching_panels.PARTS}
    answer = {
        "different": "background-color: rgba(213, 94, 0, 0.22)",
        "none": "background-color: rgba(138, 143, 152, 0.3)",
    }

    def colour(column: Any) -> list[str]:
        if column.name not in z_patching_panels.PARTS:
            return [""] * len(column)
        pairs = zip(changed[column.name], spoken[column.name], strict=True)
        return [
            "; ".join(
                filter(None, (answer.get(one, ""), "color: #2f8fd0; font-weight: 600" if other else ""))
            )
            for one, other in pairs
        ]

    return frame.style.apply(colour)


def outputs(opened: Opened, result: JobResult, selection: Selection) -> int | None:
    """Search and filter, one row per problem, and a problem token by token; which one it is, if any."""
    found = shown_cell(opened, result, selection)
    with st.container(border=True, key="panel-z-outputs"):
        screen.markdown(f"#### Every problem at {plain(say.cell(found))}")
        table = z_patching_panels.side_by_side(result.table, found["layer"], found["k"])
        left, right = st.columns(2)
        wanted = left.text_input("Search in the outputs", key="z-search", placeholder="a word or a number")
        with right:
            which = screen.selectbox("Show", list(FILTERS), key="z-filter")
        kept = table.filter(FILTERS[which])
        if wanted:
            texts = [pl.col(c).fill_null("").str.contains(wanted, literal=True) for c in TEXTS]
            kept = kept.filter(pl.any_horizontal(texts))
        screen.caption(
            f"{kept.height} of {table.height} problems. Orange: another answer; grey: no answer or a "
            "degenerate text; blue letters: another language than unpatched. Select a row to read it "
            "token by token."
        )
        picked = screen.dataframe(
            styled(kept),
            hide_index=True,
            width="stretch",
            height=min(420, 60 + 36 * max(kept.height, 1)),
            on_select="rerun",
            selection_mode="single-row",
            key=f"z-rows-{found['layer']}-{found['k']}-{which}",
            column_config={name: st.column_config.TextColumn(name, width="medium") for name in TEXTS},
        )
        rows = picked["selection"]["rows"]
        if not kept.height:
            return None
        problem = int(kept["problem"][rows[0] if rows and rows[0] < kept.height else 0])
        token_by_token(result, problem, found)
        return problem


TEXTS = ("unpatched", *z_patching_panels.PARTS)
FILTERS: dict[str, Any] = {
    "all problems": pl.lit(True),
    "Z changed the answer": pl.col("Z change") != "same",
    "Z changed the language": pl.col("Z disrupted"),
    "Z⊥ changed the answer": pl.col("Z⊥ change") != "same",
    "Z⊥ changed the language": pl.col("Z⊥ disrupted"),
    "everything is as unpatched": pl.all_horizontal(
        *(pl.col(f"{part} change") == "same" for part in z_patching_panels.PARTS),
        *(~pl.col(f"{part} disrupted") for part in z_patching_panels.PARTS),
    ),
    "degenerate": pl.any_horizontal(
        *(pl.col(f"{part} degenerate").is_not_null() for part in z_patching_panels.PARTS)
    ),
}


def token_by_token(result: JobResult, problem: int, found: Mapping[str, Any]) -> None:
    """Language timeline: every generated token of one problem under every condition, coloured by language."""
    pieces = z_patching_panels.timeline(result.table, problem, found["layer"], found["k"])
    pair = result.table.filter(pl.col("problem") == problem)["pair_id"][0]
    screen.markdown(f"**Problem {plain(str(pair))}, token by token**")
    rows = "".join(
        f'<div style="margin:2px 0"><span style="display:inline-block;min-width:11rem;opacity:.75">'
        f"{html.escape(name)}</span>{''.join(map(_token, tokens))}</div>"
        for name, tokens in pieces.items()
    )
    st.html(f'<div style="overflow-x:auto;font-size:.85rem;line-height:1.7">{rows}</div>')
    screen.caption("Underlined by language: English blue, Chinese orange, neither grey. A token is a box.")


def _token(piece: str) -> str:
    hue = COLOURS[language(piece)]
    text = html.escape(piece).replace(" ", "&nbsp;").replace("\n", "↵") or "·"
    style = f"border-bottom:3px solid {hue};margin-right:2px;white-space:pre"
    return f'<span style="{style}">{text}</span>'


def set_z(opened: Opened, **changes: Any) -> None:
    """Change some settings; for callbacks."""
    now = settings_of(opened, controls.current())
    controls.change(z=link_of(dataclasses.replace(now, **changes)))
