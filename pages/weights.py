"""Weight diffs: which weights a fine-tune changed, by how much, in how many directions and in which heads."""

from app.frame import page
from app.weights.analysis import WEIGHTS

page.show(WEIGHTS)
