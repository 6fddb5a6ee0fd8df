"""Facts of constants and by dtype, and how facts are found."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lepton_jax.ir import trace
from lepton_jax.ir.facts import CONSTANT_LIMIT, Facts, facts_of
from lepton_jax.ir.graph import Graph, Node, Value
from tests.ir._facts import F32, MATRIX, facts

# Constants


def test_scalar_constants_are_known_to_the_bit() -> None:
    zero = facts(lambda: jnp.float32(0.0))
    minus = facts(lambda: jnp.float32(-0.0))
    assert zero.is_zero and zero.is_positive_zero and not zero.is_negative_zero and not zero.is_one
    assert minus.is_zero and minus.is_negative_zero and not minus.is_positive_zero
    assert facts(lambda: jnp.float32(1.0)).is_one
    assert math.isnan(facts(lambda: jnp.float32(np.nan)).splat)
    assert not facts(lambda: jnp.float32(np.nan)).no_nan
    assert facts(lambda: jnp.float32(np.inf)).no_nan and not facts(lambda: jnp.float32(np.inf)).finite
    assert facts(lambda: jnp.bool_(True)).is_one
    assert facts(lambda: jnp.int8(-3)).low == facts(lambda: jnp.int8(-3)).high == -3


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "int8", "int4", "complex64", "bool", "float8_e4m3fn"]
)
def test_splats_have_the_dtype_of_the_value(dtype: str) -> None:
    one = facts(lambda: jnp.ones((2, 2), dtype))
    assert one.is_one and np.asarray(one.splat).dtype == jnp.dtype(dtype)
    assert one.uniform == {0, 1}


def test_zero_with_mixed_signs_is_no_splat_but_zero_to_every_other_question() -> None:
    mixed = facts(lambda: jnp.asarray([[0.0, -0.0], [-0.0, 0.0]]))
    assert mixed.splat is None and mixed.diagonal
    assert (mixed.least, mixed.most) == (0.0, 0.0)


def test_contents_of_constants_are_looked_at_up_to_a_limit() -> None:
    small = np.arange(CONSTANT_LIMIT, dtype=np.int32)
    large = np.arange(CONSTANT_LIMIT + 1, dtype=np.int32)
    found = facts(lambda: jnp.asarray(small))
    assert found.constant is not None and np.array_equal(found.constant, small)
    assert found.iota == (0, 0, 1)
    assert facts(lambda: jnp.asarray(large)).constant is None
    with pytest.raises(ValueError, match="read-only"):
        found.constant[0] = 1


def test_constants_show_their_structure() -> None:
    permuted = np.eye(4, dtype=np.float32)[[2, 0, 3, 1]]
    found = facts(lambda: jnp.asarray(permuted))
    assert found.permutation and not found.identity and found.one_hot == 1
    assert (found.least, found.most) == (0, 1) and found.finite
    assert facts(lambda: jnp.asarray(np.eye(4))).identity
    assert facts(lambda: jnp.asarray(np.tril(np.ones((3, 4))))).lower
    assert facts(lambda: jnp.asarray(np.array([[1.0, np.nan], [np.nan, 2.0]]))).exactly_symmetric
    assert facts(lambda: jnp.asarray(np.array([3.0, 1.0, -1.0]))).iota == (0, 3, -2)
    assert facts(lambda: jnp.asarray(np.array([3.0, 1.5]))).iota is None


def test_keys_tokens_and_empty_arrays_say_nothing() -> None:
    key = facts(lambda: jax.random.key(0))
    assert key.splat is None and not key.finite and key.low is None
    empty = facts(lambda x: jnp.zeros((0, 3)) + x, jax.ShapeDtypeStruct((0, 3), jnp.float32))
    assert empty.constant is None


# Dtypes


@pytest.mark.parametrize(("dtype", "low", "high"), [("int8", -128, 127), ("uint8", 0, 255), ("bool", 0, 1)])
def test_integers_are_finite_and_in_range(dtype: str, low: int, high: int) -> None:
    found = facts(lambda x: x, jax.ShapeDtypeStruct((2,), dtype))
    assert (found.low, found.high, found.finite, found.no_nan) == (low, high, True, True)


def test_floats_from_outside_are_unknown() -> None:
    found = facts(lambda x: x, F32)
    assert not found.no_nan and not found.finite and found.low is None and found.high is None


# How it is computed


def test_long_chains_do_not_recurse() -> None:
    graph = Graph("chain", [trace(lambda x: x, F32).inputs[0].aval])
    (template,) = trace(lambda x: jnp.abs(x), F32)
    value = graph.inputs[0]
    for _ in range(50_000):
        value = graph.append(Node("abs", template.primitive, [value], [value.aval], template.params)).result
    graph.set_outputs([value])
    assert facts_of(graph.outputs[0]).nonnegative


def test_facts_are_found_once() -> None:
    graph = trace(lambda x: jnp.exp(x), F32)
    first = facts_of(graph.outputs[0])
    assert graph.outputs[0].facts is first and facts_of(graph.outputs[0]) is first


def test_symbolic_dimensions_are_no_hindrance() -> None:
    n, m = jax.export.symbolic_shape("n, m")
    shape = jax.ShapeDtypeStruct((n, m), jnp.float32)

    def fun(x: jax.Array) -> Any:
        y = jnp.abs(x).reshape(-1)
        return (
            y.sum(),
            jnp.tril(x),
            x.T @ x,
            x[1:, ::-1],
            jnp.pad(x, 1),
            jnp.concatenate([x, x]),
            jnp.argmax(x),
        )

    total, _, gram, *_ = trace(fun, shape).outputs
    assert facts_of(total).nonnegative and facts_of(gram).symmetric
    assert all(isinstance(facts_of(v), Facts) for v in trace(fun, shape).outputs)


def test_text_says_only_what_is_known() -> None:
    assert "lower=True" in str(facts(jnp.tril, MATRIX))
    assert "upper" not in str(facts(jnp.tril, MATRIX))


def test_values_of_unread_results_have_facts_too() -> None:
    graph = trace(lambda x: lax.top_k(x, 2), jax.ShapeDtypeStruct((7,), jnp.float32))
    values: list[Value] = list(next(iter(graph)).results)
    assert [facts_of(v).high for v in values] == [None, 6]
