"""Patch map: which token's activation, at which block, carries over what another run says."""

from app.frame import page
from app.patch_map.analysis import PATCH_MAP

page.show(PATCH_MAP)
