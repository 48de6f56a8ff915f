"""Patch map: which token's activation, at which block, carries over what another run says."""
