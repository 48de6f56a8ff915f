"""Weight steering as a page needs it: an experiment from the selection, a stored result as panels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app import screen
from app.behaviour.view import lead_of, wording_of
from app.escape import plain
from app.frame import controls, running
from app.frame.durations import written
from app.frame.opened import Opened
from app.frame.panel import Panel
from app.frame.selection import Selection
from app.live.jobs import JobResult
from app.steering.fields import SteeringFields
from app.steering.view import code_of, group_of, groups
from app.weight_steering import panels as weight_steering_panels
from app.weight_steering.fields import WeightSteeringFields
from app.weights import tables as weights_queries
from engine.behaviour.spec import Wording
from engine.errors import PatchError
from engine.weight_steering.chosen import chosen, fewest
from engine.weight_steering.sizing import BUDGET, Work, seconds, sized
from engine.weight_steering.spec import ALPHAS, Contrast, WeightSteering

MOST_DELTAS = 6
PAGE = "weight_steering"
NOTHING = (
    "There is no weight difference to steer by",
    "Steering adds α times a stored difference from the study's first model. This store has no second model "
    "with the same tensors, or was written by an earlier version: run precompute.py on the same study into a "
    "new folder.",
)


def _signed(alpha: float) -> str:
    return f"{alpha:g}".replace("-", "−")


ALPHA_HELP = f"A full run measures α = 0 and {', '.join(map(_signed, ALPHAS))}; the nearest is shown."
EXTENT_HELP = (
    f"By default a run is made to fit about {written(BUDGET)} of one CPU core, as far as 3 α, 12 answers and "
    "24 prompts of each split allow: fewer α, then fewer and shorter answers, then fewer prompts."
)


def contrasts_of(selection: Selection) -> tuple[Contrast, ...]:
    """The differences a selection names, "tuned,full,tuned/tuned_seed2"; B − A where it names none.

    Raises:
        PatchError: a name with nothing around its slash.
    """
    found = []
    codes = [code for code in dict.fromkeys(WeightSteeringFields.of(selection).deltas.split(",")) if code][
        :MOST_DELTAS
    ]
    for code in codes:
        plus, slash, minus = code.partition("/")
        if not plus or (slash and not minus):
            raise PatchError(
                "The link names a weight difference that can't be read.",
                expected="models, or two of them with a slash: tuned,full,tuned/tuned_seed2",
                given=repr(code),
                next_step="choose the differences again.",
            )
        found.append(Contrast(plus=plus, minus=minus or None))
    return tuple(found) or (Contrast(plus=selection.b),)


def code_of_contrast(contrast: Mapping[str, Any]) -> str:
    """A difference as text."""
    return contrast["plus"] + (f"/{contrast['minus']}" if contrast.get("minus") else "")


def experiment_of(selection: Selection, lead: str = "", wording: Wording | None = None) -> WeightSteering:
    """The run that a selection describes; PatchError for a part that can't be read."""
    own = SteeringFields.of(selection)
    return WeightSteering(
        model=selection.a,
        deltas=contrasts_of(selection),
        where=group_of(own.steered),
        neutral=group_of(own.neutral),
        lead=lead,
        wording=wording or Wording(),
    )


def selection_of(condition: Mapping[str, Any], selection: Selection) -> dict[str, Any]:
    """Changes to a selection under which `experiment_of` gives this stored condition again."""
    codes = [code_of_contrast(one) for one in condition["deltas"]]
    first = condition["deltas"][0]["plus"]
    return {
        "a": condition["model"],
        "b": first,
        "deltas": "" if codes == [first] else ",".join(codes),
        "steered": code_of(condition["where"]),
        "neutral": code_of(condition["neutral"]),
        "extent": "all" if _whole(condition) else "short",
    }


def _whole(condition: Mapping[str, Any]) -> bool:
    """Whether a stored run has every α, answer and prompt."""
    usual = {
        name: WeightSteering.model_fields[name].default for name in ("answers", "max_new_tokens", "prompts")
    }
    same = all(condition.get(name) == value for name, value in usual.items())
    return same and tuple(condition["alphas"]) == ALPHAS


