"""Loops without a dependence between their iterations."""
