"""Tables and panels about the store itself: contents, models, prompts, disk use, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from app.charts.grids import stacked_bars
from app.charts.palette import Palette
from app.charts.template import Chart
from app.frame import words
from app.frame.opened import Opened, device, identity
from app.frame.panel import Panel

MEANINGS = (
    (
        "Sites",
        "`resid_pre` and `resid_post` are the residual stream entering and leaving a block; `attn_out` and "
        "`mlp_out` are what the two sub-blocks *add* to it, after a post-norm or multiplier where the family "
        "has one; `head_z` is every head's value mix before the output projection.",
    ),
    (
        "Positions",
        "*decision*: last token of the rendered prompt. *last content*: last token of the user's own text, "
        "found through character offsets. *mean*: average over the user's own text tokens.",
    ),
    (
        "CKA",
        "Linear centred kernel alignment of two sets of activations of the same prompts: 1 is the same "
        "geometry up to rotation and scale. The biased estimator (Kornblith et al. 2019) rises towards 1 as "
        "width exceeds the number of prompts, even for unrelated data; the debiased one (Song et al. 2012) "
        "does not, and can be slightly negative.",
    ),
    (
        "R(ℓ)",
        "Each block's update of the residual stream is split into a part inside the subspace Z and a part "
        "outside; R is the ratio of their mean lengths. Z is spanned by the leading key-side directions of "
        "the attention heads of a reference block (query-key kernels at relative position 0). Chance is what "
        "an update that knows nothing of Z would give; it is not 1.",
    ),
    (
        "Patch and KL",
        "The target model runs with one activation replaced at one site of one token; KL(patched ‖ "
        "unpatched) of its next-token distribution is in nats. Patching its own activation must give 0.",
    ),
    (
        "Intervals",
        "All intervals resample prompts, or pairs of prompts where they come in pairs; never tokens. The "
        "bootstrap of the debiased CKA drops pairs of equal prompts; it is too wide near CKA 0, and holds "
        "its 95 % from about 0.2 on.",
    ),
)


def facts(opened: Opened) -> list[tuple[str, str, str]]:
    """Headline numbers: (name, value, note)."""
    store, found = opened.store, opened.facts
    positions = store.positions(found.models[0])
    layers = sorted(set(found.n_layers.values()))
    kinds = f"{len(found.languages)} languages, {len(found.categories)} categories"
    captured = store.components(found.models[0])
    return [
        ("Models", str(len(found.models)), ", ".join(found.models)),
        ("Prompts", f"{store.prompts.height:,}", kinds),
        ("Blocks", " / ".join(map(str, layers)), "transformer blocks of each model"),
        (
            "Captured",
            f"{len(captured)} × {len(positions)}",
            "sites × positions: " + ", ".join([*captured, *positions]),
        ),
        ("On disk", words.size(sum(disk(opened).values())), "all files of the store"),
        ("Device", device(opened), "where the forward passes ran"),
    ]


def disk(opened: Opened) -> dict[str, int]:
    """Bytes by kind of content."""
    return {k: v for k, v in opened.store.disk_use().items() if k not in ("total", "raw")}


def models(opened: Opened) -> pl.DataFrame:
    """One row per model: architecture, size, numbers' type and identity."""
    rows = []
    for name in opened.facts.models:
        info = opened.store.model_info(name)
        heads = f"{info.get('n_heads', '?')} / {info.get('n_kv_heads', info.get('n_heads', '?'))}"
        rows.append(
            {
                "model": name,
                "class": str(info.get("class", info.get("model_type", ""))),
                "blocks": info.get("n_layers"),
                "width": info.get("d"),
                "heads / kv": heads,
                "head width": info.get("head_dim"),
                "dtype": str(info.get("dtype", "")),
                "attention": str(info.get("attention", "")),
                "identity": identity(info),
            }
        )
    return pl.DataFrame(rows)


