"""How far one result is from another, in units of what rounding explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

TOLERANCE: Final = 64.0
"""Errors up to so many times the rounding error of the plain program count as rounding."""

_ROUNDINGS: Final = 32
"""A result may always be off by so many units in the last place of its largest element."""


_COARSEST: Final = 0.25
"""Larger errors, as a part of the largest element, are no rounding, unless the plain program has them too."""


@dataclass(frozen=True)
class Difference:
    """How one tree of arrays differs from another.

    Attributes:
        ok: whether rounding explains it.
        worst: the largest error, in units of the rounding error.
        largest: the largest absolute difference of two numbers.
        reason: what is wrong, with the path of the array; empty if nothing is.
    """

    ok: bool
    worst: float = 0.0
    largest: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return self.reason
        return f"equal up to rounding (error {self.worst:.2g} units, largest difference {self.largest:.2g})"


def compare_trees(
    expected: Any, result: Any, reference: Any = None, *, exact: bool = False, overflow: bool = False
) -> Difference:
    """Compare two trees of arrays.

    A unit of error is the largest deviation of `expected` from `reference` (the same in
    float64) in the same array, at least 32 roundings of its largest element, and at most
    the square root of the machine epsilon times that element. In bfloat16 and float16 these units are
    coarse: there an error beyond a quarter of that element is too large as well, unless the plain program
    itself is off by a quarter of the error.

    Args:
        expected: what the plain program gave.
        result: what the optimised program gave.
        reference: the same in higher precision, or None.
        exact: require NaN and infinities to be where they were. Otherwise what was not finite may be
            anything, and what was finite must be finite.
        overflow: let finite elements become infinite or NaN, and compare the others.
    """
    left, tree = jax.tree_util.tree_flatten_with_path(expected)
    right, other = jax.tree_util.tree_flatten_with_path(result)
    if str(tree) != str(other):
        return Difference(False, np.inf, np.inf, f"the results are {other}, not {tree}")
    exacts = [None] * len(left) if reference is None else jax.tree.leaves(reference)
    worst = largest = 0.0
    for (path, a), (_, b), r in zip(left, right, exacts, strict=True):
        a, b, r = np_array(a), np_array(b), None if r is None else np_array(r)
        if overflow and a.shape == b.shape and jnp.issubdtype(a.dtype, jnp.inexact):
            a = np.where(np.isfinite(b), a, np.nan).astype(a.dtype)
        found = _compare(a, b, r, exact)
        if found.reason:
            name = jax.tree_util.keystr(path) or "the result"
            return Difference(False, found.worst, found.largest, f"{name}: {found.reason}")
        worst, largest = max(worst, found.worst), max(largest, found.largest)
    return Difference(True, worst, largest)


def np_array(array: Any) -> np.ndarray[Any, Any]:
    """An array as numpy has it; PRNG keys by their data."""
    if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array)


def _compare(a: Any, b: Any, reference: Any, exact: bool) -> Difference:
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(
            False, np.inf, np.inf, f"{b.dtype}{list(b.shape)} instead of {a.dtype}{list(a.shape)}"
        )
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        wrong = int((a != b).sum())
        if not wrong:
            return Difference(True)
        return Difference(False, np.inf, np.inf, f"{wrong} of {a.size} {a.dtype} elements differ")
    eps = float(jnp.finfo(a.dtype).eps)
    wide = np.complex128 if np.issubdtype(a.dtype, np.complexfloating) else np.float64
    return _compare_floats(a.astype(wide), b.astype(wide), reference, eps, exact)


def _compare_floats(a: Any, b: Any, reference: Any, eps: float, exact: bool) -> Difference:
    finite = np.isfinite(a)
    if (lost := int((finite & ~np.isfinite(b)).sum())) > 0:
        return Difference(False, np.inf, np.inf, f"{lost} of {a.size} finite elements became NaN or infinite")
    if exact and not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(False, np.inf, np.inf, "NaN or infinite elements changed")
    a, b = a[finite], b[finite]
    if not a.size:
        return Difference(True)
    scale = float(np.abs(a).max())
    error = float(np.abs(a - b).max())
    if error == 0.0:
        return Difference(True)
    unit, spread = _ROUNDINGS * eps * scale, 0.0
    if reference is not None and reference.shape == finite.shape:
        deviation = np.abs(a - reference[finite])
        spread = float(deviation.max()) if np.isfinite(deviation).all() else np.inf
        unit = min(max(unit, spread), float(np.sqrt(eps)) * scale)
    unit = min(unit, max(_COARSEST * scale, 4 * spread) / TOLERANCE)
    worst = error / max(unit, float(np.finfo(np.float64).tiny))
    if worst <= TOLERANCE or error <= float(np.finfo(np.float32).tiny):
        return Difference(True, worst, error)
    text = f"off by {error:.3g} where the largest element is {scale:.3g}"
    return Difference(False, worst, error, f"{text}: {worst:.3g} times what rounding explains")
