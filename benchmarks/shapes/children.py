"""What the steps run that are no command of precompute.py, each in a process of its own.

    python -m shapes.children (precompute | profile | experiments | pages | titles) STUDY STORE

The last line printed is JSON. precompute also measures the bare forward passes first, in the same process.
"""

from __future__ import annotations

import cProfile
import dataclasses
import gc
import json
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def precompute(study_file: str, store: str, profiled: bool = False) -> dict[str, Any]:
    """CPU seconds of loading and of the bare forward passes of every model, then of precompute; what subspace
    scores need (streams under personas and steering, their checks, the scores) is told apart.

    Args:
        profiled: also by function, which adds to the time of small models.
    """
    from app.build import build as building
    from app.build.prepare import Prepared
    from engine.models.loading import load
    from engine.passes.batching import batches, units
    from engine.passes.capture import forward_hidden
    from engine.study.study import Study

    study = Study.load(study_file)
    prepared = Prepared.of(study)
    found: dict[str, Any] = {"loading": 0.0, "bare": 0.0}
    for name, spec in study.models.items():
        token_ids, start = prepared.token_ids(name), time.process_time()
        lm = load(spec, name)
        loaded = time.process_time()
        for unit in units(len(token_ids), study.capture.unit_prompts):
            own = token_ids[unit.start : unit.stop]
            for batch in batches([len(ids) for ids in own], study.capture.batch_tokens):
                forward_hidden(lm, [own[i] for i in batch])
        found["loading"] += loaded - start
        found["bare"] += time.process_time() - loaded
        found["parameters"] = max(found.get("parameters", 0), sum(p.numel() for p in lm.model.parameters()))
        del lm
        gc.collect()
    found |= {"models": len(study.models), "prompts": len(prepared.table)}
    found["tokens"] = sum(map(len, prepared.token_ids(next(iter(study.models)))))
    found["subspaces"] = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            begun = time.process_time()
            try:
                return call(*given)
            finally:
                found["subspaces"] += time.process_time() - begun

        return run

    for stage in ("write_subspaces", "_scored"):
        setattr(building, stage, timed(getattr(building, stage)))
    clock, start = cProfile.Profile(time.process_time), time.process_time()
    try:
        clock.runcall(building.build, study, Path(store)) if profiled else building.build(study, Path(store))
    finally:
        found["build"] = time.process_time() - start - found["subspaces"]
        found["stages"] = stages(clock, 0.05 * found["build"]) if profiled else []
        print(json.dumps(found))
    return found


def profile(study_file: str, store: str) -> dict[str, Any]:
    """`precompute`, by function."""
    return precompute(study_file, store, profiled=True)


def stages(clock: cProfile.Profile, least: float) -> list[tuple[float, str]]:
    """CPU seconds of every function of the project that took at least that long with what it called."""
    found: dict[str, float] = {}
    for (file, _, name), (*_, total, _) in pstats.Stats(clock).stats.items():  # type: ignore[attr-defined]
        place = Path(file)
        if place.is_relative_to(ROOT) and place.relative_to(ROOT).parts[0] in ("app", "engine", "store"):
            key = f"{place.relative_to(ROOT)}: {name}"
            found[key] = max(found.get(key, 0.0), total)
    kept = [(seconds, key) for key, seconds in found.items() if seconds >= least and "<" not in key]
    return sorted(kept, reverse=True)


def pair_of(models: tuple[str, ...]) -> tuple[str, str]:
    """Target and source: two models in which nothing differs where the study has them."""
    return ("copy" if "copy" in models else models[1]), models[0]


