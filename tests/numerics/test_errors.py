"""Measures of how much was lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import cosine, relative_error, sqnr


def test_measures() -> None:
    x = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    y = x + 0.01 * np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    assert float(relative_error(x, y)) == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-5)
    power = np.sum(x.astype(np.float64) ** 2) / np.sum((x.astype(np.float64) - y) ** 2)
    assert float(sqnr(x, y)) == pytest.approx(10 * np.log10(power), abs=1e-3)
    assert float(cosine(x, y)) == pytest.approx(
        np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-6
    )


def test_edges() -> None:
    x, zero = jnp.array([3.0, -4.0]), jnp.zeros(2)
    assert float(sqnr(x, x)) == np.inf and float(relative_error(x, x)) == 0 and float(cosine(x, x)) == 1
    assert float(relative_error(zero, x)) == np.inf and float(sqnr(zero, x)) == -np.inf
    assert float(relative_error(zero, zero)) == 0 and float(cosine(zero, zero)) == 1
    assert float(cosine(x, zero)) == 0 and float(cosine(zero, x)) == 0
    assert float(relative_error(x, zero)) == 1 and float(cosine(x, -x)) == -1
    for size in (1e30, 1e-30):
        assert float(cosine(x * size, x)) == pytest.approx(1)
        assert float(relative_error(x * size, x * size * 0.9)) == pytest.approx(0.1, rel=1e-5)
    assert jnp.isnan(relative_error(x, x.at[0].set(jnp.nan)))
    empty = jnp.zeros((0, 3))
    assert float(relative_error(empty, empty)) == 0 and float(cosine(empty, empty)) == 1
    half = x.astype(jnp.bfloat16)
    assert float(jax.jit(sqnr)(half, half)) == np.inf


def test_the_largest_numbers_are_no_exception() -> None:
    x = np.float32(2e38) * np.linspace(-1, 1, 64, dtype=np.float32)
    off = x * np.float32(1.25)
    for fun, expected in ((relative_error, 0.25), (sqnr, 12.04), (cosine, 1.0)):
        assert abs(float(jax.jit(fun)(x, off)) - expected) < 0.01
