"""The same models in other tools, quantised as their documentation says: `benchmarks/quantise.py --peers`.

`compare.py` starts a process for each tool, `worker.py` is what runs in it. A module for each tool has
`REQUIRES`, the packages that it imports, and `variants(problem)`.
"""
