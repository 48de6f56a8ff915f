"""Pure functions and estimators on named arrays: no models, no files."""
