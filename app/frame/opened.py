"""What the app keeps between reruns: the store named on the command line, its facts, the live worker."""

from __future__ import annotations

import argparse
import gc
import logging
import shlex
import sys
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st

from app.escape import given
from app.frame import controls
from app.frame.prompts import values
from app.frame.selection import SITES, Facts
from app.stores.known import named
from engine.errors import PatchbayError, StoreError
from engine.study.roots import allow_roots
from store.layout import MANIFEST
from store.reader import Store
from store.sources import as_place, open_source, to_write

LARGE = 20_000_000
"""Numbers in one component of one model above which a pass over them takes more than a second."""

log = logging.getLogger("patchbay.app")

Key = tuple[str, str, float]
"""Path, fingerprint and time of a store: what results kept for it are found by."""
HOW_TO_OPEN = "streamlit run app/main.py -- --store runs/demo"


@dataclass(frozen=True, eq=False)
class Opened:
    """A store that can be read, and what it offers; one that was written again is another one."""

    path: str
    store: Store
    facts: Facts

    @property
    def key(self) -> Key:
        """Identifies the content for caches: another study or a rewritten manifest changes it."""
        return self.path, self.store.fingerprint, _stamp(self.path)

    @property
    def can_run(self) -> bool:
        """Whether there are models to run: not where activations came from elsewhere."""
        return "imported" not in self.store.manifest["study"]


def stores(argv: list[str] | None = None) -> dict[str, str]:
    """Name -> place of the stores on the streamlit command line, `--store` before `--beside`."""
    first = _argument("--store", "store", argv)
    return named([*([first] if first else ()), *(_argument("--beside", "append", argv) or ())])


def other_stores(opened: Opened) -> dict[str, str]:
    """Name -> place of the other stores: their pairs are shown beside those of the open one."""
    return {name: place for name, place in stores().items() if place != opened.path}


def code_allowed(argv: list[str] | None = None) -> bool:
    """Whether this server was started with `--allow-code`: studies' own candidates may be run."""
    return bool(_argument("--allow-code", "store_true", argv))


def root_arguments(argv: list[str] | None = None) -> list[str]:
    """The values of `--root`: folders that the files of a store's study may lie in."""
    return list(_argument("--root", "append", argv) or ())


def _argument(name: str, action: str, argv: list[str] | None) -> Any:
    return _parsed(name, action, tuple(sys.argv[1:] if argv is None else argv))


@lru_cache(maxsize=16)
def _parsed(name: str, action: str, argv: tuple[str, ...]) -> Any:
    """One argument alone, whatever the others are: none is wrong because of another one."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(name, action=action, dest="value")
    return parser.parse_known_args(argv)[0].value


def open_store() -> Opened:
    """The store of this run: the server's, or the one of several that was chosen.

    Raises:
        StoreError: no store was named, it is missing, unreadable or unfinished.
        StudyError: a root that was named isn't a folder.
    """
    known = stores()
    allow_roots(root_arguments())
    if not known:
        raise StoreError(
            "No activation store was named.",
            expected="a folder after --store",
            given="nothing",
            next_step=f"start the dashboard with: {HOW_TO_OPEN}",
        )
    name = controls.store(list(known))
    return _called(open_at(known[name]), name, len(known) > 1)


@lru_cache(maxsize=64)
def _called(opened: Opened, name: str, several: bool) -> Opened:
    """As links call it; one and the same each time, since results are kept for it."""
    return replace(opened, facts=replace(opened.facts, store=name, several=several))


def open_at(path: str) -> Opened:
    """The store at a path or URL; raises StoreError when it is missing, unreadable or unfinished."""
    path = str(as_place(path))
    if "://" not in path and not to_write(path).is_dir():
        raise StoreError(
            "The activation store does not exist.",
            expected="a folder written by precompute.py",
            given=path,
            next_step="name another folder, or write the demo into this one with: "
            f"python precompute.py studies/demo.toml --store {shlex.quote(path)}",
        )
    return _open(path, _stamp(path))


def _stamp(path: str) -> float:
    if "://" in path:
        stamp = open_source(path).stamp(MANIFEST)
        return 0.0 if stamp is None else float(stamp[1])
    manifest = Path(path) / MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else 0.0


@st.cache_resource(show_spinner=False, max_entries=32)
def _open(path: str, stamp: float) -> Opened:
    store = Store(path)
    if not store.complete:
        raise StoreError(
            "The activation store is not finished.",
            expected="a store that precompute.py has completed",
            given=path,
            next_step="run the same precompute.py command again; it goes on where it stopped.",
        )
    facts = read_facts(store)
    given([*facts.languages, *facts.categories, *facts.splits])
    return Opened(path, store, facts)


@st.cache_resource(show_spinner=False)
def keep_imports(page: str) -> None:
    """Takes what is there after a page's first run, modules above all, out of every later garbage collection.

    Streamlit collects after each run; going through all that was imported takes longer than most pages do.
    """
    gc.collect()
    gc.freeze()


def read_facts(store: Store) -> Facts:
    """What a store offers for selection."""
    models = tuple(store.models)
    info = {name: store.model_info(name) for name in models}
    shared = [set(store.components(name)) for name in models]
    captured = set.intersection(*shared)
    sites = {s for s in SITES if s in captured}
    if "resid" in captured:
        sites |= {"resid_pre", "resid_post"}
    if "head_z" in captured:
        sites.add("head_out")  # for live patches; it is not captured by itself
    single = [p for p in store.positions() if store.position_kind(p) != "many"]
    return Facts(
        models=models,
        n_layers={name: int(info[name]["n_layers"]) for name in models},
        head_dim={name: int(info[name]["head_dim"]) for name in models},
        sites=tuple(s for s in SITES if s in sites),
        positions=tuple(single),
        averages=tuple(p for p in single if store.position_kind(p) == "mean"),
        languages=values(store, "language"),
        categories=values(store, "category"),
        splits=values(store, "split"),
        large=any(int(i["n_layers"]) * store.n_prompts * int(i["d"]) > LARGE for i in info.values()),
        width=min(int(i["d"]) for i in info.values()),
        captured=tuple(sorted(set.intersection(*(set(store.layers(name)) for name in models)))),
    )


def failed_checks(store: Store) -> list[dict[str, object]]:
    """Self-checks of the manifest that did not hold."""
    return [check for check in store.self_checks() if not check["passed"]]


def report(error: BaseException, where: str) -> str:
    """Write a traceback to the log under a short id and return the id."""
    ident = uuid.uuid4().hex[:8]
    log.error("[%s] %s\n%s", ident, where, "".join(traceback.format_exception(error)))
    return ident


def is_expected(error: BaseException) -> bool:
    """Whether the message was written for the reader."""
    return isinstance(error, PatchbayError)


def identity(info: Mapping[str, Any]) -> str:
    """What pins a model's weights: its Hub revision, or hashes of its weight files."""
    if info.get("revision"):
        return str(info["revision"])[:10]
    files = [*dict(info.get("files") or {}).items(), *dict(info.get("adapter_files") or {}).items()]
    weights = (".safetensors", ".pt", ".bin", ".gguf")
    return " + ".join(str(digest)[:8] for name, digest in files if str(name).endswith(weights))


def device(opened: Opened) -> str:
    """Where the forward passes ran, as the models or the manifest recorded it."""
    found = [opened.store.model_info(name).get("device") for name in opened.facts.models]
    return ", ".join(dict.fromkeys(str(d) for d in found if d)) or str(
        opened.store.manifest.get("device", "unknown")
    )
