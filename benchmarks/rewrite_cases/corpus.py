"""The ordinary programs of the tests: nothing to gain is expected, and nothing may be lost.

They are small, so most of their time is that of calling them. Left out: programs with effects, and the
one that is given an NNX module, which `jax.jit` takes as a tree and Lepton as `nnx.jit` does.
"""

from __future__ import annotations

from typing import Final

from benchmarks.rewrite_cases._case import Case
from tests.corpus import programs

_LEFT_OUT: Final = ("nnx_module_argument",)

_TOLERANCES: Final = {"half_precision": 4e-3}
"""Of programs that compute in dtypes of few digits."""

CASES: Final = [
    Case(
        program.name,
        program.fun,
        program.fun,
        program.make_args,
        tolerance=_TOLERANCES.get(program.name, Case.tolerance),
    )
    for program in programs()
    if program.name not in _LEFT_OUT and not program.fun.__module__.endswith("effects")
]
