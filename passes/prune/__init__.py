"""Passes that leave weights out."""
