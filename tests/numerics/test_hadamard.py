"""Rotations by Hadamard matrices: orthogonal, undone by their inverse, and good against outliers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lepton_jax.numerics import Scheme, fake_quantize, relative_error
from lepton_jax.numerics.hadamard import (
    block_order,
    hadamard_matrix,
    hadamard_transform,
    random_signs,
    rotate,
    unrotate,
)


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 52, 60, 64, 76, 96, 108, 140, 148, 344])
def test_matrices_are_hadamards(order: int) -> None:
    matrix = hadamard_matrix(order).astype(np.int64)
    assert matrix.shape == (order, order) and set(np.unique(matrix)) <= {-1, 1}
    np.testing.assert_array_equal(matrix @ matrix.T, order * np.eye(order))


def test_orders() -> None:
    widths = [768, 3072, 4096, 4864, 5120, 11008, 12288, 13824, 14336, 18944, 28672]
    assert [block_order(width) for width in widths] == widths  # of language models
    assert {size: block_order(size) for size in (3, 77, 6, 92, 172)} == {3: 1, 77: 1, 6: 2, 92: 4, 172: 4}
    with pytest.raises(ValueError, match="no Hadamard matrix of order 92 is known here"):
        hadamard_matrix(92)
    with pytest.raises(ValueError, match="no Hadamard matrix of order 0"):
        hadamard_matrix(0)
    with pytest.raises(ValueError, match="must be at least 1, not 0"):
        block_order(0)


def test_transform_is_the_matrix() -> None:
    sizes = (1, 8, 48, 80, 92, 77)
    numbers = {
        size: np.random.default_rng(size).standard_normal((3, size)).astype(np.float32) for size in sizes
    }

    @jax.jit
    def run(numbers: Any) -> Any:
        found = {}
        for size, x in numbers.items():
            y = hadamard_transform(x)
            found[size] = y, hadamard_transform(y, inverse=True), hadamard_transform(x.T, 0)
        return found

    for size, (y, back, other) in run(numbers).items():
        order = block_order(size)
        matrix = np.kron(np.eye(size // order), hadamard_matrix(order)) / np.sqrt(order)
        np.testing.assert_allclose(y, numbers[size] @ matrix.T, atol=1e-5, err_msg=str(size))
        np.testing.assert_allclose(back, numbers[size], atol=1e-5, err_msg=str(size))
        np.testing.assert_allclose(other, y.T, atol=1e-5, err_msg=str(size))


def test_rotations_cancel_and_spread_outliers() -> None:
    rng = np.random.default_rng(0)
    x, w = (
        rng.standard_normal((2, 5, 160)).astype(np.float32),
        rng.standard_normal((160, 7)).astype(np.float32),
    )
    x[..., 3] *= 60
    scheme = Scheme("int4", shared=(2,))

    @jax.jit
    def run(x: Any, w: Any) -> Any:
        signs = random_signs(jax.random.key(1), 160)
        turned = rotate(x, signs)
        grad = jax.grad(lambda x: jnp.sum(rotate(x, signs) * x))(x)
        rounded = fake_quantize(x, scheme), unrotate(fake_quantize(turned, scheme), signs)
        half = x.astype(jnp.bfloat16)
        back = unrotate(rotate(half, signs, 1 - 2), signs)
        return signs, turned, turned @ rotate(w, signs, 0), rounded, (half, back), grad

    signs, turned, product, (plain, rotated), (half, back), grad = run(x, w)
    assert set(np.unique(signs)) == {-1, 1}
    np.testing.assert_allclose(product, x @ w, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(jnp.sum(turned**2, -1), np.sum(x**2, -1), rtol=1e-4)
    assert np.abs(turned).max() < 0.3 * np.abs(x).max()
    assert relative_error(
        jnp.asarray(np.delete(x, 3, -1)), jnp.asarray(np.delete(np.asarray(rotated), 3, -1))
    ) < (
        0.8
        * relative_error(jnp.asarray(np.delete(x, 3, -1)), jnp.asarray(np.delete(np.asarray(plain), 3, -1)))
    )
    assert back.dtype == jnp.bfloat16 and float(relative_error(half, back)) < 0.02
    assert grad.shape == x.shape and np.isfinite(grad).all()
    np.testing.assert_allclose(rotate(jnp.full(256, 60000.0, jnp.float16))[0], np.inf)  # 960,000 truly
    assert np.isfinite(rotate(jnp.full(256, 3000.0, jnp.float16))).all()
    with pytest.raises(ValueError, match=r"160 signs are needed for axis 0 of \(160, 7\), not \(7,\)"):
        rotate(jnp.asarray(w), jnp.ones(7), 0)
