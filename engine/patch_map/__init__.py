"""Patch map: what one token's activation at one block carries over from another run."""
