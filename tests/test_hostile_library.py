"""What people call besides `jax.numpy`, under `lepton.optimize` and under `jax.jit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import checkify, sparse
from jax.experimental import pallas as pl

import lepton_jax as lepton

X = jnp.sin(jnp.arange(24.0)).reshape(6, 4)


def complex_numbers() -> Any:
    y = (X + 1j * X[::-1]) @ (X.T + 0j)
    return jnp.conj(jnp.fft.ifft(jnp.fft.fft(y))).sum(0), jnp.abs(y), jnp.angle(y[0]), jnp.linalg.norm(y)


def ragged_products() -> Any:
    w = jnp.cos(jnp.arange(60.0)).reshape(3, 4, 5)
    return lax.ragged_dot(X, w, jnp.array([2, 0, 4], jnp.int32))


def typed_keys() -> Any:
    key, other = jax.random.split(jax.random.key(0))
    several = jax.random.split(other, 4)
    return (
        jax.random.normal(key, (5,)),
        jax.vmap(lambda k: jax.random.uniform(k, (2,)))(several),
        jax.random.key_data(jax.random.fold_in(key, 3)),
    )


def checked() -> Any:
    def f(x: Any) -> Any:
        checkify.check(jnp.all(x > -100), "small: {}", x.min())
        return jnp.log(jnp.abs(x) + 1)

    return checkify.checkify(f, errors=checkify.user_checks | checkify.float_checks)(X)[1]


def kernels() -> Any:
    def kernel(source: Any, target: Any) -> None:
        target[...] = source[...] * 2 + 1

    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(X.shape, X.dtype), interpret=True)(X).sum(0)


def sparse_matrices() -> Any:
    s = sparse.BCOO.fromdense(jnp.where(X > 0, X, 0), nse=24)
    return s @ X.T, s.T @ X, s.todense()


def batching_rules_of_ones_own() -> Any:
    @custom_vmap
    def f(x: Any) -> Any:
        return jnp.sin(x)

    @f.def_vmap
    def rule(size: int, batched: Any, x: Any) -> Any:
        return jnp.cos(x), True

    return f(X), jax.vmap(f)(X)


def named_axes() -> Any:
    ring = [(k, (k + 1) % 6) for k in range(6)]

    def f(x: Any) -> Any:
        return lax.psum(x, "i"), lax.pmax(x, "i") - x, lax.axis_index("i"), lax.ppermute(x, "i", ring)

    return jax.vmap(f, axis_name="i")(X)


def implicit_functions() -> Any:
    def newton(f: Any, z: Any) -> Any:
        return lax.fori_loop(0, 30, lambda i, z: z - f(z) / (3 * z * z + 1e-3), z)

    def root(a: Any) -> Any:
        return lax.custom_root(
            lambda z: z**3 - a, jnp.full_like(a, 1.5), newton, lambda g, y: y / g(jnp.ones_like(y))
        )

    a = jnp.arange(1.0, 4.0)
    return root(a), jax.grad(lambda a: root(a).sum())(a)


def weak_numbers() -> Any:
    return 3 * jnp.int8(2), jnp.asarray(2.5) / 3, jnp.where(jnp.array(True), 1, 2.0), jnp.asarray(2) ** 3


PROGRAMS: tuple[Callable[[], Any], ...] = (
    *(complex_numbers, ragged_products, typed_keys, checked, kernels, sparse_matrices),
    *(batching_rules_of_ones_own, named_axes, implicit_functions, weak_numbers),
)


def test_they_give_what_jit_gives() -> None:
    def every(zero: Any) -> dict[str, Any]:
        del zero  # an argument, so that nothing is called with none
        return {program.__name__: program() for program in PROGRAMS}

    want, got = jax.jit(every)(0.0), lepton.optimize(every, strict=True)(0.0)
    assert str(jax.tree.structure(want)) == str(jax.tree.structure(got))
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        name = jax.tree_util.keystr(path)
        assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type), name
        np.testing.assert_allclose(a, b, 1e-4, 1e-4, err_msg=name)


@pytest.mark.parametrize("strict", [False, True])
def test_a_nan_that_jax_looks_for_is_found(strict: bool) -> None:
    f = lepton.optimize(lambda x: jnp.log(x - 10).sum(), strict=strict)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        f(jnp.ones(3))
    assert np.isnan(f(jnp.ones(3)))
