"""Passes that choose the form of an operation that the target is fast at."""
