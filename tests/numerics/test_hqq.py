"""HQQ on weights with heavy tails, against rounding to nearest and against the paper's iteration in numpy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, dequantize, quantize
from lepton_jax.numerics.hqq import hqq

W: Any = np.random.default_rng(0).standard_t(3, (96, 16)).astype(np.float32)
AFFINE = Scheme("int3", symmetric=False, shared=(0,), group=32)


def lost(values: Any, w: Any = W) -> float:
    return float(np.sum(np.abs(np.asarray(values) - np.asarray(w)) ** 0.7))


@pytest.mark.parametrize(
    "scheme",
    [
        AFFINE,
        Scheme("int3", shared=(0,)),
        Scheme("int4", shared=(0,), group=20),
        Scheme("nf4", shared=(0,)),
        Scheme("fp4_e2m1"),
    ],
)
def test_beats_rounding_on_heavy_tails(scheme: Scheme) -> None:
    @jax.jit
    def run(w: Any) -> Any:
        found, plain = hqq(w, scheme), quantize(w, scheme)
        return found, plain, [dequantize(q, scheme) for q in (found, plain)]

    found, plain, values = run(W)
    assert lost(values[0]) < 0.98 * lost(values[1])
    assert found.scale.shape == plain.scale.shape and found.codes.dtype == plain.codes.dtype
    assert (np.asarray(found.scale) > 0).all()
    assert found.zero is None or found.zero.dtype == jnp.int8
    large, _, _ = run(W * np.float32(2.0**9))
    np.testing.assert_array_equal(large.codes, found.codes)  # how large the weight is does not matter


def test_zeros_in_floating_point_are_the_papers() -> None:
    @jax.jit
    def run(w: Any) -> Any:
        found, plain = hqq(w, AFFINE, float_zero=True), quantize(w, AFFINE)
        return found, plain, [dequantize(q, AFFINE) for q in (found, plain)]

    found, plain, values = run(W)
    scale, zero = (np.asarray(part, np.float64) for part in plain[1:])
    w = np.asarray(W, np.float64).reshape(3, 32, 16) / scale[:, None]
    zero = zero[:, None]
    best, least = zero, np.full(zero.shape, np.inf)
    for step in range(21):
        codes = np.clip(np.round(w + zero), -4, 3)
        off = w - (codes - zero)
        error = np.sum(np.abs(off) ** 0.7, 1, keepdims=True)
        best, least = np.where(error < least, zero, best), np.minimum(error, least)
        shrunk = np.sign(off) * np.maximum(np.abs(off) - np.abs(off) ** -0.3 / (10 * 1.01**step), 0)
        zero = np.mean(codes - (w - shrunk), 1, keepdims=True)
    assert found.zero is not None and found.zero.dtype == jnp.float32
    np.testing.assert_allclose(found.zero, best[:, 0], atol=1e-3)
    np.testing.assert_allclose(lost(values[0]), np.sum(least * scale[:, None] ** 0.7), rtol=1e-4)
    assert lost(values[0]) < 0.97 * lost(values[1])


def test_nothing_to_gain() -> None:
    micro = Scheme("mxfp4", group_axis=0)
    cases = ((AFFINE, np.zeros((32, 4))), (AFFINE, np.zeros((0, 4))), (micro, W))

    @jax.jit
    def run(weights: Any) -> Any:
        pairs = [(hqq(w, scheme), quantize(w, scheme)) for w, (scheme, _) in zip(weights, cases, strict=True)]
        return [*pairs, (hqq(weights[2], AFFINE, steps=0), quantize(weights[2], AFFINE))]

    *pairs, (none, plain) = run([w.astype(np.float32) for _, w in cases])
    for found, expected in pairs:
        assert (found.zero is None) == (expected.zero is None)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    np.testing.assert_array_equal(none.codes, plain.codes)


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="0 < p < 1"):
        hqq(W, AFFINE, p=1.0)
    with pytest.raises(ValueError, match="a symmetric scheme has no zero to optimise"):
        hqq(W, Scheme("int4"), float_zero=True)
