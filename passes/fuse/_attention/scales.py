"""Scales of scores as scales of queries.

A scale of the scores is a pass over them, as what multiplies and what reduces them reads memory; one of
the queries is done while they are cut.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from lepton_jax.passes.fuse._attention.known import Same
from lepton_jax.passes.fuse._attention.program import Builder, Program, Step
from lepton_jax.passes.fuse._attention.wide import wide


def scaled_queries(program: Program, builder: Builder) -> tuple[Program, Same]:
    """A program whose leaves are scaled, and the steps that are superfluous then.

    Only factors of at most one are moved, which no finite query overflows with, and only where products are
    of float32 or wider: queries that are narrower would be rounded once more.
    """
    count = len(program.leaves)
    reads = Counter(o for step in program.steps for o in step.operands if isinstance(o, int))
    scales: list[float | None] = [None] * count
    same: Same = {}
    for at, step in enumerate(program.steps):
        factor, number = _scaling(step)
        if number < count or reads[number] != 1:
            continue
        leaf = _queries(program, program.steps[number - count])
        if leaf is None or reads[leaf] != 1 or scales[leaf] is not None:
            continue
        dtype = builder.values[leaf].dtype
        if (wide(dtype) if program.wide else dtype).itemsize >= 4:
            scales[leaf] = factor
            same[count + at] = number
    return replace(program, scales=tuple(scales)), same


def _scaling(step: Step) -> tuple[float, int]:
    """The factor by which a step multiplies an operand, and its number; -1 where it does something else."""
    if step.op not in ("mul", "div") or not jnp.issubdtype(step.dtype, jnp.floating):
        return 1.0, -1
    left, right = step.operands
    if isinstance(left, tuple) and step.op == "mul":
        left, right = right, left
    if not isinstance(left, int) or not isinstance(right, tuple):
        return 1.0, -1
    factor = float(np.asarray(right[0]))
    if step.op == "div":
        factor = 1 / factor if factor else math.inf
    return (factor, left) if 0 < abs(factor) <= 1 else (1.0, -1)


def _queries(program: Program, step: Step) -> int | None:
    """The leaf with the queries that a product multiplies."""
    if step.op != "dot_general":
        return None
    for operand in step.operands:
        if isinstance(operand, int) and operand < len(program.leaves):
            query, key = program.leaves[operand]
            if query is not None and key is None:
                return operand
    return None
