"""Passes that change what programs over several devices send one another."""
