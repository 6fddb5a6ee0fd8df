"""Kernels for what the compilers have no fast form of."""
