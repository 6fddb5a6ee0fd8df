"""Passes that make the program smaller: calls, dead code, repetition, constants, algebra, data movement."""
