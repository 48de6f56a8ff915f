"""About this study: the study file, provenance, and what the numbers mean."""

from app.frame import page
from app.overview.analysis import ABOUT

page.show(ABOUT)