def experiments(_study: str, store: str) -> list[dict[str, Any]]:
    """One experiment of each kind that the store can answer and has no result of."""
    from app.frame import opened as resources
    from app.frame.selection import changed
    from app.frame.stored import missing_of
    from app.patching import replacement as patch_view
    from app.report.build import pair_selection
    from app.report.own import wanted
    from engine.behaviour.spec import Behaviour
    from engine.lab.experiment import Experiment
    from engine.lab.repeat import Repeat
    from engine.z_patching.spec import ZPatching
    from engine.z_patching.tokens_spec import ZTokens

    opened = resources.open_at(store)
    models, block = opened.facts.models, opened.facts.max_layer // 2
    at = [
        dataclasses.replace(pair_selection(opened, ",".join(pair)), layer=layer, site="resid_post")
        for pair, layer in ((pair_of(models), block), (models[1::-1], opened.facts.max_layer))
    ]
    alike = len({opened.store.model_info(model)["d"] for model in pair_of(models)}) == 1
    # between models of other widths one activation cannot take another's place without a map
    condition = patch_view.condition_of(changed(at[0], kind="raw" if alike else "mean"))
    found: dict[str, Experiment] = {"patch": condition, "repeat": Repeat(of=condition.to_json())}
    equal, unequal = ([e for one in wanted(opened, s) for e in one.experiments] for s in at)
    # what is steered by a difference needs one, behind the last changed block
    found |= {e.job: e for e in unequal if e.job in ("steering", "weight_steering")}
    equal.sort(key=lambda e: not _at(e, block))
    for experiment in equal:
        found.setdefault(experiment.job, experiment)
    found |= {f"behaviour of {e.model}": e for e in equal if isinstance(e, Behaviour)}
    found.pop("behaviour", None)
    z_patching = found.get("z_patching")
    if isinstance(z_patching, ZPatching):
        found["z_tokens"] = ZTokens(of=z_patching, problem=0, layer=z_patching.layers[0], k=z_patching.ks[0])
    for job in () if alike else ("steering", "head_map", "heads"):
        found.pop(job)
    return [e.to_json() for e in missing_of(opened, list(found.values()))]


def _at(experiment: Any, layer: int) -> bool:
    return getattr(experiment, "layer", layer) == layer and (
        getattr(experiment, "component", "resid_post") in ("resid_post", "head_out")
    )


def pages(_study: str, store: str) -> list[dict[str, Any]]:
    """Every page as a browser would open it for the pair: seconds, titles, what went wrong."""
    from streamlit.testing.v1 import AppTest

    from app import main
    from app.frame import opened as resources

    target, source = pair_of(resources.open_at(store).facts.models)
    sys.argv = ["main.py", "--store", store]
    found = []
    for name, *_ in (page for section in main.PAGES.values() for page in section):
        app = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=1800)
        app.query_params["a"], app.query_params["b"] = source, target
        start = time.perf_counter()
        app.run()
        if name != "overview":
            start = time.perf_counter()
            app.switch_page(f"../pages/{name}.py")
            app.query_params["a"], app.query_params["b"] = source, target
            app.run()
        said = [text.value.removeprefix("#### ") for text in app.markdown if text.value.startswith("#### ")]
        wrong = [text for text in said if text.startswith(":material/report:")]
        wrong += [error.value for error in app.exception]
        seconds = time.perf_counter() - start
        found.append({"name": name, "seconds": seconds, "titles": said, "wrong": wrong})
    return found


def titles(_study: str, store: str) -> list[dict[str, str]]:
    """The title of every panel of the report of the pair, live runs included."""
    from app.frame import opened as resources
    from app.report.build import build, pair_selection

    opened = resources.open_at(store)
    report = build(opened, pair_selection(opened, ",".join(pair_of(opened.facts.models))))
    return [{"name": key, "title": panel.title} for key, panel in report.panels()]


STEPS: dict[str, Callable[[str, str], Any]] = {
    step.__name__: step for step in (precompute, profile, experiments, pages, titles)
}

if __name__ == "__main__":
    step, study_file, store_folder = sys.argv[1:]
    print(json.dumps(STEPS[step](study_file, store_folder), ensure_ascii=False))
