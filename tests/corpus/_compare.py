"""Comparison of the results of two programs that should mean the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A result may differ by this many units of rounding at the largest number of its array. A sum of n numbers
# in another order differs by up to n units; solvers, recurrences and their gradients multiply that.
UNITS = 256


def rounding_unit(fun: Callable[..., Any], *args: Any) -> float:
    """The unit of rounding of the narrowest format of a function: bfloat16, float16 or float32."""
    text = str(jax.jit(fun).trace(*args).jaxpr)  # jit keeps the trace for its next call
    present = [float(jnp.finfo(name).eps) for name in ("bfloat16", "float16") if f"{SHORT[name]}[" in text]
    return max([float(np.finfo(np.float32).eps), *present])


SHORT = {"bfloat16": "bf16", "float16": "f16"}


def assert_same(actual: Any, expected: Any, unit: float, *, weak: bool = True) -> None:
    """Asserts that two trees are the same in structure, types and values.

    Args:
        actual: a tree of arrays.
        expected: the tree to compare with.
        unit: the unit of rounding for floats; integers, booleans and keys must be equal.
        weak: whether weak types must be the same too.

    Raises:
        AssertionError: they differ; the message names the leaf.
    """
    trees: tuple[Any, Any] = (jax.tree.structure(actual), jax.tree.structure(expected))
    assert trees[0] == trees[1]
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name = jax.tree_util.keystr(path) or "result"
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{name}: {a.aval} is not {b.aval}"
        assert not weak or is_weak(a) == is_weak(b), f"{name}: weak type {is_weak(a)}, not {is_weak(b)}"
        _assert_close(numbers(a), numbers(b), unit, name)


def numbers(leaf: jax.Array) -> np.ndarray:
    """The values of a leaf; floats as float64 or complex128, keys as their words."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(jax.random.key_data(leaf))
    if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
        return np.asarray(leaf, np.complex128)
    return np.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.asarray(leaf)


def _assert_close(a: np.ndarray, b: np.ndarray, unit: float, name: str) -> None:
    if not np.issubdtype(b.dtype, np.inexact):
        np.testing.assert_array_equal(a, b, err_msg=name)
        return
    finite = np.isfinite(b)
    np.testing.assert_array_equal(np.isnan(a), np.isnan(b), err_msg=f"{name}: positions of NaN")
    np.testing.assert_array_equal(np.isfinite(a), finite, err_msg=f"{name}: positions of infinities")
    infinite = ~finite & ~np.isnan(b)
    np.testing.assert_array_equal(a[infinite], b[infinite], err_msg=f"{name}: signs of infinities")
    if finite.any():
        magnitude = np.abs(b[finite]).max()
        worst = np.abs(a[finite] - b[finite]).max()
        allowed = UNITS * unit * magnitude
        assert worst <= allowed, (
            f"{name}: differs by {worst:.3g}, allowed {allowed:.3g} at magnitude {magnitude:.3g}"
        )


def is_weak(leaf: jax.Array) -> bool:
    """Whether the type of a leaf is weak, as that of a Python number; a key's is not."""
    return bool(getattr(jax.typeof(leaf), "weak_type", False))
