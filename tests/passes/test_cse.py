"""Common subexpressions: what is the same, what only looks the same, and what regions read from outside."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import to_callable
from tests.passes._check import optimised, same
from tests.passes._golden import MATRIX, ONE, X, assert_every_gate, assert_text, assert_untouched, ops

kept = partial(same, passes="cse", level="exact")


def test_equal_nodes() -> None:
    def f(x: Any) -> Any:
        return jnp.sin(x) + jnp.sin(x) * jnp.cos(jnp.sin(x))

    assert_text(
        kept(f, X),
        """
        graph f(%0: f32[3]) {
          %1: f32[3] = sin[accuracy=None] %0
          %2: f32[3] = cos[accuracy=None] %1
          %3: f32[3] = mul %1 %2
          %4: f32[3] = add %1 %3
          return %4
        }
        """,
    )


def test_operands_of_commutative_operations_in_either_order() -> None:
    def f(x: Any, y: Any) -> Any:
        pairs = [
            (x * y, y * x),
            (x + y, y + x),
            (jnp.maximum(x, y), jnp.maximum(y, x)),
            (jnp.minimum(x, y), jnp.minimum(y, x)),
            (x == y, y == x),
            (x != y, y != x),
        ]
        return pairs, (x > 0) & (y > 0), (y > 0) & (x > 0)

    graph = kept(f, X, X + 1)
    assert sorted(ops(graph)) == sorted(["mul", "add", "max", "min", "eq", "ne", "gt", "gt", "and"])


def test_order_matters_elsewhere() -> None:
    def f(x: Any, y: Any) -> Any:
        return (
            x - y,
            y - x,
            x / y,
            y / x,
            x < y,
            y < x,
            lax.atan2(x, y),
            lax.atan2(y, x),
            MATRIX @ x,
            x @ MATRIX,
        )

    assert_untouched(f, X, X + 1, passes="cse")


def test_literals_are_compared_by_type_and_bits() -> None:
    def f(x: Any) -> Any:
        return x * 2, x * 2.0, x * jnp.float32(2.0), x + 0.0, x + -0.0

    assert ops(kept(f, X)) == ["mul", "add", "add"]

    def g(i: Any) -> Any:
        return lax.convert_element_type(i, "float32") * 2, i * 2, i.astype("int8") * jnp.int8(2)

    assert_untouched(g, jnp.arange(3), passes="cse")


def test_parameters_must_be_equal() -> None:
    def f(x: Any) -> Any:
        return (
            x.reshape(9),
            x.reshape(1, 9),
            x.sum(0),
            x.sum(1),
            x.astype("bfloat16"),
            x.astype("float16"),
            x.T,
        )

    assert_untouched(f, MATRIX, passes="cse")


def test_big_constants_are_compared_by_identity() -> None:
    table = np.arange(3.0, dtype=np.float32)

    def f(x: Any) -> Any:
        return x + table, x + table, x + np.arange(3.0, dtype=np.float32)

    assert ops(kept(f, X)) == ["add", "add"]


def test_nodes_with_many_results() -> None:
    def f(x: Any) -> Any:
        values, indices = lax.top_k(x, 2)
        again, _ = lax.top_k(x, 2)
        return values, indices, again, lax.top_k(x, 1)

    graph = kept(f, X)
    assert ops(graph) == ["top_k", "top_k"]
    assert graph.outputs[0] is graph.outputs[2]


# Other ways in


@pytest.mark.parametrize("dtype", ["bfloat16", "int32", "bool", "complex64"])
def test_dtypes_and_no_elements(dtype: str) -> None:
    def f(x: Any) -> Any:
        return jnp.where(x == x, x, ~x if x.dtype == bool else -x), jnp.where(x == x, x, x)

    for x in (jnp.asarray([0, 1, 1]).astype(dtype), jnp.zeros((0, 2), dtype)):
        assert ops(kept(f, x)).count("eq") == 1


def test_symbolic_shapes() -> None:
    (n,) = jax.export.symbolic_shape("n")

    def f(x: Any) -> Any:
        total, _ = lax.scan(lambda c, y: (c + y * jnp.sin(x).sum(), None), ONE, x)
        return jnp.sin(x) + jnp.sin(x), total

    shape = jax.ShapeDtypeStruct((n,), jnp.float32)
    graph = optimised(f, shape, passes="cse")
    assert ops(graph).count("sin") == 2
    exported = jax.export.export(jax.jit(to_callable(graph)))(shape)
    for got, want in zip(exported.call(X), f(X), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_single_applications_can_be_forbidden() -> None:
    def f(w: Any, x: Any) -> Any:
        def body(c: Any, y: Any) -> Any:
            return c + jnp.sin(jnp.cos(w)) * jnp.sin(y) * jnp.sin(y), None

        wave = jnp.sin(jnp.cos(w)) + jnp.cos(w)
        return lax.scan(body, wave, x)[0], lax.scan(body, wave, x)[0]

    assert assert_every_gate(f, ONE, X, passes="cse") == 4
