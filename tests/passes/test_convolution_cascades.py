"""Convolution: filters one after another and side by side."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jax.rewrite import profit
from tests.passes._check import all_kept
from tests.passes._movement import array

PASSES = "default"
NHWC = ("NHWC", "HWIO", "NHWC")
V, X = array((40,)), array((2, 9, 8, 3))
K, L, FIRST = array((3, 3, 3, 4), seed=1), array((1, 1, 4, 2), seed=2), array((1, 1, 3, 4), seed=3)
FIVE, THREE = np.array([1, 4, 6, 4, 1], np.float32) / 16, np.array([1, 2, 3], np.float32)


def conv(x: Any, k: Any, padding: Any = "SAME", strides: Any = (1, 1), **more: Any) -> jax.Array:
    return lax.conv_general_dilated(x, k, strides, padding, dimension_numbers=NHWC, **more)


def spread(x: jax.Array, k: jax.Array, later: jax.Array) -> jax.Array:
    inner = conv(x, k, ((1, 2), (0, 1)), (2, 1))
    return conv(inner, later, ((0, -1), (0, 0)), (1, 2), rhs_dilation=(2, 1))


def cut(x: jax.Array, k: jax.Array, later: jax.Array) -> jax.Array:
    return conv(conv(x, k, ((1, 2), (0, 1))), later, ((-2, 0), (0, 0)))


def test_one_filter_for_two() -> None:
    programs: dict[str, Any] = {
        "valid": (lambda x: jnp.convolve(jnp.convolve(x, FIVE, "valid"), THREE, "valid"), (V,)),
        "full": (lambda x: jnp.convolve(jnp.convolve(x, FIVE), THREE), (V,)),
        "an argument": (lambda x, k: jnp.convolve(jnp.convolve(x, k), THREE), (V, V[:4])),
        "then pointwise": (lambda x, k, later: conv(conv(x, k), later), (X, K, L)),
        "strides": (lambda x, k, later: conv(conv(x, k, "SAME", (2, 1)), later, "SAME", (1, 2)), (X, K, L)),
        "pointwise first": (
            lambda x, k, first: conv(conv(x, first), k[:, :, :1].repeat(4, 2)),
            (X, K, FIRST),
        ),
        "holes": (spread, (X, array((3, 2, 3, 9)), array((2, 1, 9, 1)))),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, vmap=False, export=False).items():
            assert report.rules["cascaded-filters"] == 1, name


def test_one_filter_for_a_sum() -> None:
    programs: dict[str, Any] = {
        "kernels": (lambda x, k: conv(x, k) - conv(x, k[::-1]), (X, K)),
        "inputs": (lambda x, k: conv(x, k) + conv(x[::-1] * 2, k), (X, K)),
        "in one dimension": (
            lambda x, a, b: jnp.convolve(x, a, "same") - jnp.convolve(x, b, "same"),
            (V, V[:7], V[9:16]),
        ),
    }
    with profit.disregarded():
        for name, (_, report) in all_kept(programs, passes=PASSES, vmap=False, export=False).items():
            assert report.rules["sum-of-filters"] == 1, name


def test_filters_that_stay_two() -> None:
    programs: dict[str, Any] = {
        "cut between": (cut, (X, K, L)),
        "padded between": (lambda x: jnp.convolve(jnp.convolve(x, FIVE, "same"), THREE, "same"), (V,)),
        "nonlinear": (lambda x, k, later: conv(jax.nn.relu(conv(x, k)), later), (X, K, L)),
        "read twice": (lambda x, k, later: (lambda y: (conv(y, later), y))(conv(x, k)), (X, K, L)),
        "more work": (lambda x, k: conv(conv(x, k, "VALID"), k[:, :, :1].repeat(4, 2), "VALID"), (X, K)),
        "other padding": (lambda x, k: conv(x, k) + conv(x, k[::-1], ((0, 2), (0, 2))), (X, K)),
        "nothing in common": (lambda x, k: conv(x, k) + conv(x * 2, k[::-1]), (X, K)),
    }
    with profit.disregarded():
        reports = all_kept(programs, passes=PASSES, grad=False, vmap=False, export=False)
    for name, (_, report) in reports.items():
        assert "cascaded-filters" not in report.rules and "sum-of-filters" not in report.rules, name
