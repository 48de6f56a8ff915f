"""Difference lens: which tokens the change from one model to the other speaks about."""

from app.difference_lens.analysis import DIFFERENCE_LENS
from app.frame import page

page.show(DIFFERENCE_LENS)
