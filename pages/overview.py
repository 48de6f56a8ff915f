"""Overview: what was found about the pair, what to do next, and what the store holds."""

from dataclasses import replace
from functools import partial

from app.frame import page
from app.overview import view
from app.overview.analysis import OVERVIEW
from app.report.own import not_stored

missing = lambda opened, chosen: [(one.title, asked) for one, asked in not_stored(opened, chosen)]  # noqa: E731
page.show(replace(OVERVIEW, body=partial(view.show, missing)))
