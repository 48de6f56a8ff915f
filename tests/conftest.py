"""Makes the helper modules of this folder importable from every test file, and keeps tests offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

HERE = Path(__file__).resolve().parent
# The project's root goes first: tests/engine and tests/app would else hide the packages of these names.
for folder in (str(HERE), str(HERE.parent)):
    if folder in sys.path:
        sys.path.remove(folder)
    sys.path.insert(0, folder)
