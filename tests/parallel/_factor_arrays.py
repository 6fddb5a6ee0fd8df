"""Small arrays for `test_factors`, and what a case of it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

Case = tuple[str, Callable[..., Any], tuple[Any, ...], str, list[set[int]]]
"""A primitive, a function with one node of it, arguments, the rule in letters, the linear sets."""


def real(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.2, 0.9, shape).astype(np.float32)


def whole(*shape: int, high: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.int32)


X, Y, V, N = real(4, 6), real(4, 6, seed=1), real(4), np.float32(1.5)
INTS, MORE, MASK = whole(4, 6), whole(4, 6, seed=1) + 1, real(4, 6) > 0.5
IMAGE, DEPTH = real(4, 4, 6, 6), real(8, 4, 3, 3, seed=1)
TABLE, ROWS = real(8, 6), whole(4, 3, high=8)
KEYS = jax.random.split(jax.random.key(0), 4)
ONE_ARRAY, TWO_ARRAYS = "(ab) -> (ab)", "(ab, ab) -> (ab)"
