"""What resharding costs for arrays of any size, and which pairs of layouts cost the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lepton_jax.parallel.solver.problem import Floats

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Rate:
    """What a resharding costs.

    Attributes:
        fixed: for any array.
        sums: of that, for completing sums.
        per_byte: for each byte.
        is_scattered: whether it depends on the shape what a sum costs besides.
    """

    fixed: float = 0.0
    sums: float = 0.0
    per_byte: float = 0.0
    is_scattered: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """The same of pairs of layouts: tables, and the pairs of which it depends on the shape."""

    fixed: Floats
    sums: Floats
    per_byte: Floats
    scattered: list[tuple[int, int]]


def canonical(pairs: Codes) -> Codes:
    """A number for each row of dimensions that is the same when dimensions are called otherwise."""
    columns = pairs.shape[1]
    named = pairs.copy()
    fresh = np.zeros(len(pairs), np.int64)
    for k in range(columns):
        is_dim = pairs[:, k] >= 0
        new = is_dim.copy()
        for j in range(k):
            same = is_dim & (pairs[:, j] == pairs[:, k])
            named[same, k] = named[same, j]
            new &= ~same
        named[new, k] = fresh[new]
        fresh += new
    number = np.zeros(len(pairs), np.int64)
    for k in range(columns):
        number = number * (columns + 2) + named[:, k] + 2
    return number
