"""Diff mining: which tokens one model says more, or less, than another behind the same texts."""
