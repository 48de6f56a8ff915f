"""Token by token: what two models say behind each token of a prompt."""

from app.frame import page
from app.tokenwise.analysis import TOKENWISE

page.show(TOKENWISE)