def work_of(opened: Opened, spec: WeightSteering) -> Work | None:
    """What a run is of on this store; None where that isn't known, or no prompt fits."""
    info = (opened.store.manifest.get("models") or {}).get(spec.model) or {}
    if not {"parameters", "vocab", "d"} <= info.keys():
        return None
    try:
        parts = {part: len(rows) for part, rows in chosen(spec, opened.store.prompts).items()}
    except PatchError:
        return None
    lengths = opened.store.tokens(spec.model)["token_ids"].list.len()
    unembedding, same = int(info["vocab"]) * int(info["d"]), spec.where == spec.neutral
    tokens = float(lengths.mean() or 0)  # type: ignore[arg-type]
    least = fewest(spec, opened.store.prompts)
    return Work(int(info["parameters"]), unembedding, tokens, parts, same, least)


def fitted(opened: Opened, selection: Selection, spec: WeightSteering) -> WeightSteering:
    """The run as it is where all of it is wanted, was stored or fits the usual time; else a smaller one."""
    if WeightSteeringFields.of(selection).extent == "all" or running.find(opened, spec) is not None:
        return spec
    work = work_of(opened, spec)
    return spec if work is None else sized(spec, work)


def offered(opened: Opened, selection: Selection) -> dict[str, str]:
    """Differences on offer: code -> name. From the steered model, the study's contrasts, pairs of others."""
    models = (opened.facts.models[0], *weights_queries.compared(opened))
    good = [m for m in models if m == models[0] or not weights_queries.problems(opened, m)]
    others = [name for name in good if name != selection.a]
    found = {name: f"{name} − {selection.a}" for name in others}
    for name, (plus, minus) in weights_queries.contrasts(opened).items():
        if not weights_queries.problems(opened, name):
            found[f"{plus}/{minus}"] = weights_queries.label(opened, name)
    pairs = [(one, two) for one in others for two in others if one != two and models[0] not in (one, two)]
    return found | {f"{one}/{two}": f"{one} − {two}" for one, two in pairs if f"{one}/{two}" not in found}


def asked(opened: Opened, selection: Selection) -> WeightSteering:
    """The run that a selection describes on this store; PatchError for an unknown model."""
    wanted = experiment_of(selection, lead(opened), wording_of(opened))
    unknown = [name for name in wanted.models() if name not in opened.facts.models]
    if unknown:
        raise PatchError(
            "The link names a weight difference of a model that the study doesn't have.",
            expected=", ".join(opened.facts.models),
            given=", ".join(unknown),
            next_step="choose the differences again.",
        )
    return fitted(opened, selection, wanted)


def can_steer(opened: Opened) -> bool:
    """Whether the store holds a difference that is defined for every tensor."""
    return any(not weights_queries.problems(opened, model) for model in weights_queries.compared(opened))


def lead(opened: Opened) -> str:
    """What stands between a prompt and an answer's opening."""
    return lead_of(opened)


def steering_controls(opened: Opened) -> None:
    """Whose weights, by which differences, on which prompts, and the amplitude looked at."""
    chosen = controls.current()
    left, right = st.columns(2)
    with left:
        controls.choose("a", "Model steered", only=_steerable(opened))
        _pick("steered", "Behaviour read on", groups(opened))
    with right:
        _deltas(opened, chosen)
        _pick("neutral", "KL and perplexity on", groups(opened))
    _extent(opened, chosen)
    controls.slide("strength", "Amplitude α shown", step=0.5, help=ALPHA_HELP)


def _extent(opened: Opened, chosen: Selection) -> None:
    """What fits the usual time or everything, where that isn't the same."""
    try:
        spec = experiment_of(chosen)
    except PatchError:
        return
    work = work_of(opened, spec)
    if work is None or sized(spec, work) == spec:
        return
    names = {"short": told(sized(spec, work), work), "all": told(spec, work)}
    controls.choose("extent", "How much is run", names=names.__getitem__, help=EXTENT_HELP)


