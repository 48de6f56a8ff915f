"""Bridge: is one language's part of Z a linear map of the other's?"""

from app.bridge.analysis import BRIDGE
from app.frame import page

page.show(BRIDGE)
