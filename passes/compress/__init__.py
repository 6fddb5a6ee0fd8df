"""Passes that make weights smaller: palettes, low rank."""
