"""Report: the whole study of a pair as one HTML file and as a Markdown journal."""

from app.frame import page
from app.report.page import REPORT

page.show(REPORT)
