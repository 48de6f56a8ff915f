"""Makes the helper modules of this folder importable from every test file, keeps tests offline and quick."""

from __future__ import annotations

import gc
import os
import sys
from functools import cache
from pathlib import Path

import pytest
from streamlit import config
from streamlit.components.v2 import manifest_scanner

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

config.set_option("server.address", "127.0.0.1")  # pages are drawn without a server that would say so
# Each AppTest would read the metadata of every installed package, which takes longer than most pages do.
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)
# A killed process leaves what it wrote to the kernel; only a machine that goes down asks for more, and no
# test takes one down. Commands and servers that tests start as users do flush their files.
os.fsync = lambda handle: None

HERE = Path(__file__).resolve().parent
# The project's root goes first: tests/engine and tests/app would else hide the packages of these names.
for folder in (str(HERE), str(HERE.parent)):
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)

import quick_schema  # noqa: E402

quick_schema.install()  # what fits the schema of Vega-Lite is told so at once; the rest is checked as ever

LAST = ("store", "reference", "hostile", "engine")
"""Folders of files that take seconds each: they go last, so that all processes end at about one time."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Brings files that take minutes to the front.

    Leaves out tests of the real model, which take minutes too, unless `-m` asks for them by name.
    """
    items.sort(key=_turn)
    if "real" in config.getoption("markexpr").split():
        return
    slow = [item for item in items if item.get_closest_marker("real") is not None]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_collection_finish() -> None:
    """Takes the tests and all modules out of the collections that pages, models and Python start."""
    gc.collect()
    gc.freeze()


def _turn(item: pytest.Item) -> int:
    """Files of this folder itself first, then those of its folders, the quick ones last."""
    if not item.path.is_relative_to(HERE):
        return 1
    folder, *inside = item.path.relative_to(HERE).parts
    if not inside:
        return 0
    return 2 + LAST.index(folder) if folder in LAST else 1
