"""Behaviour: what the models do with the prompts, and what a patch does to it."""

from app.behaviour.analysis import BEHAVIOUR
from app.frame import page

page.show(BEHAVIOUR)
