"""Heads: which attention heads carry what one model does to the other's next token."""

from app.frame import page
from app.heads.analysis import HEADS

page.show(HEADS)
