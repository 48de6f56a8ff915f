"""The dashboard: `streamlit run app/main.py -- --store runs/demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from app import components, controls, resources  # noqa: E402

LOGO, ICON = (ROOT / "app" / f"{name}.svg" for name in ("logo", "icon"))
PAGES = {
    "Study": [
        ("overview", "Overview", "dashboard"),
        ("about", "About this study", "article"),
        ("prompts", "Prompts & fairness", "checklist"),
        ("report", "Report", "summarize"),
    ],
    "Compare": [
        ("similarity", "Similarity (CKA)", "compare_arrows"),
        ("transport", "Transport maps", "route"),
        ("residual_updates", "Residual updates R(ℓ)", "stacked_line_chart"),
    ],
    "Languages": [
        ("geometry", "Z geometry", "deployed_code"),
        ("z_patching", "Z-patching", "translate"),
        ("ard", "ARD-MMD", "tune"),
        ("bridge", "Bridge", "merge"),
        ("synthesis", "Synthesis", "fact_check"),
    ],
    "Weights": [
        ("weights", "Weight diffs", "difference"),
        ("weight_steering", "Weight steering α", "exercise"),
        ("subspaces", "Subspace scores", "join_inner"),
    ],
    "Live": [
        ("patching", "Patching", "cable"),
        ("rank", "Rank k × α", "grid_on"),
        ("heads", "Heads", "hub"),
        ("behaviour", "Behaviour", "forum"),
        ("runs", "Runs", "history"),
    ],
}


def main() -> None:
    """Open the store, bring selection and URL together, run the chosen page."""
    st.set_page_config(page_title="Patchbay", page_icon=str(ICON), layout="wide")
    st.logo(LOGO, size="large")
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
        opened = resources.open_store()
        controls.sync(opened.facts)
        with st.sidebar:
            st.caption(f"Study **{components.study_name(opened)}**")
        page.run()


if __name__ == "__main__":
    main()
