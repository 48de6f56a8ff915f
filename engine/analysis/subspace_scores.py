"""`engine.subspaces.numbers` by the name under which files of own candidates imported it."""

from engine.subspaces.numbers import *  # noqa: F403
