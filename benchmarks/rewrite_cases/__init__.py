"""The cases of `benchmarks/rewrites.py`, a module for each family of rewrites."""
