"""Loops over time that run a loop over layers: what such a pair is, and the pair the other way round."""
