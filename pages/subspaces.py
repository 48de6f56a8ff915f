"""Subspace scores: which named subspace of the stream a weight change uses, and how far above chance."""

from app.frame import page
from app.subspaces.analysis import SUBSPACES

page.show(SUBSPACES)
