"""How the wheel is laid out: the repository's top-level folders become sub-packages of `patchbay`.

`engine` is `patchbay.engine` in a wheel, and so on: an `app.py` or `store.py` of whoever installs it is in
nobody's way. Imports are rewritten, in code that the dashboard prints as well; everything else is as it was.
An editable install leaves the repository as it is.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("app", "engine", "pages", "store")
DATA = ("demo", "studies")
NAMES = "|".join((*FOLDERS, "precompute"))
IMPORTS = re.compile(rf"\b(from|import) ({NAMES})(?=\.\w| import )")
WHOLE = re.compile(rf"^(\s*)import ({NAMES})$", re.M)
NAMED = re.compile(rf'"({NAMES})((?:\.\w+)+)(?=:\w+"|", "--)')


def rewritten(code: str) -> str:
    """Code whose imports, and names of modules to be imported later, are those of the wheel."""
    code = IMPORTS.sub(r"\1 patchbay.\2", code)
    return NAMED.sub(r'"patchbay.\1\2', WHOLE.sub(r"\1from patchbay import \2", code))


class BuildPy(build_py):
    """Moves the packages below `patchbay` and adds the demo and the studies."""

    def run(self) -> None:
        built = Path(self.build_lib)
        if not self.editable_mode:
            shutil.rmtree(built, ignore_errors=True)
        super().run()
        if self.editable_mode:
            return
        for name in FOLDERS:
            shutil.move(built / name, built / "patchbay" / name)
        shutil.move(built / "precompute.py", built / "patchbay" / "precompute.py")
        for file in (built / "patchbay").rglob("*.py"):
            file.write_text(rewritten(file.read_text(encoding="utf-8")), encoding="utf-8")
        for name in DATA:
            ignored = shutil.ignore_patterns("__pycache__", "*.py")
            shutil.copytree(name, built / "patchbay" / name, ignore=ignored)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [str(path) for path in (Path(self.build_lib) / "patchbay").rglob("*") if path.is_file()]


setup(cmdclass={"build_py": BuildPy})
