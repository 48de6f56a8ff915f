"""Calibration of worded conclusions: nulls and how often each sentence is said under them."""
