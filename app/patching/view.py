"""The two views of the Patching page: the table of raw against mapped, and one replacement."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import polars as pl
import streamlit as st

from app import screen
from app.frame import again as rerun
from app.frame import controls
from app.frame import parts as components
from app.frame import running as live_view
from app.frame.opened import Key, Opened
from app.frame.panel import Panel
from app.frame.selection import SITES, Selection
from app.live.jobs import JobResult
from app.patching import amplitudes
from app.patching import drill as patch_drill
from app.patching import replacement as patch_view
from app.patching import table as patch_table
from app.patching import words as say
from app.patching.fields import PatchFields
from app.transport import rare as map_rare
from app.transport.fields import MapFields
from app.transport.panels import METHOD_NAMES, rank_grid, rank_name
from engine.patching.mapped_spec import MappedPatch
from engine.transport.named import USES

AMPLITUDE = {"vector": "the vector", "deviation": "deviation"}
COLUMNS = {
    "layer": st.column_config.NumberColumn("block"),
    "alpha": st.column_config.NumberColumn("best α (train)", format="%.4g"),
    "kl_raw": st.column_config.NumberColumn("KL_raw", format="%.3g"),
    "kl_mapped": st.column_config.NumberColumn("KL_mapped", format="%.3g"),
    "gain": st.column_config.NumberColumn("ΔKL", format="%.3g"),
    "drop": st.column_config.NumberColumn("drop %", format="%.1f"),
    "controls": st.column_config.TextColumn("controls beaten"),
    "reason": st.column_config.TextColumn("why no drop"),
}
GRID_HELP = (
    "Numbers with commas between, e.g. 0.3, 0.5, 0.7. 1 and the α that gives mapped train vectors the "
    "target's length are always among them. Empty: 0.2 to 2 in steps of 0.2."
)
FITTED_HELP = (
    "A sample of tokens, sample(k=16,skip_last=4): the map is fitted on 16 words of each train prompt, "
    "but for the last 4, the same ones in both models. Read from the store where the study captures it."
)
VOCABULARY = {"whole": "of all tokens", "shared": "also of shared tokens"}
VOCABULARY_HELP = (
    "of shared tokens: the next-token distributions over the tokens whose string both tokenizers have, "
    "renormalised. A diagnostic beside the whole KL, with how much probability these tokens have."
)
SPANS = {"kl_raw": "KL_raw", "kl_mapped": "KL_mapped", "gain": "ΔKL", "drop": "drop"}


def show(opened: Opened, _selection: Selection) -> None:
    """The view that is chosen."""
    if controls.switch("patch", "View", {"table": "Raw vs mapped", "one": "One replacement"}) == "table":
        table(opened)
    else:
        one(opened)


def one(opened: Opened) -> None:
    """One replacement at one site: controls, run, per-prompt KL, amplitudes, blocks, next tokens."""
    _one_controls(opened)
    chosen = controls.current()
    with components.guard("patching: condition"):
        condition = patch_view.condition_of(chosen)
        wanted = patch_view.conditions(opened, chosen)
        missing = [c for c in wanted if live_view.stored(opened, c) is None]
        text = "Run every block" if chosen.layers == "every" else "Run"
        live_view.run_button(opened, missing, text, done=not missing)
        live_view.watch()
        result = live_view.stored(opened, condition)
        if result is None and not live_view.active():
            components.empty(*patch_view.not_run(condition, opened.store.manifest))
        if result is not None:
            components.show_all(opened, patch_view.run_panels(opened, result, chosen))
            live_view.notes(result)
        profile = patch_view.profile(live_view.runs_of(opened), condition, chosen.alpha)
        code = patch_view.code(opened.path, condition)
        components.show_all(opened, [patch_view.layer_panel(profile, condition, chosen.alpha, code)])
        if result is not None:
            _tokens(patch_view.token_table(result.table, chosen.alpha))
            rerun.show(opened, result.condition)


def _one_controls(opened: Opened) -> None:
    first, second, third = st.columns(3)
    with first:
        controls.direction()
        controls.choose("site", "Site", only=SITES)
    with second:
        _position(opened)
        controls.slide("layer", "Block ℓ")
    with third:
        names = patch_view.KIND_NAMES
        controls.choose("kind", "Replacement", None, names.__getitem__, patch_view.KIND_HELP)
        controls.slide("alpha", "Amplitude α", step=0.05)
    if controls.current().site.startswith("head"):
        _heads(opened)
    with controls.row():
        controls.filter_controls("report")
        with controls.more():
            controls.switch("amplitude", "α scales", AMPLITUDE)
            controls.read_at()
        controls.switch("alphas", "Amplitudes", {"one": "this α", "curve": "0 to 2, or as listed"})
        controls.switch("layers", "Blocks", {"one": "this block", "every": "every block"})
        if controls.current().layers == "every":
            controls.stride()
        if PatchFields.of(controls.current()).alphas == "curve":
            controls.write("grid", "Amplitudes α", "0, 0.2, … 2", "Numbers with commas between.")


def _heads(opened: Opened) -> None:
    """Which heads of a head site are replaced; none chosen means all."""
    chosen = controls.current()
    models = (chosen.a, chosen.b)
    count = min(int(opened.store.model_info(model)["n_heads"]) for model in models)
    with components.guard("patching: heads"):
        shown = [head for head in patch_view.chosen_heads(chosen) or () if head < count]
        every = range(count)
        controls.several("heads", "patch-heads", "Heads", every, shown, placeholder="all heads together")


def _position(opened: Opened) -> None:
    controls.choose("position", "Patched token", only=opened.facts.tokens)


def table(opened: Opened) -> None:
    """Raw against mapped: the whole table, the selected site in detail, and everything run so far."""
    _table_controls(opened)
    chosen = controls.current()
    with components.guard("patching: table"):
        selected, whole = patch_table.experiment_of(chosen), patch_table.experiments(opened, chosen)
        runs = live_view.runs_of(opened, "mapped")
        known = {_key(condition) for condition, _ in runs}
        missing = [e for e in whole if _key(e.to_json()) not in known]
        left, right = st.columns(2)
        with left:
            live_view.run_button(opened, missing, f"Run the whole table ({len(missing)})", done=not missing)
        result = live_view.stored(opened, selected)
        with right:
            done = result is not None
            live_view.run_button(opened, [selected], "Run this site", done=done, key="run-site")
        live_view.watch()
        here = patch_table.alike(runs, chosen)
        rows = patch_table.table(here)
        grid = patch_table.grid_panel(here, chosen, opened.path)
        if grid is not None:
            components.show(opened, grid)
            _sites(rows)
        if result is None and not live_view.active():
            components.empty(*patch_table.not_run(chosen, len(whole)))
        if result is not None:
            _detail(opened, result, selected, rows)
        if PatchFields.of(chosen).spread == "all" and here:
            _every_amplitude(opened, here)
        _everything(opened, runs)


def _key(condition: Mapping[str, Any]) -> str:
    return json.dumps(condition, sort_keys=True)


def _table_controls(opened: Opened) -> None:
    first, second, third = st.columns(3)
    with first:
        controls.direction()
        controls.slide("layer", "Block ℓ")
    with second:
        controls.choose("site", "Site", only=SITES)
        controls.slide("alpha", "Amplitude α, beside the best on train", step=0.05)
    with third:
        _position(opened)
        controls.choose("method", "Transport map", names=METHOD_NAMES.__getitem__)
    with controls.row():
        controls.filter_controls(None)
        _map_controls(opened)
        _amplitude_controls()
        with controls.more():
            controls.switch("amplitude", "α scales", AMPLITUDE)
            controls.switch("raw_alpha", "Moment-matched", {"fixed": "at α = 1", "scaled": "at the same α"})
            controls.read_at()


def _amplitude_controls() -> None:
    """Which amplitudes and blocks are run, on which tokens, and of which sites all amplitudes are shown."""
    with screen.popover("Amplitudes, blocks, tokens", icon=":material/tune:", key="patch-amplitude-settings"):
        controls.write("grid", "Amplitudes α that are run", "0.2, 0.4, … 2", GRID_HELP)
        controls.stride()
        controls.switch("vocabulary", "KL", VOCABULARY, help=VOCABULARY_HELP)
        controls.write("fitted_at", "Map fitted at", "the patched token", FITTED_HELP)
        controls.switch("spread", "Table of all amplitudes", {"one": "this site", "all": "every site"})


def _map_controls(opened: Opened) -> None:
    """The parameters that the chosen map has, behind one button."""
    chosen = controls.current()
    used = USES[MapFields.of(chosen).method]
    with screen.popover("Parameters of the map", icon=":material/tune:", key="map-parameters"):
        if not used:
            screen.caption("This map has no parameters.")
        if "rank" in used:
            controls.steps("rank", "Rank k", ranks_with(opened.facts.width, chosen), names=rank_name)
        if "shrinkage" in used:
            controls.slide("shrink", "Shrinkage γ", step=0.01)
        if "penalty" in used:
            controls.switch("lam_mode", "Penalty λ", {"auto": "leave-one-out", "set": "set"})
            if MapFields.of(controls.current()).lam_mode == "set":
                controls.slide("lam", "log₁₀ λ", step=0.25)
        if "directions" in used:
            controls.slide("q", "Directions of the logit subspace")
        if "clusters" in used:
            controls.slide("clusters", "Clusters (1: one map)")
        map_rare.show()


def ranks_with(width: int, chosen: Selection) -> tuple[int, ...]:
    """Ranks on offer up to the width, with the chosen one, then 0 for the full rank."""
    return (*sorted({*rank_grid(width + 1), MapFields.of(chosen).rank} - {0}), 0)


def _sites(rows: pl.DataFrame) -> None:
    """The table of all sites that were run; a selected row becomes the selected site."""
    shown = rows.sort("gain", descending=True, nulls_last=True)
    chosen = controls.current()

    def picked() -> None:
        found = st.session_state["patch-table"]["selection"]["rows"]
        if found:
            row = shown.row(found[0], named=True)
            side = "a" if str(row["direction"]).startswith(f"{chosen.a} ←") else "b"
            controls.change(layer=row["layer"], site=row["hook"], target=side)

    with st.container(border=True, key="panel-patch-table"):
        screen.markdown("#### Every site that was run under these settings")
        _frame(shown.drop("settings", "run_id"), "patch-table", picked)
        screen.caption(
            "Validation prompts at the α that the train prompts chose. Click a column to sort by it; select "
            "a row to see that site in detail."
        )


def _frame(rows: pl.DataFrame, key: str, picked: Callable[[], None]) -> None:
    over = "ΔKL" if (rows["over"] == "raw").any() else "KL_mean − KL_mapped"
    spans = [
        pl.struct(
            pl.col(name).alias("estimate"),
            pl.col(f"{name}_low").alias("low"),
            pl.col(f"{name}_high").alias("high"),
        )
        .map_elements(lambda v: say.span(v if v["estimate"] is not None else None), return_dtype=pl.String)
        .alias(f"{over if name == 'gain' else title} interval")
        for name, title in SPANS.items()
    ]
    first = [
        c for c in ("rank", "layer", "hook", "direction", "alpha", *SPANS, "controls") if c in rows.columns
    ]
    rest = [c for c in ("reason", "settings") if c in rows.columns]
    config: Any = {**COLUMNS, "gain": st.column_config.NumberColumn(over, format="%.3g")}
    screen.dataframe(
        rows.select(*first, *spans, *rest),
        hide_index=True,
        width="stretch",
        on_select=picked,
        selection_mode="single-row",
        key=key,
        column_config=config,
    )


def _detail(opened: Opened, result: JobResult, selected: MappedPatch, rows: pl.DataFrame) -> None:
    components.show_all(opened, patch_table.run_panels(opened, result, controls.current()))
    live_view.notes(result)
    condition = result.condition
    mine = rows.filter(
        (pl.col("hook") == condition["component"]) & (pl.col("direction") == say.direction(condition))
    )
    code = patch_table.code(opened.path, controls.current())
    code += f"\ntable = table.filter(pl.col('hook') == {condition['component']!r})"
    components.show_all(opened, [patch_drill.profile_panel(mine, condition, "import polars as pl\n" + code)])
    with st.container(border=True, key="panel-patch-drill"):
        screen.markdown(
            f"#### Prompt by prompt at α = {result.summary['best']['alpha']:g}, the most moved first"
        )
        kinds = [kind for kind in say.NAMES if kind in result.table["kind"].to_list()]
        names = [say.SAID.get(kind, kind) for kind in kinds]
        for kind, tab in zip(kinds, screen.tabs(names), strict=True):
            with tab:
                _prompts(_drill(result, kind))
    rerun.show(opened, condition)


@lru_cache(maxsize=64)
def _drill(result: JobResult, kind: str) -> pl.DataFrame:
    return patch_drill.drill_table(result.table, kind)


def _every_amplitude(opened: Opened, runs: list[patch_table.Run]) -> None:
    """One table of all sites that were run at all amplitudes, the automatic ones among them."""
    ids = (str(summary["run_id"]) for _, summary in runs)
    table = pl.concat(live_view.of_run(opened, run_id, amplitudes.rows) for run_id in ids)
    with st.container(border=True, key="panel-patch-every"):
        screen.markdown("#### Every site at every amplitude, fixed and automatic")
        screen.dataframe(table, hide_index=True, width="stretch")
        screen.caption(
            "which: “auto” gives mapped train vectors the target's median length, “best” has the smallest KL "
            "on train. Each interval is of one row by itself; all rows share their prompts."
        )


def _prompts(rows: pl.DataFrame) -> None:
    config = {
        "kl": st.column_config.NumberColumn("KL, nats", format="%.3g"),
        "text": st.column_config.TextColumn("prompt", width="medium"),
        "before": st.column_config.TextColumn("next token before", width="medium"),
        "after": st.column_config.TextColumn("next token after", width="medium"),
        "target_token": st.column_config.TextColumn("patched token"),
        "source_token": st.column_config.TextColumn("source's token"),
    }
    screen.dataframe(rows, hide_index=True, width="stretch", height=320, column_config=config)


@st.cache_resource(max_entries=4, show_spinner=False)
def _ranking(key: Key, ids: tuple[str, ...], _runs: Sequence[patch_table.Run]) -> Panel | None:
    return patch_table.ranking_panel(_runs, key[0])


def _everything(opened: Opened, runs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """The ranking over every stored run; a selected row brings its settings back."""
    panel = _ranking(opened.key, tuple(str(summary["run_id"]) for _, summary in runs), runs)
    if panel is None:
        return
    components.show(opened, panel)
    conditions = {str(summary["run_id"]): condition for condition, summary in runs}

    def picked() -> None:
        found = st.session_state["patch-runs"]["selection"]["rows"]
        if found:
            condition = conditions[panel.table["run_id"][found[0]]]
            controls.change(**patch_table.selection_of(condition, controls.current()))

    with st.container(border=True, key="panel-patch-runs"):
        screen.markdown("#### Everything that was run so far")
        _frame(panel.table, "patch-runs", picked)
        screen.caption("Select a row to open that run with its settings; there it can be run again.")


def _tokens(table: pl.DataFrame) -> None:
    """Per-prompt table: prompt, KL and the most likely next tokens before and after."""
    with st.container(border=True, key="panel-tokens"):
        screen.markdown("#### Prompt by prompt, the most moved first")
        screen.dataframe(
            table,
            hide_index=True,
            width="stretch",
            height=360,
            column_config={
                "kl": st.column_config.NumberColumn("KL, nats", format="%.3g"),
                "text": st.column_config.TextColumn("prompt", width="medium"),
                "before": st.column_config.TextColumn("next token before", width="medium"),
                "after": st.column_config.TextColumn("next token after", width="medium"),
            },
        )
