"""The cases of `benchmarks/compress.py`."""
