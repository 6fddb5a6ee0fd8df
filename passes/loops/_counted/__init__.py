"""Loops that count: their number of iterations, and what they index with the counter."""
