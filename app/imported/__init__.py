"""Activations that were computed elsewhere, as a store."""
