"""Z geometry: what the heads of a block read, and whether two languages part there."""

from app.frame import page
from app.geometry.analysis import GEOMETRY

page.show(GEOMETRY)
