"""Similarity: in which blocks two models represent the prompts differently."""

from app.frame import page
from app.similarity.analysis import SIMILARITY

page.show(SIMILARITY)
