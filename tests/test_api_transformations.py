"""`lepton.optimize` under and over JAX's transformations, shardings and export."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import lepton_jax as lepton
from tests.api_programs import noisy


def test_under_and_over_transformations() -> None:
    def fun(x: Any) -> Any:
        return jnp.sum(noisy(x) * x)

    f = lepton.optimize(fun)
    x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    xs = jnp.stack([x, x + 1])

    def every(x: Any, xs: Any) -> dict[str, tuple[Any, ...]]:
        """What plain JAX gives, and then what Lepton does."""
        gradient, tangent, batch = jax.grad(fun)(x), jax.jvp(fun, (x,), (x,))[1], jax.vmap(fun)(xs)
        return {
            "jit": (fun(x), jax.jit(f)(x)),
            "grad": (gradient, jax.grad(f)(x), lepton.optimize(jax.grad(fun))(x)),
            "grad, twice optimised": (gradient, lepton.optimize(jax.grad(f))(x)),
            "hessian": (jax.hessian(fun)(x), jax.hessian(f)(x)),
            "jacfwd": (gradient, jax.jacfwd(f)(x)),
            "jvp": (tangent, jax.jvp(f, (x,), (x,))[1], jax.linearize(f, x)[1](x)),
            "vmap": (batch, jax.vmap(f)(xs), lepton.optimize(jax.vmap(fun))(xs), lax.map(f, xs)),
            "vmap of grad": (jax.vmap(jax.grad(fun))(xs), jax.vmap(jax.grad(f))(xs)),
            "checkpoint": (
                gradient,
                jax.grad(jax.checkpoint(f))(x),
                lepton.optimize(jax.grad(jax.checkpoint(fun)))(x),
            ),
        }

    for name, (expected, *actual) in jax.jit(every)(x, xs).items():
        for result in actual:
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(jax.grad(f)(x), jax.jit(jax.grad(fun))(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(f)(xs), jax.jit(jax.vmap(fun))(xs), rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(f, x).shape == f.eval_shape(x).shape == ()


def test_custom_rules_keep_their_meaning() -> None:
    @jax.custom_vjp
    def clipped(x: Any) -> Any:
        return jnp.sin(x) * 1.0

    clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (jnp.clip(g, -0.1, 0.1),))

    @jax.custom_jvp
    def odd(x: Any) -> Any:
        return jnp.transpose(jnp.transpose(x)) + x * 0

    odd.defjvp(lambda p, t: (odd(*p), 7.0 * t[0]))

    def fun(x: Any) -> Any:
        return jnp.sum(clipped(x) + odd(x.reshape(1, -1)).reshape(-1))

    x = jnp.arange(3.0)
    for g in (
        jax.grad(lepton.optimize(fun)),
        lepton.optimize(jax.grad(fun)),
        lepton.optimize(jax.grad(lepton.optimize(fun))),
    ):
        np.testing.assert_allclose(g(x), jax.grad(fun)(x), rtol=1e-6)


def test_shard_map_and_shardings() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = NamedSharding(mesh, P("i"))
    x = jax.device_put(jnp.arange(4.0), sharding)

    def local(v: Any) -> Any:
        return lax.psum(v * 1.0 + 0.0, "i")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("i"), out_specs=P())
    inside = jax.shard_map(lepton.optimize(local), mesh=mesh, in_specs=P("i"), out_specs=P())
    np.testing.assert_array_equal(lepton.optimize(mapped)(x), mapped(x))
    np.testing.assert_array_equal(inside(x), mapped(x))
    f = lepton.optimize(lambda v: lax.with_sharding_constraint(v * 2.0, sharding))
    assert f(x).sharding.is_equivalent_to(sharding, 1)


def test_explicit_mesh() -> None:
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(8.0).reshape(4, 2), P("i", None))
        fun = noisy
        expected, result = jax.jit(fun)(x), lepton.optimize(fun)(x)
        assert jax.typeof(result).sharding == jax.typeof(expected).sharding
        np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_export() -> None:
    f = lepton.optimize(noisy)
    x = jnp.ones((2, 3))
    data = jax.export.export(f)(x).serialize()
    np.testing.assert_allclose(jax.export.deserialize(data).call(x), noisy(x), rtol=1e-6)


def test_export_with_symbolic_dimensions() -> None:
    def fun(x: Any) -> Any:
        y = jnp.transpose(jnp.transpose(x * 1.0)).reshape(-1)
        return (
            jnp.concatenate([y, y])[: x.shape[0]]
            + lax.scan(lambda c, v: (c + v, v * 1.0), jnp.zeros(()), y)[0]
        )

    (b,) = jax.export.symbolic_shape("b")
    exported = jax.export.export(lepton.optimize(fun))(jax.ShapeDtypeStruct((b, 3), jnp.float32))
    for n in (1, 4):
        x = jnp.arange(3.0 * n).reshape(n, 3)
        np.testing.assert_allclose(exported.call(x), fun(x), rtol=1e-6)


def test_closed_over_tracers() -> None:
    def outer(x: Any) -> Any:
        inner = lepton.optimize(lambda y: (y * x * 1.0).sum())
        return jax.grad(inner)(x) + inner(x)

    x = jnp.arange(3.0)
    expected = outer(x)
    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(outer)(x), expected, rtol=1e-6)
        np.testing.assert_allclose(jax.vmap(outer)(jnp.stack([x, x]))[0], expected, rtol=1e-6)
    assert jax.eval_shape(jax.jacfwd(outer), x).shape == (3, 3)
