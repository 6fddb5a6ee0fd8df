"""Programs of blocks in float32 where they were in bfloat16 or float16.

Where products of such numbers are made of float32 ones anyhow, as on a CPU, blocks that are converted
once are faster than products that convert on their own, and round less.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from lepton_jax.passes.fuse._attention.program import NARROW, Program, Step

_DTYPES: Final = ("new_dtype", "preferred_element_type", "dtype")


def wide(dtype: Any) -> Any:
    """float32 for bfloat16 and float16, and every other dtype as it is."""
    return jnp.dtype(jnp.float32) if str(dtype) in NARROW else dtype


def widened(program: Program) -> Program:
    """The same operations in float32; blocks of the leaves are converted first."""
    return replace(program, steps=tuple(map(widened_step, program.steps)), wide=True)


def widened_step(step: Step) -> Step:
    """The same operation on operands that were converted, with a result in float32."""
    params = {k: wide(p) if k in _DTYPES and p is not None else p for k, p in step.params.items()}
    operands = tuple((_constant(o[0]),) if isinstance(o, tuple) else o for o in step.operands)
    return replace(step, params=params, operands=operands, dtype=wide(step.dtype), key=(step.key, "wide"))


def _constant(x: Any) -> Any:
    dtype = getattr(x, "dtype", None)
    return x if dtype is None or wide(dtype) == dtype else np.asarray(x).astype(wide(dtype))
