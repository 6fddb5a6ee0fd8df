"""AWQ on inputs with outliers: never worse than rounding by its own measure, better where it counts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, decode, dequantize, encode, fake_quantize, scale_of
from lepton_jax.numerics.awq import awq, clipped_scale
from lepton_jax.numerics.gptq import gptq
from lepton_jax.numerics.hessian import MatrixLayout, conv_layout
from lepton_jax.numerics.smoothquant import scaled

RNG = np.random.default_rng(0)
X = RNG.standard_normal((128, 64)).astype(np.float32) * np.where(np.arange(64) % 13 == 0, 20, 1)
X[:, 5] = 0
W: Any = RNG.standard_t(4, (64, 24)).astype(np.float32)
H: Any = (X.T @ X).astype(np.float32)


def output_error(w: Any, rounded: Any) -> float:
    return float(np.sum(np.square(X @ (np.asarray(rounded) - np.asarray(w)))))


@pytest.mark.parametrize(
    "scheme", [Scheme("int4", shared=(0,), group=32), Scheme("int3", symmetric=False, shared=(0,))]
)
def test_beats_rounding(scheme: Scheme) -> None:
    @jax.jit
    def run(w: Any, size: Any, h: Any) -> Any:
        results = [awq(w, size, scheme, moment=moment) for moment in (h, jnp.diagonal(h), None)]
        values = [
            scaled(fake_quantize(scaled(w, one.scale, 0), scheme), one.scale, 0, inverse=True)
            for one in results
        ]
        return fake_quantize(w, scheme), results, values

    rounded, results, values = jax.tree.map(np.asarray, run(W, np.abs(X).mean(0), H))
    plain = output_error(W, rounded)
    for i, (found, value) in enumerate(zip(results, values, strict=True)):
        s = found.scale
        assert output_error(W, value) < 0.7 * plain
        assert 0 < float(found.alpha) < 1 and float(found.error) < float(found.rounding_error)
        assert float(s[5]) == 1 and np.isfinite(s).all()
        if i == 0:
            np.testing.assert_allclose(2 * found.error, output_error(W, value), rtol=1e-3)
            np.testing.assert_allclose(2 * found.rounding_error, plain, rtol=1e-3)
        kept = np.delete(s, 5)
        np.testing.assert_allclose(kept.max() * kept.min(), 1, rtol=1e-4)


def test_other_axes() -> None:
    scheme = Scheme("int3", shared=(0, 1, 2))
    layout = conv_layout((3, 2, 0, 1))

    @jax.jit
    def run(kernel: Any, size: Any, w: Any) -> Any:
        moments = None, jnp.diag(jnp.repeat(size**2, 6))
        turned = awq(w.T, jnp.abs(w[:, 0]), Scheme("int3", shared=(1,)), axis=1)
        plain = awq(w, jnp.abs(w[:, 0]), Scheme("int3", shared=(0,)), layout=MatrixLayout((0,)))
        return [awq(kernel, size, scheme, axis=2, layout=layout, moment=m) for m in moments], turned, plain

    kernel = W[:36].reshape(3, 2, 6, 24)  # space, inputs, outputs
    (found, full), turned, plain = run(kernel, np.array([1.0, 9.0, 0.5, 2.0, 0.0, 3.0], np.float32), W)
    np.testing.assert_array_equal(found.scale, full.scale)
    np.testing.assert_allclose(found.error, full.error, rtol=1e-5)
    assert found.scale.shape == (6,) and float(found.error) <= float(found.rounding_error)
    np.testing.assert_allclose(turned.scale, plain.scale, rtol=1e-6)


@pytest.mark.parametrize(
    "scheme", [Scheme("int3", shared=(0,)), Scheme("int3", symmetric=False, shared=(0,), group=16)]
)
def test_clipping(scheme: Scheme) -> None:
    second = np.diagonal(H) / len(X)

    @jax.jit
    def run(w: Any, second: Any, h: Any) -> Any:
        found, (scale, zero) = scale_of(w, scheme), clipped_scale(w, second, scheme)
        values = [decode(encode(w, *pair, scheme), *pair, scheme) for pair in (found, (scale, zero))]
        solved = gptq(w, h, scheme, scale=scale, zero=zero).quantized
        return values, (found[0], scale, solved.scale), dequantize(solved, scheme)

    values, (whole_scale, scale, kept), solved = jax.tree.map(np.asarray, run(W, second, H))
    whole, clipped = (np.sum(np.square(value - W) * second[:, None], axis=0) for value in values)
    assert (clipped <= whole * 1.0001).all() and clipped.sum() < 0.9 * whole.sum()
    assert scale.shape == whole_scale.shape
    np.testing.assert_array_equal(kept, scale)
    assert output_error(W, solved) < output_error(W, values[0])


def test_wrong_use() -> None:
    scheme = Scheme("int4", shared=(0,))
    with pytest.raises(ValueError, match=r"axis 0 of a weight \(64, 24\) needs \(64,\) magnitudes: \(24,\)"):
        awq(W, jnp.ones(24), scheme)
    with pytest.raises(ValueError, match="at least one exponent, not 0"):
        awq(W, jnp.ones(64), scheme, grid=0)
    with pytest.raises(ValueError, match="do not fit a weight of 1 × 64 inputs"):
        awq(W, jnp.ones(64), scheme, moment=jnp.ones((24, 24)))
    with pytest.raises(ValueError, match=r"moments \(24,\) for axis 0"):
        clipped_scale(W, jnp.ones(24), scheme)
    with pytest.raises(ValueError, match="least in"):
        clipped_scale(W, jnp.ones(64), scheme, least=0.0)
