"""Runs: every live result of this study, opened again without a model, or several side by side."""

from app.frame import page
from app.runs.view import RUNS

page.show(RUNS)
