"""Diff mining: which tokens one model says more often than the other, and where."""

from app.diff_mining.analysis import DIFF_MINING
from app.frame import page

page.show(DIFF_MINING)
