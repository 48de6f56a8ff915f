"""Prompts & fairness: what was asked, whether the splits are clean, and which words both models know."""

from app.frame import page
from app.prompts.analysis import PROMPTS

page.show(PROMPTS)
