"""The activation store: the Zarr schema, and the only code that knows it. No torch."""
