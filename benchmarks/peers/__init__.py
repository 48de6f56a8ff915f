"""The same patch done with other libraries, one condition at a time, as their documentation shows it."""

from __future__ import annotations

from peers.common import Peer, Unavailable, padded
from peers.hooks import PlainHooks, TunedHooks
from peers.libraries import NNsightPeer, PyvenePeer, TransformerLensPeer

PADDED: tuple[type[Peer], ...] = (PlainHooks, TransformerLensPeer, NNsightPeer, PyvenePeer)
TUNED: tuple[type[Peer], ...] = (TunedHooks,)

__all__ = ["PADDED", "TUNED", "NNsightPeer", "Peer", "Unavailable", "padded"]
