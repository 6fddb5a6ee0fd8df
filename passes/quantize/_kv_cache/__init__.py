"""Caches that are written a token at a time and read by products: found, and kept in codes."""
