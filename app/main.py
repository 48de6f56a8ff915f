"""The dashboard: `streamlit run app/main.py -- --store runs/demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / "pyproject.toml").is_file() and str(ROOT) not in sys.path:  # a checkout
    sys.path.insert(0, str(ROOT))

from app import access, screen  # noqa: E402
from app.analyses import ANALYSES  # noqa: E402
from app.escape import plain  # noqa: E402
from app.frame import call, controls  # noqa: E402
from app.frame import opened as resources  # noqa: E402
from app.frame import parts as components  # noqa: E402
from app.report.page import REPORT  # noqa: E402
from app.runs.view import RUNS  # noqa: E402
from app.tour import view as tour  # noqa: E402
from app.tray import view as tray  # noqa: E402

LOGO, ICON = (ROOT / "app" / f"{name}.svg" for name in ("logo", "icon"))
STYLE = ROOT / "app" / "style.css"
SECTIONS = ("Study", "Compare", "Languages", "Weights", "Live")
PAGES = {
    section: [(one.name, one.title, one.icon) for one in (*ANALYSES, REPORT, RUNS) if one.section == section]
    for section in SECTIONS
}


def main() -> None:
    """Open the store, bring selection and URL together, run the chosen page."""
    st.set_page_config(page_title="Patchbay", page_icon=str(ICON), layout="wide")
    st.logo(LOGO, size="large")
    st.html(STYLE)
    call.busy = screen.spinner
    page = st.navigation(
        {
            section: [
                st.Page(
                    ROOT / "pages" / f"{name}.py",
                    title=title,
                    icon=f":material/{icon}:",
                    url_path="" if name == "overview" else name,
                    default=name == "overview",
                )
                for name, title, icon in entries
                if (ROOT / "pages" / f"{name}.py").is_file()
            ]
            for section, entries in PAGES.items()
        },
        expanded=True,
    )
    with components.guard(page.title):
        if not access.admit():
            return
        names = list(resources.stores())
        if len(names) > 1:
            with st.sidebar:
                controls.choose_store(names)
        opened = resources.open_store()
        controls.sync(opened.facts)
        with st.sidebar:
            screen.caption(f"Study **{plain(components.study_name(opened))}**")
            tray.show(opened)
            below = st.container()
        components.forget_shown()
        tour.show(opened, page.url_path)
        try:
            page.run()
            with below:
                components.take_page(page.title)
        finally:
            resources.keep_imports(page.url_path)


if __name__ == "__main__":
    main()
