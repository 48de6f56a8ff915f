"""Difference lens: which tokens does the change from one model to another speak about?"""
