"""Rank k × α: how many dimensions carry what one model's activation does in the other; steering."""

from app.frame import page
from app.rank.analysis import RANK

page.show(RANK)
