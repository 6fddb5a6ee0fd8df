"""SmoothQuant: what it moves from activations to weights, and that the float program stays the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, fake_quantize, relative_error
from lepton_jax.numerics.smoothquant import largest, scaled, smoothing


def test_scales_are_the_papers() -> None:
    x, w = np.array([100.0, 1.0, 0.0, 4.0, 9.0]), np.array([1.0, 1.0, 2.0, 0.0, 4.0])
    s = smoothing(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(s, [10, 1, 1, 1, 1.5], rtol=1e-6)
    several = smoothing(jnp.asarray(x), [jnp.asarray(w), 4 * jnp.asarray(w)], alpha=0.75)
    np.testing.assert_allclose(several, [100**0.75 / 4**0.25, 4**-0.25, 1, 1, 9**0.75 / 16**0.25], rtol=1e-5)
    powers = np.log2(smoothing(jnp.asarray(x), jnp.asarray(w), exact=True))
    np.testing.assert_array_equal(powers, [3, 0, 0, 0, 1])
    strange = smoothing(jnp.array([jnp.inf, jnp.nan, 1e38, 1e-38]), jnp.array([1.0, 1.0, 1e-38, 1e38]))
    assert np.isfinite(strange).all() and (np.asarray(strange) > 0).all()
    np.testing.assert_array_equal(strange[:2], 1)


def test_same_product_with_smaller_error() -> None:
    rng = np.random.default_rng(0)
    numbers, w = rng.standard_normal((64, 32)), jnp.asarray(rng.standard_normal((32, 16)), jnp.float32)
    numbers[:, [3, 8]] *= 50
    x = jnp.asarray(numbers, jnp.float32)
    rows, columns = Scheme("int8", shared=(1,)), Scheme("int8", shared=(0,))

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> list[jax.Array]:
        found = [x @ w, fake_quantize(x, rows) @ fake_quantize(w, columns)]
        for exact in (True, False):
            s = smoothing(largest(x, 1), largest(w, 0), exact=exact)
            easy, hard = scaled(x, s, 1, inverse=True), scaled(w, s, 0)
            found += [easy @ hard, fake_quantize(easy, rows) @ fake_quantize(hard, columns)]
        return found

    plain, rounded, same, powers, near, smooth = run(x, w)
    np.testing.assert_array_equal(same, plain)  # powers of two: the same bits
    np.testing.assert_allclose(near, plain, rtol=1e-4, atol=1e-3)
    for better in (powers, smooth):
        assert float(relative_error(plain, better)) < 0.5 * float(relative_error(plain, rounded))
    assert scaled(w.astype(jnp.bfloat16), jnp.ones(32), 0).dtype == jnp.bfloat16


def test_wrong_use() -> None:
    ones = jnp.ones(4)
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, not 2"):
        smoothing(ones, ones, alpha=2)
    with pytest.raises(
        ValueError, match=r"inputs of shape \(4,\) need weights' maxima of that shape, not \[\(3,\)\]"
    ):
        smoothing(ones, jnp.ones(3))
    with pytest.raises(ValueError, match=r"not \[\]"):
        smoothing(ones, [])
    with pytest.raises(ValueError, match=r"\(4,\) scales for axis 0 of an array of shape \(3, 4\)"):
        scaled(jnp.ones((3, 4)), ones, 0)
