"""Weights where they are used, and what takes their place when they are quantised."""
