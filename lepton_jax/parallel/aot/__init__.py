"""Compiling ahead of time, for devices that are not there: what a program needs and sends on them."""
