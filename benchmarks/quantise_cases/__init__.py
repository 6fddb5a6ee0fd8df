"""The cases of `benchmarks/quantise.py`: a module each, with `measure(quick) -> list[dict]`."""
