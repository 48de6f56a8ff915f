"""Toy."""

from app.frame import page
from app.toy.analysis import TOY

page.show(TOY)
