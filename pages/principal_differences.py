"""Principal differences: in how many directions, and in which, two models' streams differ."""

from app.frame import page
from app.principal_differences.analysis import PRINCIPAL_DIFFERENCES

page.show(PRINCIPAL_DIFFERENCES)