def prompts_panel(opened: Opened) -> Panel:
    """Counts of prompts per category and language."""
    prompts = opened.store.prompts
    kind = "category" if opened.facts.categories else "split" if opened.facts.splits else None
    by = (
        "language" if opened.facts.languages else "split" if opened.facts.splits and kind != "split" else None
    )
    table = (
        prompts.select(
            name=(pl.col(kind) if kind else pl.lit("prompts")).cast(pl.String).fill_null("none"),
            series=(pl.col(by) if by else pl.lit("prompts")).cast(pl.String).fill_null("none"),
        )
        .group_by("name", "series")
        .agg(value=pl.len())
        .sort("name", "series")
    )
    series = table["series"].unique().sort().to_list()
    splits = ""
    if opened.facts.splits:
        counts = prompts["split"].value_counts().sort("split").iter_rows()
        splits = ": " + ", ".join(f"{n} {s}" for s, n in counts)
    n_kinds = table["name"].n_unique()
    word = {"category": ("category", "categories"), "split": ("split", "splits")}.get(
        kind or "", ("group", "groups")
    )
    title = f"{prompts.height} prompts in {n_kinds} {word[n_kinds != 1]}{splits}"

    def draw(palette: Palette) -> Chart:
        hues = [palette.series[2:][i % len(palette.series[2:])] for i in range(len(series))]
        return stacked_bars(table, x_title="prompts", y_title=None, colors=hues, series=series)

    code = "\n".join(
        (
            "import polars as pl",
            "from store.reader import Store",
            "",
            f"prompts = Store({opened.path!r}).prompts",
            f"table = prompts.group_by({[c for c in (kind, by) if c]!r}).agg(value=pl.len())",
        )
    )
    spoken = "both languages of one problem" if len(opened.facts.languages) > 1 else "prompts of one pair"
    caption = f"Splits are made by pair: {spoken} are always on the same side."
    return Panel(
        "prompts", title, table, draw, code, caption if "pair_id" in prompts.columns else "", (), False
    )


def disk_panel(opened: Opened) -> Panel:
    """Bytes by part of the store."""
    groups = sorted(disk(opened).items(), key=lambda item: -item[1])
    total = sum(count for _, count in groups) or 1
    table = pl.DataFrame(
        {"name": [n for n, _ in groups], "series": "bytes", "value": [c / 1e6 for _, c in groups]},
        schema_overrides={"value": pl.Float64},
    )
    axis = ",.0f" if total > 1e7 else ".2f"
    title = f"{words.size(total)} on disk"
    if groups:
        title += f", {100 * groups[0][1] / total:.0f} % of it {groups[0][0]}"

    def draw(palette: Palette) -> Chart:
        return stacked_bars(
            table, x_title="MB", y_title=None, colors=[palette.null], series=["bytes"], format=axis
        )

    code = f"from store.reader import Store\n\ntable = Store({opened.path!r}).disk_use()"
    caption = (
        "activations: what the models computed; grams: what similarity needs; "
        "weights: what analyses need without a model; subspaces: what subspace scores need."
    )
    return Panel("disk", title, table, draw, code, caption, (), False)


def provenance(opened: Opened) -> pl.DataFrame:
    """The manifest without the study and the checks, one row per fact."""
    skip = {"study", "self_checks", "models", "ledger", "plan"}
    rows = [("store", opened.path), ("fingerprint", opened.store.fingerprint)]
    for key, value in opened.store.manifest.items():
        if key not in skip and key != "fingerprint":
            rows += _flat(key, value)
    for name in opened.facts.models:
        for key, value in opened.store.model_info(name).items():
            rows += _flat(f"{name}: {key}", value)
    return pl.DataFrame(rows, schema={"what": pl.String, "value": pl.String}, orient="row")


def _flat(key: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for k, v in value.items() for row in _flat(f"{key}, {k}".replace("_", " "), v)]
    if isinstance(value, list):
        value = (" " if key == "command" else ", ").join(map(str, value))
    return [(key.replace("_", " "), str(value))]


def study_text(opened: Opened) -> str:
    """The study as the manifest keeps it."""
    return json.dumps(opened.store.manifest.get("study", {}), indent=2, ensure_ascii=False)


def reading_code(opened: Opened) -> str:
    """How to open the store with Zarr and polars alone."""
    names = [n for n in opened.store.array_names() if n.endswith("/sites")] or opened.store.array_names()
    return "\n".join(
        (
            "import polars as pl",
            "import zarr",
            "",
            f"group = zarr.open_group({opened.path!r}, mode='r')",
            f"array = group[{names[0]!r}]",
            "print(array.metadata.dimension_names, array.shape, dict(array.attrs))",
            f"prompts = pl.read_parquet('{opened.path}/tables/prompts.parquet')",
        )
    )


def arrays(opened: Opened) -> pl.DataFrame:
    """Every array with its axes and shape."""
    rows = []
    for name in opened.store.array_names():
        attrs = opened.store.attrs(name)
        shape = ", ".join(f"{d} {n}" for d, n in zip(attrs["dims"], attrs["shape"], strict=True))
        rows.append({"array": name, "axes": shape, "dtype": str(attrs.get("dtype", ""))})
    return pl.DataFrame(rows, schema={"array": pl.String, "axes": pl.String, "dtype": pl.String})
