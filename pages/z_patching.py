"""Z-patching: what a subspace carries from one language into another's answers."""

from app.frame import page
from app.z_patching.analysis import Z_PATCHING

page.show(Z_PATCHING)