def told(spec: WeightSteering, work: Work) -> str:
    """A run's extent and about how long it takes on one CPU core."""
    most = "all prompts" if spec.prompts is None else f"at most {spec.prompts} prompts of each split"
    return (
        f"About {written(seconds(spec, work))} on one CPU core: {len(spec.alphas)} α, {most}, {spec.answers} "
        f"answers of up to {spec.max_new_tokens} tokens"
    )


def _steerable(opened: Opened) -> list[str]:
    models = weights_queries.compared(opened)
    good = [
        model
        for model in models
        if not weights_queries.problems(opened, model) and not weights_queries.part_rows(opened, model)
    ]
    return [opened.facts.models[0], *good]


def _deltas(opened: Opened, chosen: Selection) -> None:
    options = offered(opened, chosen)
    codes = [code_of_contrast(one.model_dump()) for one in contrasts_of(chosen)]
    st.session_state["weights-deltas"] = [code for code in codes if code in options]
    screen.multiselect(
        "Differences ΔW",
        list(options),
        key="weights-deltas",
        format_func=options.__getitem__,
        on_change=lambda: controls.change(deltas=",".join(st.session_state["weights-deltas"])),
        max_selections=MOST_DELTAS,
        help="All of them run over α together, and are compared where they cost the same KL.",
    )


def _pick(name: str, text: str, options: Mapping[str, str]) -> None:
    key, value = f"weights-{name}", controls.setting(name)
    st.session_state[key] = value if value in options else ""
    screen.selectbox(
        text,
        list(options),
        key=key,
        format_func=options.__getitem__,
        on_change=lambda: controls.change(**{name: st.session_state[key]}),
    )


def not_run(spec: WeightSteering) -> tuple[str, str]:
    """Empty state: what a click will do."""
    names = ", ".join(f"**{plain(name)}**" for name in map(spec.name_of, spec.deltas))
    return (
        "These differences have not been run over α",
        f"**Run** gives {plain(spec.model)} the weights W + αΔW for {names} and a random difference of the "
        f"same size, at {len(spec.alphas)} values of α from {_signed(spec.alphas[0])} to "
        f"{_signed(spec.alphas[-1])}, without "
        f"copying the model{_limits(spec)}. It reads agreement, refusal and answers on the prompts chosen, "
        "KL and perplexity on those that should stay, and compares all differences where they cost the same "
        "KL.",
    )


def _limits(spec: WeightSteering) -> str:
    if spec.prompts is None:
        return ""
    return f", on at most {spec.prompts} prompts of each split"


def run_panels(opened: Opened, result: JobResult, selection: Selection) -> list[Panel]:
    """The panels of a stored run, with the selected amplitude marked."""
    return weight_steering_panels.all_panels(opened, result, WeightSteeringFields.of(selection).strength)


def answers(result: JobResult, selection: Selection) -> None:
    """Generated answers side by side at the selected amplitude."""
    own = WeightSteeringFields.of(selection)
    table = weight_steering_panels.samples(result, own.strength)
    if table.is_empty():
        return
    names = [name for name in table.columns if name not in ("text", "α = 0")]
    with st.container(border=True, key="panel-weight-answers"):
        count = sum(table[names[0]] != table["α = 0"]) if names else 0
        grid = (0.0, *weight_steering_panels.spec_of(result).alphas)
        nearest = _signed(min(grid, key=lambda at: (abs(at - own.strength), at)))
        differ = f"{count} of {table.height} answers differ"
        said = f"At α = {nearest}, {differ} with {names[0]}" if names else ""
        screen.markdown(f"#### {plain(said) or f'{table.height} answers at α = 0'}")
        columns = {name: st.column_config.TextColumn(name, width="medium") for name in table.columns}
        screen.dataframe(table, hide_index=True, width="stretch", height=360, column_config=columns)
