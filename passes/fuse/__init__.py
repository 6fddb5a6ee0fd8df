"""Passes that put several operations into one that does their work better."""
