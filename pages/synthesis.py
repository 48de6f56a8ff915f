"""Synthesis: what a two-language study has found, against a checklist."""

from app.frame import page
from app.synthesis.analysis import SYNTHESIS

page.show(SYNTHESIS)
