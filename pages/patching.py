"""Live patching: replace one activation of one model by another's and see what the next token does."""

from app.frame import page
from app.patching.analysis import PATCHING

page.show(PATCHING)
