"""Residual updates R(l): how much of what each block adds lies in the subspace Z."""

from app.frame import page
from app.residual_updates.analysis import RESIDUAL_UPDATES

page.show(RESIDUAL_UPDATES)
