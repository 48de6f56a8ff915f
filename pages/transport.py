"""Transport maps: what one model's activation looks like in the other's space, and how well that is known."""

from app.frame import page
from app.transport.analysis import TRANSPORT

page.show(TRANSPORT)
