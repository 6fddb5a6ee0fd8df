"""Bias correction: the mean of an output is what it was; and how errors are estimated and measured."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.numerics import Scheme, fake_quantize, sqnr
from lepton_jax.numerics.bias_correction import bias_correction, conv_bias_correction
from lepton_jax.numerics.hessian import MatrixLayout
from lepton_jax.numerics.sensitivity import damage, output_error

RNG = np.random.default_rng(0)


def rounded(x: Any, scheme: Scheme) -> Any:
    return np.asarray(jax.jit(fake_quantize, static_argnums=1)(x, scheme))


def test_mean_of_a_dot_is_restored() -> None:
    x: Any = np.float32(RNG.standard_normal((200, 3, 8)) + 2)
    w: Any = np.float32(RNG.standard_normal((5, 3, 8)))  # contracted over its last two axes
    rough, coarse = rounded(w, Scheme("int3", shared=(1, 2))), rounded(x, Scheme("int4"))
    layout = MatrixLayout((1, 2))

    def mean(x: Any, w: Any) -> Any:
        return np.einsum("nab,cab->nc", x, w).mean(0)

    batched = MatrixLayout((2,), batch=(1,))

    @jax.jit
    def run(w: Any, rough: Any, x: Any, coarse: Any) -> Any:
        whole = bias_correction(w, rough, x.mean(0), layout=layout)
        both = bias_correction(w, rough, x.mean(0), rounded_mean=coarse.mean(0), layout=layout)
        return whole, both, bias_correction(w, rough, x.mean(0), layout=batched)

    found, both, each = run(w, rough, x, coarse)
    np.testing.assert_allclose(mean(x, rough) + found, mean(x, w), atol=1e-4)
    np.testing.assert_allclose(mean(coarse, rough) + both, mean(x, w), atol=1e-4)
    assert np.abs(both).max() > 0.01
    expected = np.einsum("nab,cab->nac", x, w - rough).mean(0)
    np.testing.assert_allclose(each, expected, atol=1e-4)
    with pytest.raises(ValueError, match="means of 1 × 24 inputs are needed"):
        bias_correction(w, rough, jnp.ones(7), layout=layout)


@pytest.mark.parametrize("groups", [1, 2])
def test_mean_of_a_convolution_is_restored(groups: int) -> None:
    x: Any = np.float32(RNG.standard_normal((4, 9, 9, 6)) + np.arange(6))
    x = np.concatenate([x, np.flip(x, (1, 2))], 1)
    w: Any = np.float32(RNG.standard_normal((3, 3, 6 // groups, 8)))
    rough = rounded(w, Scheme("int3", shared=(0, 1, 2)))
    dims = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))

    def mean(kernel: Any) -> Any:
        y = lax.conv_general_dilated(
            jnp.asarray(np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")), kernel, (1, 1), "VALID",
            dimension_numbers=dims, feature_group_count=groups,
        )  # fmt: skip
        return y.mean((0, 1, 2))

    @jax.jit
    def run(w: Any, rough: Any, means: Any) -> Any:
        return conv_bias_correction(w, rough, means, dims.rhs_spec, groups), mean(rough), mean(w)

    found, after, before = run(w, rough, x.mean((0, 1, 2)))
    np.testing.assert_allclose(after + found, before, atol=1e-3)
    assert np.abs(found).max() > 0.1
    with pytest.raises(ValueError, match="6 input channels need as many means"):
        conv_bias_correction(w, rough, jnp.ones(5), dims.rhs_spec, groups)


def test_damage_is_half_the_squared_output_error() -> None:
    x: Any = np.float32(RNG.standard_normal((50, 2, 6)))
    w: Any = np.float32(RNG.standard_normal((6, 2, 4)))
    change = rounded(w, Scheme("int3")) - w
    layout = MatrixLayout((0,), batch=(1,))
    moment = np.einsum("nbk,nbl->bkl", x, x)
    error = np.sum(np.square(np.einsum("nbk,kbo->nbo", x, change)))
    np.testing.assert_allclose(damage(change, moment, layout=layout), error / 2, rtol=1e-4)
    diagonal = np.einsum("nbk,nbk->bk", x, x)
    expected = np.sum(np.square(change) * np.asarray(diagonal).T[..., None]) / 2
    np.testing.assert_allclose(damage(change, diagonal, layout=layout), expected, rtol=1e-4)
    np.testing.assert_allclose(damage(change, jnp.ones(6), layout=layout), np.sum(change**2) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match=r"moments of shape \(5,\) do not fit a weight of 2 × 6 inputs"):
        damage(change, jnp.ones(5), layout=layout)


def test_measured_error() -> None:
    x = jnp.asarray(RNG.standard_normal((3, 4)), jnp.bfloat16)
    other = x * 1.25
    found = output_error(x, other)
    wide = np.asarray(x, np.float32)
    off = np.asarray(other, np.float32) - wide
    np.testing.assert_allclose(found.mean_square, np.mean(off**2), rtol=1e-5)
    np.testing.assert_allclose(found.relative, np.linalg.norm(off) / np.linalg.norm(wide), rtol=1e-5)
    np.testing.assert_allclose(found.sqnr, sqnr(x, other), rtol=1e-6)
    assert float(output_error(jnp.zeros((0, 3)), jnp.zeros((0, 3))).mean_square) == 0
