"""ARD-MMD: which dimensions carry what two languages share about a problem?"""

from app.ard.analysis import ARD
from app.frame import page

page.show(ARD)
